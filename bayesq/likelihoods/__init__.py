"""Likelihoods p(y | x): what the measurement says of the picture, in nats.

Each is the exact, normalised density of its noise model, differentiable in x, and counts the observed pixels alone: the
blanked pixels of an inpainting problem say nothing. Written here rather than taken from deepinv, whose data fidelities
leave out the constants (which comparing models needs) and sum over the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bayesq.errors import OperatorError
from bayesq.likelihoods.base import (
    SIGMA_FLOOR,
    Independent,
    Likelihood,
    NearlyGaussian,
    Weighable,
    gaussian_near,
    noise_level,
    of_part,
    weighted,
)
from bayesq.likelihoods.cells import Cells
from bayesq.likelihoods.counts import RATE_FLOOR, Poisson, PoissonGaussian
from bayesq.likelihoods.decoder import DecoderError
from bayesq.likelihoods.gaussian import Gaussian, UnevenGaussian, UnknownGaussian
from bayesq.likelihoods.mixture import Impulse, Mixture

if TYPE_CHECKING:
    from deepinv.physics import Physics

__all__ = [
    "RATE_FLOOR",
    "SIGMA_FLOOR",
    "Cells",
    "DecoderError",
    "Gaussian",
    "Impulse",
    "Independent",
    "Likelihood",
    "Mixture",
    "NearlyGaussian",
    "Poisson",
    "PoissonGaussian",
    "UnevenGaussian",
    "UnknownGaussian",
    "Weighable",
    "from_physics",
    "gaussian_near",
    "noise_level",
    "of_part",
    "weighted",
]


def from_physics(physics: Physics) -> Independent:
    """Builds the likelihood of the noise that a deepinv operator carries.

    Raises:
        OperatorError: the operator states no noise, or one of another kind than those of this package.
    """
    from deepinv.physics import GaussianNoise, PoissonGaussianNoise, PoissonNoise, ZeroNoise

    from bayesq.operators import Rounding

    noise = physics.noise_model
    if isinstance(noise, GaussianNoise):
        return Gaussian(physics, noise.sigma)
    if isinstance(noise, PoissonNoise):
        return Poisson(physics, noise.gain, bool(noise.normalize))
    if isinstance(noise, PoissonGaussianNoise):
        return PoissonGaussian(physics, noise.gain, noise.sigma)
    if isinstance(noise, Rounding):
        return Cells(physics, noise.step, noise.smoothing)
    if isinstance(noise, ZeroNoise):
        raise OperatorError("the operator states no noise: give it one, such as GaussianNoise(5 / 255)")
    raise OperatorError(
        f"no likelihood for {type(noise).__name__}: use GaussianNoise, PoissonNoise, PoissonGaussianNoise or Rounding"
    )
