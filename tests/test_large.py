"""Restoration piece by piece, against that of the whole."""

from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import pytest
import torch
from deepinv.physics import Blur, GaussianNoise, PoissonNoise
from distributed import LocalCluster

from bayesq import operators, restore
from bayesq.cli import main
from bayesq.cluster import AHEAD, connect, spread
from bayesq.errors import OperatorError
from bayesq.io import read_image, to_tensor
from bayesq.large import RAMP, _cores, _ramp, restore_large
from bayesq.likelihoods import Gaussian, Impulse, Mixture, UnknownGaussian, from_physics, of_part
from bayesq.metrics import psnr
from bayesq.operators.parts import crop, is_local, of_measurement, part, reach, size_of, unit
from bayesq.resources import data_dir

SIZE = (150, 174)
SIGMA = 0.05
MASK = torch.rand(SIZE, generator=torch.Generator().manual_seed(1)) < 0.6
OPERATORS = {
    "denoise": operators.denoise(SIZE, SIGMA),
    "deblur": operators.blur("motion:9,40", SIZE, SIGMA),
    "superres": operators.downsample(3, SIZE, SIGMA),
    "halved": operators.downsample(2, SIZE, SIGMA),
    "inpaint": operators.inpaint(MASK, SIZE, SIGMA),
    "demosaic": operators.demosaic(SIZE, SIGMA),
    "colorize": operators.colorize(SIZE, SIGMA),
}
BOX = (36, 48, 132, 138)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def photo():
    return to_tensor(read_image(data_dir() / "coffee.png").crop((200, 80, 374, 230)))


@pytest.mark.parametrize("name", OPERATORS)
def test_a_part_is_measured_as_in_the_whole(name, photo):
    physics = OPERATORS[name]
    y = physics.A(photo)
    assert is_local(physics) and size_of(y, physics) == SIZE
    assert BOX[0] % unit(physics) == BOX[1] % unit(physics) == 0
    measured, inner = part(y, physics, BOX)
    again = inner.A(crop(photo, BOX))
    assert again.shape == measured.shape and size_of(measured, inner) == (90, 96)
    margin = -(-reach(physics) // (SIZE[0] // y.shape[-2]))
    assert (again - measured)[..., margin:-margin, margin:-margin].abs().max() < 1e-5


def test_maps_are_cut_with_the_measurement():
    physics = OPERATORS["superres"]
    level = 0.01 + torch.rand(1, 1, 50, 58, generator=generator())
    law = Mixture(physics, [Gaussian(physics, level), Impulse(physics)], [0.9, 0.1])
    found = of_part(law, physics, lambda value: crop(value, of_measurement(physics, BOX)))
    assert torch.equal(found.parts[0].sigma, level[..., 16:46, 12:44])
    assert torch.equal(law.parts[0].sigma, level)


@pytest.mark.parametrize(("length", "side"), [(64, 64), (100, 64), (500, 64), (30, 64), (129, 128)])
def test_weights_add_up_to_one(length, side):
    total = torch.zeros(length)
    for start, stop in _cores(length, side):
        first, last = max(0, start - RAMP), min(length, stop + RAMP)
        total[first:last] += _ramp(start, stop, first, last, length)
    torch.testing.assert_close(total, torch.ones(length))


@pytest.mark.parametrize("name", ["denoise", "halved", "demosaic"])
def test_pieces_make_the_whole(name, photo):
    """As near to one another as they are to the truth would be no law: the difference is a small part of the error."""
    physics = OPERATORS[name]
    y = operators.degrade(photo, physics, generator())
    whole = restore(y, physics, samples=2)
    pieces = restore_large(y, physics, side=64, samples=2)
    assert pieces.pieces == 4 and pieces.mean.shape == whole.mean.shape
    assert psnr(pieces.mean, photo) > psnr(whole.mean, photo) - 0.1
    assert psnr(pieces.mean, whole.mean) > psnr(whole.mean, photo) + 8
    assert pieces.std.mean() == pytest.approx(float(whole.std.mean()), rel=0.3)


def test_the_laws_of_noise_go_with_the_pieces(photo):
    physics = operators.denoise(SIZE, SIGMA)
    physics.noise_model = PoissonNoise(gain=0.01)
    y = operators.degrade(photo, physics, generator())
    for law in (from_physics(physics), UnknownGaussian(physics)):
        found = restore_large(y, physics, likelihood=law, side=64, samples=2)
        assert psnr(found.mean, photo) > psnr(y, photo) + 5


def test_what_cannot_be_cut_is_refused(photo):
    physics = operators.compress(0.5, SIZE, SIGMA)
    with pytest.raises(OperatorError, match="piece by piece"):
        restore_large(physics.A(photo), physics)
    wrapped = Blur(torch.ones(1, 1, 5, 5) / 25, padding="circular", noise_model=GaussianNoise(SIGMA))
    with pytest.raises(OperatorError, match="piece by piece"):
        restore_large(photo, wrapped)
    with pytest.raises(OperatorError, match="at least 64"):
        restore_large(photo, OPERATORS["denoise"], side=32)


def test_a_cluster_restores_the_same_in_bounded_memory(photo):
    made, ahead = [], []

    def watched(work, items):
        for done, result in enumerate(spread(client)(work, (made.append(item) or item for item in items))):
            ahead.append(len(made) - done)
            yield result

    physics = OPERATORS["inpaint"]
    y = operators.degrade(photo, physics, generator())
    options = {"side": 64, "samples": 2, "steps": 2}
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        connect(cluster.scheduler_address) as client,
    ):
        found = restore_large(y, physics, by=watched, **options)
        with pytest.raises(OperatorError, match="samples"):
            restore_large(y, physics, by=watched, **options | {"samples": 1})
    assert len(made) >= found.pieces == 4 and max(ahead) == AHEAD
    expected = restore_large(y, physics, **options)
    torch.testing.assert_close((found.mean, found.std), (expected.mean, expected.std), atol=1e-4, rtol=0)
    with ThreadPoolExecutor(1) as pool:
        again = restore_large(y, physics, by=pool.map, **options)
    assert torch.equal(again.mean, expected.mean) and torch.equal(again.std, expected.std)


