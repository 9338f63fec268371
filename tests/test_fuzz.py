"""The fuzzer: it reaches what lies behind the checksums, finds nothing in the codec, and would tell if it did."""

import io
import json
import random
from pathlib import Path

import pytest

from bayesq import bitstream, files
from bayesq.bench import fuzz
from bayesq.bitstream import File, Header, Mode
from bayesq.cli import main
from bayesq.errors import BitstreamError


@pytest.fixture(scope="module")
def codec():
    return fuzz.tiny_codec()


def test_every_file_is_decoded_or_refused(codec):
    report = fuzz.run([(codec, 1.0)], 400, seed=3)
    assert report.failures == ()
    assert report.decoded + sum(report.refusals.values()) == report.files == 400
    assert report.decoded > 20 and len(report.refusals) > 10
    assert any("checksum differs" in reason for reason in report.refusals)
    assert report.by_mutation.keys() >= {"hostile header, repaired", "a payload or chunk mutated"}
    assert 0 < report.slowest < fuzz.PATIENCE


def test_the_files_follow_from_the_seed(codec):
    first, again, other = (fuzz.run([(codec, 1.0)], 30, seed=seed) for seed in (1, 1, 2))
    assert (first.by_mutation, first.refusals) == (again.by_mutation, again.refusals)
    assert (first.by_mutation, first.refusals) != (other.by_mutation, other.refusals)


class Broken:
    """A codec that stumbles over payloads that are not its own."""

    def __init__(self, codec):
        self.codec, self.seen = codec, set()

    def __getattr__(self, name):
        return getattr(self.codec, name)

    def latents(self, payload, *args):
        try:
            return self.codec.latents(payload, *args)
        except BitstreamError as error:
            raise IndexError("out of range") from error


def test_other_errors_are_failures(codec):
    report = fuzz.run([(Broken(codec), 1.0)], 100)
    assert report.failures
    assert all(it.reason == "IndexError: out of range" for it in report.failures)


def test_repairing_makes_checksums_right(codec):
    for data in fuzz.seeds(codec):
        assert fuzz.repaired(data) == data
        damaged = bytearray(data)
        damaged[6] ^= 1
        damaged[-1] ^= 1
        bitstream.unpack(fuzz.repaired(bytes(damaged)))
        for size in range(0, len(data), 7):
            fuzz.repaired(data[:size])


def test_huge_files_are_small(codec):
    header = bitstream.read_header(io.BytesIO(fuzz._huge(fuzz.seeds(codec), random.Random(0))))
    assert header.width * header.height == bitstream.MAX_PIXELS


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="allocations are capped on Linux alone")
def test_a_sound_picture_larger_than_memory_is_refused(codec):
    """Four bytes a tile say that all codes are what they must be."""
    side = 1 << 14
    header = Header(side, side, Mode.RGB, 89, codec.model_id, *[bitstream.MAX_TILE_SIDE] * 2)
    data = bitstream.pack(File(header, (bytes(4),) * (header.columns * header.rows), {}))
    with fuzz._capped(), pytest.raises(BitstreamError, match="does not fit into memory"):
        files.decode(data, codec)
    assert files.decode(data, codec, region=(5000, 5000, 5010, 5010)).size == (10, 10)


def test_the_command(small_codec_path, capsys):
    assert main(["bench", "fuzz", "-n", "20", "-m", small_codec_path, "--json", "--quiet"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["files"] == 20 and report["failures"] == []
