"""Pretrained denoisers, with weights made up for the purpose."""

import numpy as np
import pytest
import torch

from bayesq import operators
from bayesq.bench.denoisers import DnCNN, FFDNet
from bayesq.bench.rivals import SAMPLES, pretrained
from bayesq.errors import ModelError


def save(path, *weights):
    """A chain of convolutions of one tap, given as matrices, without biases."""
    arrays = {}
    for i, matrix in enumerate(weights):
        taps = np.zeros((*matrix.shape, 3, 3), np.float32)
        taps[:, :, 1, 1] = matrix
        arrays |= {f"{i}.w": taps, f"{i}.b": np.zeros(len(matrix), np.float32)}
    np.savez(path, **arrays)
    return path


@pytest.fixture
def picture():
    return torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))


def test_ffdnet_puts_pixels_back_where_they_were(picture, tmp_path):
    net = FFDNet(save(tmp_path / "n.npz", np.eye(12, 13)))
    torch.testing.assert_close(net(picture, 0.1), picture)
    second = np.zeros((12, 13))
    second[1, 1] = 1  # of red, the pixel below
    shown = FFDNet(save(tmp_path / "n.npz", second))(picture, 0.1)
    assert torch.equal(shown[:, 0, 1::2, ::2], picture[:, 0, 1::2, ::2])
    assert (shown != 0).sum() == shown[:, 0, 1::2, ::2].numel()


def test_ffdnet_is_told_the_level(picture, tmp_path):
    level = np.zeros((12, 13))
    level[:, 12] = 1
    net = FFDNet(save(tmp_path / "n.npz", level))
    assert torch.equal(net(picture, torch.tensor([0.1, 0.2])).amax((1, 2, 3)), torch.tensor([0.1, 0.2]))


def test_dncnn_subtracts_rectified_layers(picture, tmp_path):
    net = DnCNN(save(tmp_path / "n.npz", -np.eye(3), 0.5 * np.eye(3)))
    torch.testing.assert_close(net(picture - 0.5, 0.1), picture - 0.5 - 0.5 * (0.5 - picture).clamp_min(0))


@pytest.fixture
def idle(tmp_path):
    """Methods with denoisers that change nothing, which leaves the data term alone."""
    save(tmp_path / "ffdnet_color.npz", np.eye(12, 13))
    for level in (25, 50):
        save(tmp_path / f"dncnn_color{level}.npz", np.zeros((3, 3)))
    return pretrained(tmp_path)


def test_chains_spread_about_what_is_observed(idle):
    """By the noise's deviation, and somewhat more for steps as long as these."""
    (rival,) = (rival for rival in idle if "ULA" in rival.name)
    physics = operators.TASKS["denoise"]((16, 16), 0.02)
    y = 0.2 + 0.6 * torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    draws = rival.at(rival.grid[0])(y, physics)
    assert draws.shape == (SAMPLES, *y.shape)
    assert 0.02 < draws.std(0).mean() < 0.03
    assert (draws.mean(0) - y).abs().mean() < 0.006


def test_plug_and_play_restores(idle):
    """What is observed comes back."""
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for rival in (rival for rival in idle if "ULA" not in rival.name):
        for task in rival.tasks:
            settings = {"deblur": ("gaussian:0.3",), "superres": (2,), "inpaint": (torch.ones(16, 16),)}
            physics = operators.TASKS[task](*settings.get(task, ()), (16, 16), 0.02)
            y = physics.A(x)
            restored = rival.at(1.0)(y, physics)
            assert restored.shape == x.shape
            torch.testing.assert_close(physics.A(restored), y, rtol=0, atol=0.03)


def test_other_weights_are_refused(tmp_path):
    for path in (tmp_path / "none.npz", save(tmp_path / "n.npz", np.eye(3))):
        with pytest.raises(ModelError, match=r"^[^\n]+$"):
            FFDNet(path)
