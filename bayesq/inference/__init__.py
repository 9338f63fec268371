"""Posterior inference over the latents of a codec, one algorithm a file, all with init, step and sample."""

from bayesq.inference.base import Algorithm, Info, Posterior
from bayesq.inference.vble import VBLE, MAPz

__all__ = ["VBLE", "Algorithm", "Info", "MAPz", "Posterior"]
