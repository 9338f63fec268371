"""What ``bayesq restore`` lays over a restoration: a picture with texture, and error bars from its looks."""

import argparse
from typing import TYPE_CHECKING

from bayesq.errors import BayesqError

if TYPE_CHECKING:
    from torch import Tensor

    from bayesq.posthoc import BayesCap


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--realistic`` and ``--error-bars``."""
    parser.add_argument("--realistic", metavar="FILE", help="write a picture with the texture that the mean leaves out")
    parser.add_argument(
        "--error-bars",
        metavar="MODEL",
        help="of --std: what a cap, by name or .safetensors file, foretells from the picture, drawn or not; `cap` "
        "knows what daps leaves of noise alone, and is too sure of others' pictures (default: the spread of the draws)",
    )


def cap_of(args: argparse.Namespace, task: str) -> "BayesCap | None":
    """The cap that ``--error-bars`` names.

    Raises:
        BayesqError: no standard deviation is asked for, or the cap is told the level of noise, and noise is not all
            that is the matter.
        ModelError: there is no such cap.
    """
    if args.error_bars is None:
        return None
    if not args.std:
        raise BayesqError("--error-bars says whose deviation --std writes: give --std too")
    from bayesq import zoo

    cap = zoo.cap(args.error_bars)
    if cap.told and task != "denoise":
        raise BayesqError(f"{args.error_bars} knows the errors that noise alone leaves, not those of {task}")
    return cap


def realistic(mean: "Tensor", seed: int) -> "Tensor":
    """The mean ``(1, C, H, W)`` with texture; grey stays grey."""
    import torch

    from bayesq import zoo

    picture = zoo.flow().sample(mean.expand(-1, 3, -1, -1), generator=torch.Generator().manual_seed(seed))
    return (picture if mean.shape[1] == 3 else picture.mean(1, keepdim=True)).clamp(0, 1)


def deviation(cap: "BayesCap", mean: "Tensor", sigma: float) -> "Tensor":
    """The standard deviation ``(1, 3, H, W)`` of true pictures, by a cap; sigma is that of the noise, image units.

    Noise of a picture without colours is that of colours of √3 times its level, averaged.
    """
    import torch

    sigma *= (3 if mean.shape[1] == 1 else 1) ** 0.5
    with torch.inference_mode():
        return cap(mean.expand(-1, 3, -1, -1), sigma if cap.told else None).std
