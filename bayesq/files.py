"""Pictures to ``.bq`` bytes and back: colours through a codec, everything else (alpha, metadata) without loss."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol

from PIL import Image

from bayesq import bitstream
from bayesq.bitstream import ALPHA, EXIF, ICC, MAX_PIXELS, XMP, File, Head, Header, Mode
from bayesq.errors import BitstreamError, ImageError, ModelError
from bayesq.io import normalized, to_image, to_tensor
from bayesq.quality import level_of, quality_of

if TYPE_CHECKING:
    from torch import Generator, Tensor

_EXIF_PREFIX = b"Exif\0\0"


class TileCodec(Protocol):
    """What a file needs of a codec."""

    @property
    def model_id(self) -> bytes:
        """The first 8 bytes of the SHA-256 of the weights file."""

    def compress(self, x: Tensor, level: int) -> bytes:
        """Codes x, (1, 3, H, W) in [0, 1], at one of 256 quality levels."""

    def decompress(self, payload: bytes, height: int, width: int, level: int) -> Tensor:
        """The coded picture, (1, 3, height, width) in [0, 1]."""


class SamplingCodec(TileCodec, Protocol):
    """A codec that can also draw from the cells of a payload."""

    def sample_decode(
        self, payload: bytes, height: int, width: int, level: int, n: int, generator: Generator
    ) -> Tensor:
        """Draws of the coded picture, (n, 1, 3, height, width) in [0, 1]."""


@dataclass(frozen=True)
class Description:
    """What a file says of itself."""

    format_version: int
    width: int
    height: int
    mode: str
    """L, LA, RGB or RGBA."""
    model_id: str
    """16 hexadecimal digits."""
    level: int
    """0 to 255."""
    quality: float
    """0 to 100."""
    bytes: int
    bits_per_pixel: float
    """Of the whole file."""
    tile_grid: tuple[int, int]
    """Columns and rows."""
    chunks: Mapping[str, int]
    """Bytes of each chunk, by tag."""
    intact: bool
    """Whether all bytes are there and all checksums right."""


def encode(image: Image.Image, codec: TileCodec, quality: float) -> bytes:
    """The bytes of a ``.bq`` file.

    Grey pictures stay grey, alpha is kept without loss, as are the ICC profile, EXIF and XMP found in ``image.info``.

    Args:
        image: a picture with 8 bits a sample; palettes and CMYK are coded as RGB.
        codec: the model.
        quality: 0 (smallest) to 100 (best).

    Raises:
        ImageError: the picture has more than 8 bits a sample, no pixels, or more than `MAX_PIXELS`.
        ModelError: the quality is not in its range.
    """
    level = level_of(quality)
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{image.width} × {image.height} pixels exceed the limit of {MAX_PIXELS}")
    pixels = normalized(image)
    width, height = pixels.size
    chunks = _metadata(image)
    if pixels.mode.endswith("A"):
        chunks[ALPHA] = bitstream.pack_plane(pixels.getchannel("A").tobytes())
    mode = Mode.RGB if pixels.mode.startswith("RGB") else Mode.GREY
    header = Header(width, height, mode, level, codec.model_id, width, height)
    return bitstream.pack(File(header, (codec.compress(to_tensor(pixels), level),), chunks))


def decode(data: bytes, codec: TileCodec | None = None) -> Image.Image:
    """The picture in a ``.bq`` file, in mode L, LA, RGB or RGBA, with its metadata in ``info``.

    Args:
        data: the whole file.
        codec: the model that wrote it; looked up by its id among the installed ones if not given.

    Raises:
        BitstreamError: the file is damaged, foreign, or needs a newer bayesq.
        ModelError: the file needs another model than that given, or than those installed.
    """
    file = bitstream.unpack(data)
    header = file.header
    alpha = file.chunks.get(ALPHA)
    samples = None if alpha is None else bitstream.unpack_plane(alpha, header.width, header.height)
    if codec is None:
        from bayesq import zoo

        codec = zoo.shared(zoo.find(header.model_id))
    _check_model(header, codec)
    picture = Image.new(_colours(header), (header.width, header.height))
    for (left, top, right, bottom), payload in zip(header.boxes(), file.tiles, strict=True):
        x = codec.decompress(payload, bottom - top, right - left, header.level)
        picture.paste(to_image(_in_mode(x, header)), (left, top))
    if samples is not None:
        picture.putalpha(Image.frombytes("L", picture.size, samples))
    picture.info |= _info(file.chunks)
    return picture


def deviation(data: bytes, codec: SamplingCodec, samples: int, generator: Generator) -> Tensor:
    """What a file leaves open: the standard deviation, pixel by pixel, of pictures drawn from its cells.

    Args:
        data: the whole file.
        codec: the model that wrote it.
        samples: number of draws, at least 2.
        generator: source of the randomness.

    Returns:
        (1, 1, H, W), the root mean square over the colours, in units of images in [0, 1].

    Raises:
        BitstreamError: the file is damaged, foreign, or needs a newer bayesq.
        ModelError: the file needs another model.
    """
    import torch

    file = bitstream.unpack(data)
    header = file.header
    _check_model(header, codec)
    result = torch.empty(1, 1, header.height, header.width)
    for (left, top, right, bottom), payload in zip(header.boxes(), file.tiles, strict=True):
        draws = codec.sample_decode(payload, bottom - top, right - left, header.level, samples, generator)
        result[..., top:bottom, left:right] = _in_mode(draws, header).var(0).mean(1, keepdim=True).sqrt()
    return result


def describe(data: bytes) -> Description:
    """What a file says of itself; needs neither its model nor torch.

    Raises:
        BitstreamError: not even the head of the file is intact.
    """
    head = bitstream.read_head(io.BytesIO(data))
    header = head.header
    try:
        bitstream.unpack(data)
        intact = True
    except BitstreamError:
        intact = False
    return Description(
        format_version=bitstream.VERSION,
        width=header.width,
        height=header.height,
        mode=mode_of(head),
        model_id=header.model_id.hex(),
        level=header.level,
        quality=quality_of(header.level),
        bytes=len(data),
        bits_per_pixel=8 * len(data) / (header.width * header.height),
        tile_grid=(header.columns, header.rows),
        chunks={tag: entry.length for tag, entry in head.chunks.items()},
        intact=intact,
    )


def mode_of(head: Head) -> str:
    """L, LA, RGB or RGBA."""
    return _colours(head.header) + ("A" if ALPHA in head.chunks else "")


def read_info(stream: BinaryIO, head: Head) -> dict[str, bytes]:
    """The metadata of a file as Pillow's ``info``, without reading the pixels.

    Raises:
        BitstreamError: the metadata is damaged or cut off.
    """
    return _info(bitstream.read_chunks(stream, head, (ICC, EXIF, XMP)))


def _check_model(header: Header, codec: TileCodec) -> None:
    if codec.model_id != header.model_id:
        raise ModelError(f"the file needs model {header.model_id.hex()}, not {codec.model_id.hex()}")


def _in_mode(x: Tensor, header: Header) -> Tensor:
    return x.mean(-3, keepdim=True) if header.mode == Mode.GREY else x


def _colours(header: Header) -> str:
    return "RGB" if header.mode == Mode.RGB else "L"


def _info(chunks: Mapping[str, bytes]) -> dict[str, bytes]:
    keys = ((ICC, "icc_profile", b""), (EXIF, "exif", _EXIF_PREFIX), (XMP, "xmp", b""))
    return {key: prefix + chunks[tag] for tag, key, prefix in keys if tag in chunks}


def _metadata(image: Image.Image) -> dict[str, bytes]:
    info = image.info
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or b""
    chunks = {
        ICC: b"" if image.mode in ("CMYK", "LAB") else info.get("icc_profile") or b"",  # a profile of other colours
        EXIF: (info.get("exif") or b"").removeprefix(_EXIF_PREFIX),
        XMP: xmp.encode() if isinstance(xmp, str) else xmp,
    }
    return {tag: data for tag, data in chunks.items() if data}
