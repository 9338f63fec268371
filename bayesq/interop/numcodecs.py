"""Chunks of pixels as ``.bq`` files, for whatever stores arrays through numcodecs: Zarr of format 2, kerchunk, …

    zarr.create_array("slides.zarr", shape=(90, 512, 512, 3), chunks=(1, 512, 512, 3), dtype="uint8",
                      zarr_format=2, compressors=Bq(quality=75))

With loss: what is read is near what was written, not equal to it. Zarr of format 3 takes ``bayesq.interop.zarr``.
"""

from __future__ import annotations

from threading import Lock
from typing import Any

import numpy as np
from numcodecs.abc import Codec
from numcodecs.compat import ensure_bytes, ensure_ndarray, ndarray_copy
from PIL import Image

from bayesq import files, zoo
from bayesq.errors import ImageError, ModelError
from bayesq.quality import level_of

_one_at_a_time = Lock()  # stores ask from many threads, torch works with many threads by itself


class Bq(Codec):
    """Codes uint8 chunks: colours (…, H, W, 3), or grey (…, H, W), where … are axes of length 1.

    Args:
        quality: 0 (smallest) to 100 (best).
        model: name of a model at hand. An array's metadata name no files: models of one's own stand in
            ``BAYESQ_MODELS``. A reader needs the model that the chunks themselves name.

    Raises:
        ModelError: the quality is out of range, or the model is no name.
    """

    codec_id = "bayesq"

    def __init__(self, quality: float = 75, model: str = "base") -> None:
        level_of(quality)
        if not isinstance(model, str):
            raise ModelError(f"arrays name a model, not {model!r}")
        if model.endswith(".safetensors"):
            raise ModelError("arrays name a model, not its file: list the file in BAYESQ_MODELS")
        self.quality, self.model = quality, model

    def encode(self, buf: Any) -> bytes:
        """The ``.bq`` file of one chunk.

        Raises:
            ImageError: the chunk is not of the type or shape of a picture, or its samples stand column by column.
            ModelError: no model at hand has that name.
        """
        chunk = ensure_ndarray(buf)
        image = Image.fromarray(np.ascontiguousarray(chunk.reshape(_picture_shape(chunk))))
        with _one_at_a_time:
            return files.encode(image, zoo.shared(self.model), self.quality)

    def decode(self, buf: Any, out: Any = None) -> np.ndarray:
        """The pixels of one chunk, uint8 (H, W, 3) or (H, W), written to ``out`` if given.

        Raises:
            BitstreamError: the chunk is damaged.
            ModelError: the model that it names is not at hand.
        """
        with _one_at_a_time:
            image = files.decode(ensure_bytes(buf))
        return ndarray_copy(np.array(image), out)


def _picture_shape(chunk: np.ndarray) -> tuple[int, ...]:
    if chunk.dtype != np.uint8:
        raise ImageError(f"chunks of {chunk.dtype} cannot be coded, only of uint8")
    picture = 3 if chunk.ndim > 2 and chunk.shape[-1] == 3 else 2
    if chunk.ndim < picture or any(length != 1 for length in chunk.shape[: chunk.ndim - picture]):
        raise ImageError(f"chunks of shape {chunk.shape} are no pictures: (1, …, H, W, 3) or (1, …, H, W) are")
    if chunk.flags.f_contiguous and not chunk.flags.c_contiguous:
        raise ImageError("chunks must be in C order, row by row")
    return chunk.shape[chunk.ndim - picture :]
