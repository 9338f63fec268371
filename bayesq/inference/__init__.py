"""Posterior inference over the latents of a codec, or over pixels, all with init, step and sample."""

from bayesq.inference.base import Algorithm, Info, Posterior
from bayesq.inference.daps import DAPS
from bayesq.inference.langevin import MALA, ULA
from bayesq.inference.score import REDDiff, ScoreDVI
from bayesq.inference.vble import VBLE, MAPz
from bayesq.inference.xz import VBLExz

__all__ = ["DAPS", "MALA", "ULA", "VBLE", "Algorithm", "Info", "MAPz", "Posterior", "REDDiff", "ScoreDVI", "VBLExz"]
