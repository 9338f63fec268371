"""The decoder's errors, and inference that allows for them."""

from dataclasses import replace

import pytest
import torch
from linear_gaussian import OPERATORS, SIGMA, STEP, VARIANCE, grey, measure, posterior, prior_draws, run
from torch import Tensor

from bayesq.errors import ModelError
from bayesq.inference import VBLExz
from bayesq.inference.xz import FILE, ErrorTable, activity, of_model
from bayesq.likelihoods import DecoderError
from bayesq.networks.rate import decoder_error
from bayesq.resources import data_dir
from bayesq.training.data import Crops

GAMMA = 0.04
CONSTANT = ErrorTable("", (0, 255), (0.0, 1.0), ((GAMMA, GAMMA), (GAMMA, GAMMA)))


def test_finds_the_best_cells_and_factors():
    """In white noise every value is on its own, and each part of the product is as wide as given the other."""
    physics = OPERATORS["denoise"]()
    y = measure(physics, prior_draws(count=4))
    algorithm = VBLExz(posterior(physics, y), 400, errors=CONSTANT)
    state, trace, generator = run(algorithm, grey(4), 400)
    assert float(state.factor.detach().log().mean().exp()) == pytest.approx((1 + GAMMA**2 / SIGMA**2) ** -0.5, rel=0.03)
    (cell,) = algorithm.cells(state)
    std = (STEP**2 / SIGMA**2 + 1 / VARIANCE) ** -0.5
    assert (cell.width.detach() / 12**0.5 / std).log().mean().exp() == pytest.approx(1, abs=0.05)
    assert trace[-1].elbo > trace[0].elbo
    spread = algorithm.sample(state, 200, generator).var(0).mean()
    pixel = (STEP * std) ** 2 + GAMMA**2 / (1 + GAMMA**2 / SIGMA**2)
    assert spread == pytest.approx(pixel, rel=0.06)


def test_pixels_are_weighed_without_the_decoders_error():
    physics = OPERATORS["deblur"]()
    target = posterior(physics, measure(physics, prior_draws()))
    forgiving = replace(target, likelihood=DecoderError(target.likelihood, 0.1))
    x = grey()
    assert torch.equal(target.log_likelihood_of_picture(x), forgiving.log_likelihood_of_picture(x))
    assert forgiving.likelihood.log_prob(target.y, x) > target.log_likelihood_of_picture(x)


def test_table_interpolates_between_its_ticks():
    table = ErrorTable("", (0, 100, 255), (0.0, 0.1), ((0.3, 0.5), (0.1, 0.2), (0.1, 0.2)))
    flat, rough = torch.full((1, 3, 16, 16), 0.5), torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert activity(flat).eq(0).all() and activity(rough).min() > 0.1

    def values(x: Tensor, level: int) -> Tensor:
        return table(x, torch.tensor([level])).flatten()

    for level, low, high in ((0, 0.3, 0.5), (50, 0.2, 0.35), (100, 0.1, 0.2), (255, 0.1, 0.2)):
        torch.testing.assert_close(values(flat, level), torch.full((256,), low))
        torch.testing.assert_close(values(rough, level), torch.full((256,), high))


@pytest.fixture(scope="module")
def fitted(tiny_codec) -> tuple[ErrorTable, Tensor]:
    x = Crops(sorted(data_dir().glob("*.png"))).draw(4, 64, torch.Generator().manual_seed(1))
    return ErrorTable.fit(tiny_codec, [x[:2], x[2:]], torch.Generator().manual_seed(0)), x


def test_fitted_errors_are_those_of_the_decoder(tiny_codec, fitted):
    table, x = fitted
    level = torch.full((len(x),), 128)
    decoded = tiny_codec.reconstruct(x, 128)[0]
    expected = (x - decoded).square().mean().sqrt()
    assert table(decoded, level).square().mean().sqrt() == pytest.approx(float(expected), rel=0.25)
    rows = torch.tensor(table.deviations)
    assert (rows > 0).all() and rows[0].mean() > rows[-1].mean()
    assert rows[2, -2] > rows[2, 0]


def test_table_is_kept_beside_the_model(tiny_codec, fitted, tmp_path):
    codec = tiny_codec.exported()
    codec.folder, codec.model_id = tmp_path, bytes(range(8))
    theory = of_model(codec)
    assert theory(torch.zeros(1, 3, 8, 8), torch.tensor([128])).mean() == pytest.approx(decoder_error(128))
    table = replace(fitted[0], model=codec.model_id.hex())
    table.save(tmp_path / FILE)
    assert of_model(codec) == table
    replace(table, model="0" * 16).save(tmp_path / FILE)
    assert of_model(codec) == theory


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"model": "", "levels": [0], "activities": [0], "deviations": [[1]]}']
)
def test_damaged_tables_are_refused_in_a_line(text, tmp_path):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ModelError) as caught:
        ErrorTable.load(tmp_path / FILE)
    assert "\n" not in str(caught.value)
