"""Chunks of pixels as ``.bq`` files in Zarr arrays of format 3 (zarr-python 3.1 and newer).

    zarr.create_array("slides.zarr", shape=(90, 512, 512, 3), chunks=(1, 512, 512, 3), dtype="uint8",
                      serializer=BqCodec(quality=75), compressors=None)

The codec stands where others turn arrays into bytes, so that nothing is left to compress after it. Arrays of format 2
take ``bayesq.interop.numcodecs``.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.abc.codec import ArrayBytesCodec

from bayesq.errors import BitstreamError, ImageError
from bayesq.interop.numcodecs import Bq

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

NAME = "bayesq"


@dataclass(frozen=True)
class BqCodec(ArrayBytesCodec):
    """Codes uint8 chunks (1, …, H, W, 3) or (1, …, H, W) with loss; see `bayesq.interop.numcodecs.Bq`.

    Raises:
        ModelError: the quality is out of range, or the model is no name.
        ImageError: when an array is created, its type is not uint8; when a chunk is written, it is no picture.
    """

    is_fixed_size = False

    quality: float = 75
    model: str = "base"

    def __post_init__(self) -> None:
        Bq(self.quality, self.model)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BqCodec:
        return cls(**data.get("configuration", {}))

    def to_dict(self) -> dict[str, Any]:
        return {"name": NAME, "configuration": {"quality": self.quality, "model": self.model}}

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        if dtype.to_native_dtype() != np.uint8:
            raise ImageError(f"arrays of {dtype.to_native_dtype()} cannot be coded, only of uint8")

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        raise NotImplementedError

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        data = await asyncio.to_thread(Bq(self.quality, self.model).encode, chunk_data.as_numpy_array())
        return chunk_spec.prototype.buffer.from_bytes(data)

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        pixels = await asyncio.to_thread(Bq(self.quality, self.model).decode, chunk_data.to_bytes())
        shape = chunk_spec.shape
        if shape[-pixels.ndim :] != pixels.shape or any(length != 1 for length in shape[: -pixels.ndim]):
            raise BitstreamError(f"a picture {pixels.shape} stands where a chunk {shape} should")
        return chunk_spec.prototype.nd_buffer.from_numpy_array(pixels.reshape(shape))
