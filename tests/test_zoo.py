"""The model manifest: complete, consistent, and clear about what it does not have."""

import hashlib
import json
import os

import pytest
import torch
from PIL import Image

from bayesq import files, zoo
from bayesq.calibration import finest_detail, of_model
from bayesq.errors import ModelError
from bayesq.io import read_image, to_tensor
from bayesq.metrics import psnr
from bayesq.networks.integer import INPUT_MAX, IntegerConv
from bayesq.resources import data_dir, models_dir

LOADERS = {"codec": zoo.load, "denoiser": zoo.denoiser, "cap": zoo.cap, "flow": zoo.flow}


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A models folder with one file that is not a model, under a manifest that vouches for it."""
    weights = tmp_path / "toy" / "weights.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"toy weights")
    digest = hashlib.sha256(b"toy weights").hexdigest()
    entry = {
        "name": "toy",
        "id": digest[:16],
        "file": "toy/weights.safetensors",
        "sha256": digest,
        "description": "a stand-in",
    }
    (tmp_path / "manifest.json").write_text(json.dumps([entry]))
    monkeypatch.setattr(zoo, "models_dir", lambda: tmp_path)
    return weights


def test_shipped_manifest_is_consistent():
    entries = zoo.manifest()
    assert len({entry.name for entry in entries}) == len(entries)
    for entry in entries:
        digest = hashlib.sha256((models_dir() / entry.file).read_bytes()).hexdigest()
        assert digest == entry.sha256
        assert entry.id == digest[:16]
        assert zoo.find(bytes.fromhex(entry.id)) == entry.name


@pytest.mark.parametrize("entry", zoo.manifest(), ids=lambda entry: entry.name)
def test_shipped_models_have_cards_and_calibrations(entry):
    folder = (models_dir() / entry.file).parent
    assert entry.id in (folder / "card.md").read_text(encoding="utf-8")
    model = LOADERS[entry.kind](entry.name)
    assert model.name == entry.name and model.model_id.hex() == entry.id
    if entry.kind in ("codec", "denoiser"):
        assert of_model(model) is not None


@pytest.fixture
def denoised():
    """What the denoiser makes of a picture in noise of a given level, 25/255 by default, and what it was: a face."""
    x = to_tensor(read_image(data_dir() / "astronaut.png"))[..., 50:178, 90:218]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return lambda level=25 / 255: (zoo.denoiser()(x + level * noise, level).clamp(0, 1), x)


@pytest.mark.parametrize("level", [15 / 255, 25 / 255, 50 / 255])
def test_the_shipped_cap_knows_the_denoisers_errors(denoised, level):
    restored, x = denoised(level)
    law = zoo.cap()(restored, level)
    low, high = law.interval(0.9)
    assert 0.86 < ((low <= x) & (x <= high)).float().mean() < 0.94
    assert psnr(law.mean, x) > psnr(restored, x) - 0.1
    assert torch.corrcoef(torch.stack([law.std.flatten(), (restored - x).abs().flatten()]))[0, 1] > 0.25


def test_the_shipped_flow_gives_back_detail(denoised):
    restored, x = denoised()
    drawn = zoo.flow().sample(restored, generator=torch.Generator().manual_seed(0)).clamp(0, 1)
    lost, left = ((finest_detail(v).mean() / finest_detail(x).mean()).log().abs() for v in (restored, drawn))
    assert left < 0.6 * lost
    assert psnr(restored, x) - 3 < psnr(drawn, x) < psnr(restored, x)


CODECS = [entry.name for entry in zoo.manifest() if entry.kind == "codec"]


@pytest.mark.parametrize("name", CODECS)
def test_shipped_codecs_code(name):
    codec = zoo.load(name)
    image = read_image(data_dir() / "coffee.png").crop((200, 100, 328, 196))
    data = files.encode(image, codec, 75)
    error = to_tensor(files.decode(data)) - to_tensor(image)
    assert 8 * len(data) < 2 * image.width * image.height
    assert -10 * error.square().mean().log10() > 32


@pytest.mark.parametrize("name", CODECS)
def test_hidden_units_of_shipped_codecs_cross_their_thresholds(name):
    """Those that never do make a network linear. In training they all end so unless something keeps them from it."""
    codec, shares = zoo.load(name), {}

    def listen(layer):
        def hook(_module, _inputs, output):
            shares.setdefault(layer, []).append((output > 0).float().mean((0, 2, 3)))

        return hook

    hidden = {
        name: layer
        for name, layer in codec.named_modules()
        if name.endswith(".spatial") or (isinstance(layer, IntegerConv) and (layer.low, layer.high) == (0, INPUT_MAX))
    }
    for layer in hidden.values():
        layer.register_forward_hook(listen(layer))
    for photo in ("coffee.png", "chelsea.png"):
        x = to_tensor(read_image(data_dir() / photo).crop((0, 0, 256, 256)))
        for level in (30, 120, 210):
            codec.reconstruct(x, level)
    assert hidden
    for layer, found in shares.items():
        share = torch.stack(found).mean(0)
        assert ((share > 0.001) & (share < 0.999)).float().mean() > 0.6, layer


def test_find(shelf):
    model_id = hashlib.sha256(b"toy weights").digest()[:8]
    assert zoo.find(model_id) == "toy"
    with pytest.raises(ModelError, match=r"no model with id 0{16}; models at hand: toy"):
        zoo.find(bytes(8))


def test_unknown_name(shelf):
    with pytest.raises(ModelError, match="no model called 'nonsense'; models at hand: toy") as caught:
        zoo.load("nonsense")
    assert "\n" not in str(caught.value)


def test_damaged_weights(shelf):
    shelf.write_bytes(b"toy weighty")
    with pytest.raises(ModelError, match="damaged"):
        zoo.load("toy")


def test_missing_weights(shelf):
    shelf.unlink()
    with pytest.raises(ModelError, match="no such weights file"):
        zoo.load("toy")
    with pytest.raises(ModelError, match="no such weights file"):
        zoo.load("elsewhere.safetensors")


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"name": "x"}]'])
def test_unreadable_manifest(shelf, text):
    (shelf.parent.parent / "manifest.json").write_text(text)
    with pytest.raises(ModelError, match="not a readable list of models"):
        zoo.manifest()


def test_own_models_are_found_by_name_and_id(shelf, small_codec_path, monkeypatch):
    monkeypatch.setenv("BAYESQ_MODELS", small_codec_path)
    digest = zoo.sha256(small_codec_path)
    name = zoo.find(bytes.fromhex(digest[:16]))
    assert [entry.name for entry in zoo.manifest()] == ["toy", name]
    assert zoo.load(name).model_id.hex() == digest[:16]
    assert zoo.shared(name) is zoo.shared(name)


def test_own_models_of_one_folder_name_are_told_apart(shelf, tiny_codec, tmp_path, monkeypatch):
    """And one that is called like a shipped model."""
    paths, codec = [tmp_path / place / "weights.safetensors" for place in ("a/run", "b/run", "c/toy")], tiny_codec
    for path in paths:
        path.parent.mkdir(parents=True)
        codec.save(path)
        codec = codec.exported()
        codec.prior.laws.indexes[0].bias += 1
    monkeypatch.setenv("BAYESQ_MODELS", os.pathsep.join(map(str, paths)))
    names = [entry.name for entry in zoo.manifest()]
    assert names == ["toy", "run", *map(str, paths[1:])]
    image = Image.new("RGB", (16, 16), "red")
    for path, name in zip(paths, names[1:], strict=True):
        assert zoo.find(zoo.load(str(path)).model_id) == name
        assert zoo.load(name).model_id == zoo.load(str(path)).model_id
        assert files.decode(files.encode(image, zoo.load(str(path)), 50)).size == image.size


def test_a_missing_own_model_hinders_no_other(shelf, small_codec_path, monkeypatch, caplog):
    missing = shelf.parent / "stale.safetensors"
    monkeypatch.setenv("BAYESQ_MODELS", os.pathsep.join([str(missing), small_codec_path]))
    for _ in range(2):
        assert [entry.file for entry in zoo.manifest()] == ["toy/weights.safetensors", small_codec_path]
    assert caplog.messages == [f"BAYESQ_MODELS: {missing}: no such weights file"]
    with pytest.raises(ModelError, match=r"stale\.safetensors: no such weights file"):
        zoo.load(str(missing))


def test_shared_models_follow_their_file(tiny_codec, tmp_path):
    path = tmp_path / "weights.safetensors"
    tiny_codec.save(path)
    first = zoo.shared(str(path))
    other = tiny_codec.exported()
    other.prior.laws.indexes[0].bias += 1
    other.save(path)
    assert zoo.shared(str(path)).model_id != first.model_id


@pytest.mark.parametrize("level", [0, 100, 255])
@pytest.mark.parametrize("name", CODECS)
def test_latents_beyond_the_margin_hardly_move_a_pixel(name, level):
    codec, levels = zoo.load(name), torch.tensor([level])
    x = to_tensor(read_image(data_dir() / "astronaut.png").crop((100, 0, 356, 256)))
    z, unit = codec.analysis(x, levels).round(), codec.reduction
    first, last, reach = 6, 10, codec.margin
    seen = slice(first - reach, last + reach)
    whole, part = codec.synthesis(z, levels), codec.synthesis(z[..., seen, seen], levels)
    inner, outer = slice(reach * unit, (reach + last - first) * unit), slice(first * unit, last * unit)
    assert 255 * (part[..., inner, inner] - whole[..., outer, outer]).abs().max() < 0.25


def test_files_of_other_names_are_no_models(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"weights")
    for ask in (zoo.load, zoo.sha256, zoo.kind):
        with pytest.raises(ModelError, match=r"weights\.bin: weights files end in \.safetensors"):
            ask(str(tmp_path / "weights.bin"))
