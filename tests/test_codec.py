"""The codec: what is coded comes back, costs what the prior says, and survives saving."""

import copy
import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save as safetensors_bytes
from skimage.data import astronaut

from bayesq import bitstream, files, rates, tiling
from bayesq.architecture import ARCHITECTURES, Architecture
from bayesq.codec import FORMAT, Codec
from bayesq.errors import BitstreamError, ImageError, ModelError
from bayesq.io import to_image
from bayesq.networks.transforms import Pointwise
from bayesq.prior import decode, drive

SIZES = [(1, 1), (1, 40), (16, 16), (31, 33), (70, 45)]
LEVELS = [0, 100, 255]


@pytest.fixture(scope="module", params=["tiny_codec", "linear_codec"])
def trainable(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def codec(trainable):
    return trainable.exported()


def picture(height, width):
    return torch.from_numpy(astronaut())[100 : 100 + height, 150 : 150 + width].permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", SIZES)
def test_files_come_back(codec, size, level):
    x = picture(*size)
    decoded = codec.decompress(codec.compress(x, level), *size, level)
    assert decoded.shape == x.shape and decoded.min() >= 0 and decoded.max() <= 1
    assert torch.equal(decoded, codec.reconstruct(x, level)[0])


@pytest.mark.parametrize("level", LEVELS)
def test_the_rate_is_that_of_the_file(codec, level):
    x = picture(256, 256)
    bits = codec.reconstruct(x, level)[1]
    excess = 8 * len(codec.compress(x, level)) - bits
    assert -0.05 * bits - 96 < excess < 0.03 * bits + 96  # what a law holds for impossible, an escape makes cheaper


@pytest.mark.parametrize("size", [(1, 1), (17, 90), (48, 33), (64, 64)])
def test_a_map_of_the_bits_adds_up_to_the_payload(codec, size):
    payload = codec.compress(picture(*size), 130)
    bits = codec.bit_map(payload, *size, 130)
    assert bits.shape == (1, 1, *size) and (bits >= 0).all()
    assert -1 < 8 * len(payload) - bits.sum().item() < 128


def test_a_map_of_the_bits_of_a_file_in_tiles(codec, monkeypatch):
    monkeypatch.setattr(tiling, "TILE", 64)
    data = files.encode(to_image(picture(100, 150)), codec, 70)
    tiles = bitstream.unpack(data).tiles
    bits = rates.bit_map(data, codec)
    assert len(tiles) == 6 and bits.shape == (1, 1, 100, 150)
    assert -1 < sum(8 * len(tile) for tile in tiles) - bits.sum().item() < 128 * len(tiles)


def test_bits_are_where_there_is_something_to_code(codec):
    x = picture(96, 192)
    x[..., :96] = 0.5
    bits = codec.bit_map(codec.compress(x, 130), 96, 192, 130)
    assert bits[..., 96:].mean() > 2 * bits[..., :64].mean()


def test_quality_buys_fidelity_for_bits(codec):
    x = picture(256, 256)
    decoded, bits = zip(*(codec.reconstruct(x, level) for level in (0, 80, 160)), strict=True)
    errors = [float((picture - x).square().mean()) for picture in decoded]
    assert bits[0] < bits[1] < bits[2] and errors[0] > errors[1] > errors[2]


def test_the_exported_codec_computes_what_the_trained_one_does(trainable, codec):
    x = picture(70, 45)
    ours, theirs = trainable.quantize(x, 100), codec.quantize(x, 100)
    for a, b in zip(ours.symbols, theirs.symbols, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(ours.nats, theirs.nats)


def test_compression_does_not_depend_on_global_precision(codec):
    x, before = picture(70, 45), torch.get_float32_matmul_precision()
    expected = codec.compress(x, 100)
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            assert codec.compress(x, 100) == expected
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_decoder_whose_floats_differ_reads_the_same_codes(codec):
    x, level = picture(70, 45), 150
    other = copy.deepcopy(codec)
    with torch.no_grad():
        for parameter in other.prior.means.parameters():
            parameter.mul_(1 + torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    ours, theirs = (c.walk(1, 70, 45, torch.tensor([level])) for c in (codec, other))
    payload = codec.compress(x, level)
    pairs = list(zip(decode(ours, payload), decode(theirs, payload), strict=True))  # vouches for the codes
    of_h, of_z = len(codec.prior.laws.passes), len(codec.prior.passes)
    assert [torch.equal(a, b) for a, b in pairs] == [True] * of_h + [False] * of_z


@pytest.mark.parametrize("level", [-1, 256])
def test_levels_out_of_range_are_refused(codec, level):
    x = picture(16, 16)
    payload = codec.compress(x, 0)
    for call in (
        lambda: codec.compress(x, level),
        lambda: codec.reconstruct(x, level),
        lambda: codec.decompress(payload, 16, 16, level),
    ):
        with pytest.raises(ModelError, match="0 to 255"):
            call()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pictures_that_are_not_finite_are_refused(codec, value):
    x = picture(16, 16).clone()
    x[0, 1, 2, 3] = value
    for call in (codec.compress, codec.reconstruct):
        with pytest.raises(ImageError, match="finite"):
            call(x, 0)


def test_damaged_payloads_are_refused(codec):
    payload = codec.compress(picture(70, 45), 200)
    middle = len(payload) // 2
    flipped = payload[:middle] + bytes([payload[middle] ^ 16]) + payload[middle + 1 :]
    for damaged in (flipped, payload[:-4], payload[:-1], payload + bytes(4), b""):
        with pytest.raises(BitstreamError) as error:
            codec.decompress(damaged, 70, 45, 200)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("height", "width", "level"), [(70, 45, 199), (70, 70, 200), (200, 45, 200)])
def test_payloads_read_under_other_terms_are_refused(codec, height, width, level):
    payload = codec.compress(picture(70, 45), 200)
    with pytest.raises(BitstreamError):
        codec.decompress(payload, height, width, level)


def test_samples_lie_in_the_cells_of_the_file(codec):
    x, level = picture(70, 45), 100
    payload = codec.compress(x, level)
    cells = codec.quantize(x, level).cells
    for cell, target in zip(cells, codec.targets(x, torch.tensor([level])), strict=True):
        assert ((cell.centre - target).abs() <= cell.width / 2 + 1e-3).all()
    of_z = slice(len(codec.prior.laws.passes), None)
    for draw in codec.sample_latents(payload, 70, 45, level, 3, torch.Generator().manual_seed(0)).split(1):
        drawn = codec.prior.targets(draw, torch.tensor([level]))
        assert all(cell.contains(part).all() for cell, part in zip(cells[of_z], drawn[of_z], strict=True))
    drawn = codec.sample_decode(payload, 70, 45, level, 3, torch.Generator().manual_seed(0))
    again = codec.sample_decode(payload, 70, 45, level, 3, torch.Generator().manual_seed(0))
    assert drawn.shape == (3, 1, 3, 70, 45) and torch.equal(drawn, again)
    assert not torch.equal(drawn[0], drawn[1])
    spread = (drawn - codec.decompress(payload, 70, 45, level)).square().mean().sqrt()
    assert 0 < spread < 0.2


def test_saving_and_loading_change_nothing(trainable, codec, tmp_path):
    first, second, x = tmp_path / "a" / "weights.safetensors", tmp_path / "b.safetensors", picture(70, 45)
    first.parent.mkdir()
    digest = trainable.save(first)
    loaded = Codec.load(first)
    assert loaded.name == "a" and loaded.model_id == digest[:8]
    payload = loaded.compress(x, 100)
    assert payload == codec.compress(x, 100)
    assert torch.equal(loaded.decompress(payload, 70, 45, 100), codec.reconstruct(x, 100)[0])
    assert loaded.save(second) == digest and second.read_bytes() == first.read_bytes()


def test_equal_codecs_are_equal_files(trainable, tmp_path):
    digests = {trainable.save(tmp_path / "weights.safetensors") for _ in range(8)}
    assert len(digests) == 1


def damaged_weights(codec, folder):
    path = folder / "weights.safetensors"
    codec.save(path)
    whole = path.read_bytes()
    yield "cut off", whole[:-100]
    yield "cut off in the header", whole[:50]
    yield "empty", b""
    yield "text", b"not weights at all"
    yield "no metadata", safetensors_bytes({"x": torch.zeros(1)})
    yield "another format", whole.replace(FORMAT.encode(), b"bayesq-codec-9")
    size = json.dumps({"latents": 24, "hyper": 8}).replace('"', '\\"').encode()
    yield "another architecture", whole.replace(size[:-1], size.replace(b"24", b"26")[:-1])
    yield "unknown sizes", whole.replace(b'{\\"latents\\"', b'{\\"patents\\"')
    yield "architecture is no object", safetensors_bytes({}, {"format": FORMAT, "architecture": "[]"})


def test_foreign_and_damaged_weights_are_refused(tiny_codec, tmp_path):
    path = tmp_path / "damaged.safetensors"
    for _, data in damaged_weights(tiny_codec, tmp_path):
        path.write_bytes(data)
        with pytest.raises(ModelError) as error:
            Codec.load(path)
        assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_missing_weights_are_refused(tmp_path):
    with pytest.raises(ModelError):
        Codec.load(tmp_path / "nothing.safetensors")


def test_weights_that_break_the_integer_bound_are_refused(tiny_codec, tmp_path):
    path = tmp_path / "weights.safetensors"
    codec = tiny_codec.exported()
    codec.prior.scales.heads[0].multiplier.fill_(-1)
    codec.save(path)
    with pytest.raises(ModelError, match="multiplier"):
        Codec.load(path)


def test_a_batch_is_coded_like_its_pictures(codec):
    x = torch.cat([picture(48, 48), picture(48, 48).flip(3)])
    together = codec.quantize(x, 100)
    for number, alone in enumerate(codec.quantize(part[None], 100) for part in x):
        for a, b in zip(together.symbols, alone.symbols, strict=True):
            assert (a[number] != b[0]).float().mean() < 0.01  # float networks may differ in a last bit


def test_exporting_leaves_the_codec_alone(tiny_codec):
    before = copy.deepcopy(tiny_codec.state_dict())
    tiny_codec.exported()
    after = tiny_codec.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_codes_are_zero_and_free_at_the_smallest_indexes(codec):
    coded, laws = codec.quantize(picture(96, 64), 0), []
    values = iter(coded.values)
    with torch.inference_mode():
        drive(codec.walk(1, 96, 64, torch.tensor([0])), lambda n, law: laws.append(law) or next(values))
    free = [law.index.round() < codec.architecture.certain for law in laws]
    for law, here, symbols in zip(laws, free, coded.symbols, strict=True):
        assert torch.equal(here, law.tables()[0] == -1) and not symbols[here].any()
    assert any(here.any() and symbols.any() for here, symbols in zip(free, coded.symbols, strict=True))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sizes_survive_json(name):
    sizes = ARCHITECTURES[name]
    assert Architecture.from_json(json.dumps(asdict(sizes))) == sizes


@pytest.mark.parametrize("bias", [True, False])
def test_a_pointwise_convolution_mixes_the_channels_of_each_pixel(bias):
    layer, x = Pointwise(5, 7, bias), torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    mixed = torch.einsum("oi,bihw->bohw", layer.weight[..., 0, 0], x)
    assert torch.allclose(layer(x), mixed + layer.bias[:, None, None] if bias else mixed, atol=1e-6)