def test_pieces_carry_no_more_than_theirs():
    """What is sent to another process is of the piece's size, not of the whole measurement's."""
    sizes = []

    def weighed(work, items):
        for item in items:
            sizes.append(len(cloudpickle.dumps(item)))
            yield torch.zeros(1, 3, 1, 1), torch.zeros(1, 3, 1, 1)

    mask = torch.ones(1000, 1000, dtype=torch.bool)
    physics = operators.inpaint(mask, (1000, 1000), SIGMA)
    restore_large(torch.rand(1, 3, 1000, 1000), physics, side=64, by=weighed)
    assert len(sizes) == 15**2 and max(sizes) < 0.1 * 1000**2 * 4 * 4


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_large_pictures_are_restored_in_pieces_from_the_shell(mode, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bayesq.large.LARGE", 100**2)
    truth, y, x, std = (tmp_path / f"{name}.png" for name in ("truth", "y", "x", "std"))
    read_image(data_dir() / "coffee.png").crop((200, 80, 374, 230)).convert(mode).save(truth)
    assert main(["degrade", "denoise", str(truth), str(y), "--noise", "0.1", "--quiet"]) == 0
    argv = ["restore", "denoise", str(y), str(x), "--noise", "0.1", "--samples", "2"]
    assert main([*argv, "--std", str(std)]) == 0
    assert "pieces: 1" in capsys.readouterr().err
    before, after = (psnr(to_tensor(read_image(path)), to_tensor(read_image(truth))) for path in (y, x))
    assert after > before + 6 and read_image(x).mode == mode and read_image(std).size == (174, 150)
    for refused in (["--save-samples", str(tmp_path / "draws")], ["-q", "auto"]):
        assert main([*argv, *refused, "--quiet"]) == 1
        assert "megapixel" in capsys.readouterr().err


def test_a_cluster_restores_a_large_picture_from_the_shell(tmp_path, monkeypatch):
    monkeypatch.setattr("bayesq.large.LARGE", 60**2)
    y, x = tmp_path / "y.png", tmp_path / "x.png"
    read_image(data_dir() / "coffee.png").crop((200, 80, 264, 144)).save(y)
    argv = ["restore", "denoise", str(y), str(x), "--noise", "0.1", "--samples", "2", "--steps", "1", "--quiet"]
    assert main(argv) == 0
    alone = to_tensor(read_image(x))
    assert main([*argv, "--scheduler", "local"]) == 0
    assert (to_tensor(read_image(x)) - alone).abs().max() < 1.1 / 255
