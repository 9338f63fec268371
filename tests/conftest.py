import os

import pytest
from hypothesis import settings

settings.register_profile("bayesq", deadline=None)  # a busy machine is not a failure
settings.load_profile("bayesq")
os.environ["BAYESQ_RUNTIME"] = "torch"  # tests should neither depend on what is fastest here nor time it


@pytest.fixture(scope="session")
def tiny_codec():
    """A codec of the library's own design at its analytic start, as small as can be and not exported."""
    import torch

    from bayesq.architecture import Architecture
    from bayesq.codec import Codec
    from bayesq.resources import data_dir
    from bayesq.training.data import Crops
    from bayesq.training.start import initialise

    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = Codec.build(Architecture(24, 8, (16, 16), (1, 1), 16, 8))
    initialise(codec, Crops(sorted(data_dir().glob("*.png"))), torch.Generator().manual_seed(0), 64)
    return codec.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def small_codec_path(tiny_codec, tmp_path_factory) -> str:
    """The weights file of that codec."""
    path = tmp_path_factory.mktemp("tiny") / "weights.safetensors"
    tiny_codec.save(path)
    return str(path)
