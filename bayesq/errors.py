"""The exceptions bayesq raises for what its users can get wrong.

Each carries a one-line message meant for people; the command line prints it and exits with status 1.
"""


class BayesqError(Exception):
    """Base of every error that bayesq raises on purpose."""


class BitstreamError(BayesqError, OSError):
    """A ``.bq`` file is damaged, truncated, foreign, or needs a newer bayesq.

    An OSError too, since that is what programs expect of a picture file that cannot be read.
    """


class ModelError(BayesqError):
    """A model is unknown, damaged, or cannot do what was asked of it."""


class ForeignModelError(ModelError, BitstreamError):
    """A ``.bq`` file needs another model than that given, or than those at hand."""


class ImageError(BayesqError):
    """A picture cannot be read, or has a size or mode that the operation does not accept."""


class OutputError(ImageError):
    """A file cannot be written, or its format cannot hold the picture; the message names it."""


class OperatorError(BayesqError):
    """A degradation (kernel, mask, scale, noise level) is malformed or does not fit the picture."""


class TrainingError(BayesqError):
    """A training run cannot start or resume: no pictures, or a run folder that does not match."""
