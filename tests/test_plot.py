"""Figures hold what they promise, and leave pyplot alone."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from bayesq.bench.curves import Curve
from bayesq.operators import degrade, denoise
from bayesq.plot import draw_map, plot_contact_sheet, plot_rate_distortion, plot_restoration
from bayesq.restore import restore


@pytest.fixture(scope="module")
def case(tiny_codec):
    generator = torch.Generator().manual_seed(0)
    physics = denoise((24, 40), 0.1)
    y = degrade(torch.rand(2, 3, 24, 40, generator=generator), physics, generator)
    return y, restore(y, physics, codec=tiny_codec, steps=2, samples=4)


def pictures(figure):
    """The arrays of the pictures in a figure, by their titles."""
    return {axes.get_title("left"): axes.images[0].get_array() for axes in figure.axes if axes.images}


def drawn(figure):
    figure.savefig(os.devnull, format="png")
    return figure


def test_restoration_shows_mean_deviation_and_samples(case):
    y, restoration = case
    shown = pictures(drawn(restoration.plot(y)))
    samples = [f"Sample {i}" for i in (1, 2, 3)]
    assert list(shown) == ["Measurement", "Posterior mean", "Standard deviation", *samples]
    assert torch.equal(torch.tensor(shown["Posterior mean"]).permute(2, 0, 1), restoration.mean[0])
    expected = 255 * restoration.std[0].square().mean(0).sqrt()
    assert torch.allclose(torch.tensor(shown["Standard deviation"]), expected)


@pytest.mark.parametrize("measurement", [None, torch.rand(1, 2, 24, 40), torch.rand(1, 100)])
def test_measurement_that_is_no_picture_is_left_out(measurement, case):
    assert "Measurement" not in pictures(drawn(plot_restoration(case[1], measurement)))


def test_grey_pictures_are_shown_as_pictures(case):
    y, restoration = case
    grey = restoration.grey()
    shown = pictures(drawn(grey.plot(y.mean(1, keepdim=True))))
    for title, picture in (("Posterior mean", grey.mean), ("Sample 1", grey.samples[0]), ("Measurement", y)):
        expected = picture[0].mean(0).clamp(0, 1)
        assert torch.allclose(torch.tensor(shown[title]).permute(2, 0, 1), expected.expand(3, -1, -1), atol=1e-6)


def test_point_estimate_has_a_flat_map(case):
    flat = replace(case[1], std=torch.zeros_like(case[1].std))
    assert not pictures(drawn(plot_restoration(flat)))["Standard deviation"].any()


def test_sheet_takes_rows_of_any_length():
    picture = torch.rand(1, 3, 8, 20)
    shown = pictures(drawn(plot_contact_sheet([[("a", picture)], [("b", picture), ("c", picture[:, :1])]])))
    assert list(shown) == ["a", "b", "c"]
    assert shown["a"].shape == (8, 20, 3) and shown["c"].shape == (8, 20)


def test_rate_distortion_names_every_curve():
    def line(name, offset, last=1.0):
        return Curve(name, "", {"bpp": [0.2, 0.5, last], "psnr-rgb": [offset + 28.0, offset + 31.0, offset + 34.0]})

    rivals, published = [line("jpeg", 0), line("webp", 0.01)], [line("vtm", 3), line("short", 4, 0.7)]
    axes = drawn(plot_rate_distortion(line("ours", 2), rivals, published, "title")).axes[0]
    heights = {text.get_text(): text.xyann[1] for text in axes.texts}
    assert sorted(heights, key=heights.__getitem__) == ["jpeg", "webp", "ours", "vtm", "short"]
    assert heights["webp"] - heights["jpeg"] > 0.2
    bottom, top = axes.get_ylim()
    assert all(bottom <= height <= top for height in heights.values())
    solid = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert (len(solid), axes.get_title("left")) == (5, "title")


def test_a_drawn_map_is_dark_where_it_is_zero():
    values = torch.zeros(1, 1, 5, 7)
    values[..., 2, 3] = 4
    drawn, yellow = draw_map(values)
    assert drawn.size == (7, 5) and 0 < yellow <= 4
    brightness = np.asarray(drawn.convert("L")).astype(int)
    assert np.unravel_index(brightness.argmax(), (5, 7)) == (2, 3)
    assert len(np.unique(brightness)) == 2
    assert draw_map(torch.zeros(1, 1, 2, 2))[0].getcolors() == [(4, (68, 1, 84))]


def test_pyplot_is_left_alone():
    code = "import sys, bayesq.plot; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
