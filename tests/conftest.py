import os

import pytest
from hypothesis import settings

settings.register_profile("bayesq", deadline=None)  # a busy machine is not a failure
settings.load_profile("bayesq")
os.environ["BAYESQ_RUNTIME"] = "torch"  # tests should neither depend on what is fastest here nor time it


def started(**sizes):
    """A codec of the library's own design at its analytic start, not exported."""
    import torch

    from bayesq.architecture import Architecture
    from bayesq.codec import Codec
    from bayesq.resources import data_dir
    from bayesq.training.data import Crops
    from bayesq.training.start import initialise

    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = Codec.build(Architecture(**sizes))
    initialise(codec, Crops(sorted(data_dir().glob("*.png"))), torch.Generator().manual_seed(0), 64)
    return codec.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_codec():
    """Built like ``base``, as small as can be, at its analytic start and not exported."""
    return started(latents=24, hyper=8, widths=(16, 16), depths=(1, 1), prior_width=16, leading=8)


@pytest.fixture(scope="session")
def linear_codec():
    """The same, built like ``fast``: linear transforms, few passes."""
    sizes = {"latents": 24, "hyper": 8, "widths": (0, 0), "depths": (0, 0), "prior_width": 16}
    return started(**sizes, leading=0, ways=2, seen=8)


@pytest.fixture(scope="session")
def small_codec_path(tiny_codec, tmp_path_factory) -> str:
    """The weights file of that codec."""
    path = tmp_path_factory.mktemp("tiny") / "weights.safetensors"
    tiny_codec.save(path)
    return str(path)
