"""``.bq`` files in Pillow: ``import bayesq.pil``, then ``Image.open("a.bq")``, ``image.save("a.bq", quality=75)``.

Opening reads the head and the metadata alone, without torch; pixels are decoded when first needed, by the model that
the file names. ``save`` takes ``quality`` (0 to 100), ``effort`` (1 to 9), ``model`` (a name or a weights file) and,
as other formats do, ``icc_profile``, ``exif`` and ``xmp``, which are otherwise those of ``image.info``.
"""

from __future__ import annotations

import os
from typing import IO

from PIL import Image, ImageFile

from bayesq import bitstream, files
from bayesq.decoding import read_info
from bayesq.errors import ImageError, ModelError
from bayesq.io import METADATA
from bayesq.quality import quality_of

FORMAT = "BQ"


class BqImageFile(ImageFile.ImageFile):
    """A ``.bq`` file as Pillow opens it.

    ``info`` holds ``quality``, ``model_id`` (16 hexadecimal digits), and the metadata that the file has.

    Raises:
        BitstreamError: the file is damaged; it is an OSError, as Pillow's users expect.
        OSError: when pixels are asked for, and the model that wrote the file is not at hand.
    """

    format = FORMAT
    format_description = "bayesq learned image compression"
    fp: IO[bytes] | None = None  # where Pillow sets none: in copies

    def _open(self) -> None:
        assert self.fp is not None
        reader = bitstream.Reader(self.fp)
        header = reader.head.header
        self._size, self._mode = (header.width, header.height), files.mode_of(reader.head)
        self.info = {"quality": quality_of(header.level), "model_id": header.model_id.hex()}
        self.info |= read_info(reader)

    def verify(self) -> None:
        if self.fp is not None:
            self.fp.seek(0)
            bitstream.unpack(self.fp.read())
        super().verify()

    def load(self) -> Image.core.PixelAccess | None:
        if self.fp is not None:
            try:
                self.im = files.decode(self.fp).im
            except ModelError as error:
                raise OSError(str(error)) from error
            if self._exclusive_fp:
                self.fp.close()
            self.fp = None
        return super().load()


def register() -> None:
    """Makes Pillow open and save ``.bq`` files. Importing this module has done it already."""
    Image.register_open(FORMAT, BqImageFile, lambda prefix: prefix.startswith(bitstream.MAGIC))
    Image.register_save(FORMAT, _save)
    Image.register_extension(FORMAT, ".bq")
    Image.register_mime(FORMAT, "image/x-bayesq")


def _save(image: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    from bayesq import zoo

    options = image.encoderinfo
    picture = image.copy()
    for key in METADATA:
        value = options.get(key, picture.info.get(key))
        picture.info[key] = value.tobytes() if isinstance(value, Image.Exif) else value
    try:
        codec = zoo.shared(str(options.get("model", "base")))
        data = files.encode(picture, codec, options.get("quality", 75), options.get("effort", 1))
    except ImageError as error:
        raise OSError(f"cannot write {os.fsdecode(filename) or 'a picture'} as {FORMAT}: {error}") from error
    except ModelError as error:
        raise ValueError(str(error)) from error
    fp.write(data)


register()
