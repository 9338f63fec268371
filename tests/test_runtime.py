"""Runtimes: any reads what any other wrote, with the same symbols; the choice is made once, and obeys its user."""

import copy
import json
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest
import torch
from PIL import Image

from bayesq import runtime, zoo
from bayesq.cli import common, main
from bayesq.codec import Codec
from bayesq.errors import ModelError
from bayesq.io import to_tensor
from bayesq.resources import data_dir
from bayesq.runtime import RUNTIMES

STEP = 1 / 255
TOLERANCES = {"torch": 0.1 * STEP, "bfloat16": STEP, "openvino": 0.1 * STEP}
SIZE, LEVEL = (40, 56), 150
installed = [
    pytest.param(name, marks=pytest.mark.skipif(name == "openvino" and not find_spec("openvino"), reason="no OpenVINO"))
    for name in RUNTIMES
]


@pytest.fixture(autouse=True, scope="module")
def translations(tmp_path_factory):
    """One cache for all, since translating takes long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BAYESQ_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BAYESQ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def codec(small_codec_path):
    return Codec.load(small_codec_path)


@pytest.fixture(scope="module")
def x():
    with Image.open(data_dir() / "coffee.png") as image:
        return to_tensor(image.convert("RGB").crop((200, 100, 200 + SIZE[1], 100 + SIZE[0])))


def test_the_command_line_knows_all():
    assert ["auto", *RUNTIMES] == common.RUNTIMES
    assert TOLERANCES.keys() == RUNTIMES.keys()


@pytest.mark.parametrize("writer", installed)
@pytest.mark.parametrize("reader", installed)
def test_any_reads_what_any_wrote(codec, x, writer, reader):
    codec.runtime = RUNTIMES[writer](codec)
    payload = codec.compress(x, LEVEL)
    codec.runtime = RUNTIMES["torch"](codec)
    z, expected = codec.latents(payload, *SIZE, LEVEL), codec.decompress(payload, *SIZE, LEVEL)
    codec.runtime = RUNTIMES[reader](codec)
    assert torch.equal(codec.latents(payload, *SIZE, LEVEL), z)
    assert (codec.decompress(payload, *SIZE, LEVEL) - expected).abs().max() <= TOLERANCES[reader]


@pytest.mark.skipif(not find_spec("openvino"), reason="no OpenVINO")
def test_openvino_takes_all_sizes_and_sees_new_weights(codec, cache):
    openvino, levels = RUNTIMES["openvino"](codec), torch.tensor([LEVEL])
    for size in [(2, 2), (4, 6), (3, 2)]:
        z = torch.randn(1, 24, *size, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(openvino.synthesis(z, levels), codec.synthesis(z, levels), atol=1e-4, rtol=0)
    assert len(list(cache.glob("openvino/*/model.xml"))) == 1
    codec.synthesis.linear.weight.mul_(0.5)
    torch.testing.assert_close(openvino.synthesis(z, levels), codec.synthesis(z, levels), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", installed)
def test_codecs_may_be_loaded_in_inference_mode(small_codec_path, x, name):
    with torch.inference_mode():
        codec = Codec.load(small_codec_path)
        codec.runtime = RUNTIMES[name](codec)
        decoded = codec.decompress(codec.compress(x, LEVEL), *SIZE, LEVEL)
    assert (decoded - codec.reconstruct(x, LEVEL)[0]).abs().max() <= TOLERANCES[name]


def test_copies_do_not_run_the_original(codec, x):
    codec.runtime = RUNTIMES["bfloat16"](codec)
    other = copy.deepcopy(codec)
    other.synthesis.linear.weight.zero_()
    payload = codec.compress(x, LEVEL)
    assert not torch.allclose(other.decompress(payload, *SIZE, LEVEL), codec.decompress(payload, *SIZE, LEVEL))


def test_the_fastest_is_chosen_once(codec, cache, monkeypatch):
    monkeypatch.setenv("BAYESQ_RUNTIME", "auto")
    monkeypatch.setattr(runtime, "candidates", lambda: ["torch", "bfloat16"])
    seconds = {"torch": 1.0, "bfloat16": 0.95}
    timed = []

    def time_of(candidate, codec):
        timed.append(candidate.name)
        return seconds[candidate.name]

    monkeypatch.setattr(runtime, "time_of", time_of)
    assert runtime.choose(codec).name == "torch"  # not for five per cent
    assert runtime.choose(codec).name == "torch" and timed == ["torch", "bfloat16"]
    (file,) = cache.glob("*.json")
    for damage in ("{", "[]", "3", json.dumps(dict.fromkeys(json.loads(file.read_text()), "abacus"))):
        file.write_text(damage)
        seconds["bfloat16"] = 0.5
        assert runtime.choose(codec).name == "bfloat16"
    assert len(timed) == 10


def test_each_model_is_timed_once_by_whoever_comes_first(codec, tiny_codec, cache, tmp_path, monkeypatch):
    """A, B, A, and many at once, as the processes of a folder do."""
    other = tiny_codec.exported()
    other.prior.laws.indexes[0].bias += 1
    other.save(tmp_path / "other.safetensors")
    codecs = [codec, Codec.load(tmp_path / "other.safetensors")]
    monkeypatch.setenv("BAYESQ_RUNTIME", "auto")
    monkeypatch.setattr(runtime, "candidates", lambda: ["torch", "bfloat16"])
    timed = []

    def time_of(candidate, codec):
        timed.append((codec.model_id, candidate.name))
        time.sleep(0.02)
        return 1.0

    monkeypatch.setattr(runtime, "time_of", time_of)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(runtime.choose, codecs * 4))
    assert sorted(timed) == sorted((codec.model_id, name) for codec in codecs for name in ("torch", "bfloat16"))


def test_nothing_is_timed_without_a_choice(codec, cache, monkeypatch):
    monkeypatch.setenv("BAYESQ_RUNTIME", "auto")
    monkeypatch.setattr(runtime, "candidates", lambda: ["torch"])
    assert runtime.choose(codec).name == "torch" and not cache.exists()


def test_a_choice_needs_no_cache(codec, cache, monkeypatch):
    cache.write_text("a file where the folder should be")
    monkeypatch.setenv("BAYESQ_RUNTIME", "auto")
    monkeypatch.setattr(runtime, "candidates", lambda: ["torch", "bfloat16"])
    assert runtime.choose(codec).name in ("torch", "bfloat16")


def test_times_are_those_of_both_transforms(codec):
    assert 0 < runtime.time_of(RUNTIMES["torch"](codec), codec, side=64) < 60


def test_codecs_without_a_file_are_run_by_torch(tiny_codec, monkeypatch):
    monkeypatch.setenv("BAYESQ_RUNTIME", "auto")
    assert runtime.choose(tiny_codec).name == "torch"


def test_an_unknown_name_is_told(codec, monkeypatch):
    monkeypatch.setenv("BAYESQ_RUNTIME", "abacus")
    with pytest.raises(ModelError, match="abacus"):
        runtime.choose(codec)


def test_the_option_is_obeyed(small_codec_path, tmp_path, monkeypatch):
    monkeypatch.setenv("BAYESQ_RUNTIME", "torch")
    monkeypatch.setenv("BAYESQ_MODELS", small_codec_path)
    used = []
    for name in ("torch", "bfloat16"):
        monkeypatch.setitem(
            RUNTIMES, name, lambda codec, name=name, make=RUNTIMES[name]: (used.append(name), make(codec))[1]
        )
    source, coded, decoded = (str(tmp_path / name) for name in ("a.png", "a.bq", "b.png"))
    Image.new("RGB", (32, 32), "red").save(source)
    assert main(["encode", "--quiet", source, coded, "-m", small_codec_path, "--runtime", "torch"]) == 0
    assert main(["decode", "--quiet", coded, decoded, "--runtime", "bfloat16"]) == 0
    assert used == ["torch", "bfloat16"] and zoo.manifest()[-1].file == small_codec_path
