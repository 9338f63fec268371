"""Quality as people give it, 0 to 100, and as files store it, one of 256 levels."""

from numbers import Real

from bayesq.errors import ModelError

LEVELS = 256


def level_of(quality: float) -> int:
    """The level nearest to a quality. Raises ModelError for what is no number in 0…100 (NaN included)."""
    if not isinstance(quality, Real):
        raise ModelError(f"the quality must be a number, not {quality!r}")
    if not 0 <= quality <= 100:
        raise ModelError(f"the quality must be between 0 and 100, not {quality:g}")
    return round(quality * (LEVELS - 1) / 100)


def quality_of(level: int) -> float:
    """The quality that a level stands for."""
    return level * 100 / (LEVELS - 1)
