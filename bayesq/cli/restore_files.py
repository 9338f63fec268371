"""``bayesq restore`` on folders."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bayesq.batch import keep_picture
from bayesq.cli import restore
from bayesq.io import SUFFIXES, like, write_image


@dataclass(frozen=True)
class RestoreFiles:
    """Pictures to restored ones: what is done to each file of a folder.

    Attributes:
        args: Those of the command, whose input and output are folders.
    """

    args: argparse.Namespace

    sources: ClassVar = SUFFIXES
    suffix: ClassVar = ".png"

    def is_done(self, source: Path, target: Path) -> bool:
        return True

    def write(self, source: Path, target: Path) -> None:
        keep_picture(target)
        file = {"input": str(source), "output": str(target), "quiet": True, "scheduler": None}
        own = argparse.Namespace(**vars(self.args) | file)
        image, measurement = restore.take(own)
        restoration, _ = restore.infer_any(own, measurement)
        write_image(like(restoration.mean, image), target)
