import numpy as np
import pytest
import torch
import torch.nn.functional as F
from deepinv.physics import Blur, GaussianNoise, PoissonNoise, Tomography
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bayesq import operators
from bayesq.errors import OperatorError
from bayesq.operators.start import STARTS

TABLE = 1.0 + torch.arange(64).view(8, 8)
SIZES = [(32, 40), (37, 29)]
OPERATORS = {
    "denoise": lambda size: operators.denoise(size, 0.1),
    "blur": lambda size: operators.blur("gaussian:1", size, 0.1),
    "blur by a large kernel": lambda size: operators.blur("motion:13,30", size, 0.1),
    "blur along rows": lambda size: operators.blur(np.ones((1, 5)), size, 0.1),
    "blur by one tap": lambda size: operators.blur([[1.0]], size, 0.1),
    "blur by even kernel": lambda size: operators.blur(np.arange(1.0, 9).reshape(2, 4), size, 0.1),
    "downsample 1": lambda size: operators.downsample(1, size, 0.1),
    "downsample 2": lambda size: operators.downsample(2, size, 0.1),
    "downsample 3": lambda size: operators.downsample(3, size, 0.1),
    "downsample 4": lambda size: operators.downsample(4, size, 0.1),
    "inpaint": lambda size: operators.inpaint(np.indices(size).sum(0) % 3 > 0, size, 0.1),
}
BLIND = {
    "demosaic": lambda size: operators.demosaic(size, 0.1),
    "colorize": lambda size: operators.colorize(size, 0.1),
    "compress": lambda size: operators.compress(0.3, size, 0.1),
    "grey JPEG": lambda size: operators.JPEG(size, [TABLE], [(1, 1)]),
    "JPEG 4:2:0": lambda size: operators.JPEG(size, [TABLE] * 3, [(1, 1), (2, 2), (2, 2)]),
    "JPEG 4:2:2": lambda size: operators.JPEG(size, [TABLE] * 3, [(1, 1), (1, 2), (1, 2)]),
}
"""Those that lose colours, or look at all pixels at once."""
ALL = {**OPERATORS, **BLIND}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def smooth_picture(height, width):
    low = torch.rand(2, 3, 3, 3, generator=generator())
    return F.interpolate(low, size=(height, width), mode="bilinear")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ALL)
class TestEveryOperator:
    def test_adjoint_is_the_transpose(self, name, size):
        physics = ALL[name](size)
        x = torch.rand(2, 3, *size, generator=generator())
        ax = physics.A(x)
        y = torch.rand(ax.shape, generator=generator(1))
        adjoint = physics.A_adjoint(y)
        assert adjoint.shape == x.shape
        torch.testing.assert_close((ax * y).sum(), (x * adjoint).sum(), rtol=1e-5, atol=0)

    def test_is_linear(self, name, size):
        physics = ALL[name](size)
        x, v = torch.rand(2, 1, 3, *size, generator=generator())
        torch.testing.assert_close(physics.A(2 * x - v), 2 * physics.A(x) - physics.A(v), rtol=1e-4, atol=1e-5)

    def test_gradient_is_the_adjoint(self, name, size):
        physics = ALL[name](size)
        x = torch.rand(1, 3, *size, generator=generator()).requires_grad_()
        y = physics.A(x)
        v = torch.rand(y.shape, generator=generator(1))
        (gradient,) = torch.autograd.grad((y * v).sum(), x)
        torch.testing.assert_close(gradient, physics.A_adjoint(v), rtol=1e-4, atol=1e-5)

    def test_start_is_a_picture_of_the_right_size(self, name, size):
        physics = ALL[name](size)
        x = smooth_picture(*size)
        start = operators.initial_image(physics.A(x), physics)
        assert start.shape == x.shape
        assert start.min() >= 0 and start.max() <= 1
        assert (physics.A(start) - physics.A(x)).square().sum() < 0.05 * physics.A(x - x.mean()).square().sum()
        if name not in ("colorize", "grey JPEG"):
            assert (start - x).square().mean() < 0.03 * x.var()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OPERATORS)
class TestEveryOperatorOnPixels:
    def test_grey_stays_grey_where_observed(self, name, size):
        physics = OPERATORS[name](size)
        y = physics.A(torch.full((1, 3, *size), 0.3))
        torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 0.3))

    def test_degrade_depends_on_the_generator_alone(self, name, size):
        physics = OPERATORS[name](size)
        x = smooth_picture(*size)
        draws = [operators.degrade(x, physics, generator(seed)) for seed in (0, 0, 1)]
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])
        source = generator(0)
        first, second = (operators.degrade(x, physics, source) for _ in range(2))
        assert torch.equal(first, draws[0]) and not torch.equal(first, second)
        assert physics.noise_model.rng is None
        noise = (draws[0] - physics.A(x))[draws[0] != 0]
        assert abs(noise.std() - 0.1) < 0.015


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_downsampling_is_keys_bicubic_reduction(factor):
    """Against the kernel's formula, at a pixel far from the border."""
    size = (48, 48)
    x = torch.rand(1, 3, *size, generator=generator())
    t = np.abs((np.arange(48) - (5 * factor + (factor - 1) / 2)) / factor)
    taps = np.where(t <= 1, 1.5 * t**3 - 2.5 * t**2 + 1, np.where(t < 2, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2, 0))
    taps = torch.from_numpy(taps / taps.sum()).float()
    y = operators.downsample(factor, size, 0).A(x)
    torch.testing.assert_close(y[..., 5, 5], taps @ (x @ taps).unsqueeze(-1).squeeze(-1).mT, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(60, 2), (7, 3), (3, 3), (2, 5)])
def test_downsampling_treats_narrow_pictures_like_flat_ones(size):
    physics, turned = operators.downsample(2, size, 0), operators.downsample(2, size[::-1], 0)
    x = torch.rand(2, 3, *size, generator=generator())
    y = physics.A(x)
    torch.testing.assert_close(y, turned.A(x.mT.contiguous()).mT)
    torch.testing.assert_close((y * y).sum(), (x * physics.A_adjoint(y)).sum())


def test_blur_convolves_and_does_not_correlate():
    kernel = np.arange(1.0, 10).reshape(3, 3)
    x = torch.zeros(1, 3, 9, 9)
    x[..., 4, 4] = 45
    y = operators.blur(kernel, (9, 9), 0).A(x)
    torch.testing.assert_close(y[0, 1, 3:6, 3:6], torch.from_numpy(kernel).float())


@pytest.mark.parametrize("kernel", [(3, 3), (13, 7), (2, 4), (4, 5)])
def test_blur_is_that_of_deepinv(kernel):
    taps, noise, x = torch.rand(1, 1, *kernel, generator=generator()), GaussianNoise(0.1), smooth_picture(37, 29)
    ours, theirs = operators.EdgeBlur(taps, noise), Blur(taps, padding="replicate", noise_model=noise)
    torch.testing.assert_close(ours.A(x), theirs.A(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.A_adjoint(x), theirs.A_adjoint(x), rtol=1e-5, atol=1e-5)
    other = taps.mT.contiguous()
    torch.testing.assert_close(ours.A(x, filter=other), theirs.A(x, filter=other), rtol=1e-5, atol=1e-5)


def test_start_for_a_valid_blur_extends_the_measurement():
    x = smooth_picture(40, 40)
    physics = Blur(operators.parse_kernel("motion:6,20"), padding="valid", noise_model=GaussianNoise(0.1))
    start = operators.initial_image(physics.A(x), physics)
    assert start.shape == x.shape
    assert (start - x).square().mean() < 0.03 * x.var()


@pytest.mark.parametrize(
    "physics", [operators.blur("gaussian:2", (40, 56), 0.01), operators.downsample(2, (40, 56), 0.01)]
)
def test_sharpening_solves_the_tikhonov_problem_and_gains(physics):
    """The gradient of its objective almost vanishes, and detail comes back."""
    x = torch.rand(1, 3, 40, 56, generator=generator()) * 0.2 + smooth_picture(40, 56) * 0.8
    y = operators.degrade(x, physics, generator())
    guess = physics.A_adjoint(y).clamp(0, 1)

    def slope(u):
        return (physics.A_adjoint(physics.A(u) - y) + 0.01 * (u - guess)).norm()

    sharp = operators.sharpen(guess, y, physics)
    assert slope(sharp) < 0.05 * slope(guess)
    assert (sharp - x).norm() < (guess - x).norm()


def test_start_for_any_other_operator_is_its_pseudo_inverse():
    physics = Tomography(30, 16, circle=False, normalize=True, noise_model=GaussianNoise(0.1))
    x = smooth_picture(16, 16)
    start = operators.initial_image(physics.A(x), physics)
    assert start.shape == x.shape
    assert (start - x).square().mean() < 0.05 * x.var()


def test_degrade_draws_other_noise_models_too():
    physics = operators.denoise((8, 8), 0)
    physics.set_noise_model(PoissonNoise(gain=0.25))
    y = operators.degrade(smooth_picture(8, 8), physics, generator())
    assert torch.equal(y * 4, (y * 4).round())


@pytest.mark.parametrize("keep", [0.5, 0.05])
def test_filling_keeps_known_pixels_and_interpolates_the_rest(keep):
    x = smooth_picture(33, 50)
    observed = (torch.rand(1, 1, 33, 50, generator=generator()) < keep).float()
    filled = operators.fill_holes(torch.where(observed > 0, x, torch.nan).nan_to_num(7), observed)
    assert torch.equal(filled * observed, x * observed)
    assert x.min() <= filled.min() and filled.max() <= x.max()
    assert (filled - x).square().mean() < (0.002 if keep == 0.5 else 0.1) * x.var()


@pytest.mark.parametrize(
    "text, value", [("25/255", 25 / 255), ("0.05", 0.05), (0.05, 0.05), ("0", 0.0), ("1e-3", 1e-3)]
)
def test_noise_is_read(text, value):
    assert operators.parse_noise(text) == value


@pytest.mark.parametrize("text", ["", "loud", "25", "-0.1", "1/0", "nan", "inf", "1/2/3", -1, float("nan")])
def test_bad_noise_is_refused(text):
    with pytest.raises(OperatorError, match=r"^the noise level[^\n]*$"):
        operators.parse_noise(text)


@settings(deadline=None)
@given(length=st.floats(0, 60), angle=st.floats(-360, 360))
def test_motion_kernels_are_centred_strokes(length, angle):
    taps = operators.parse_kernel(f"motion:{length},{angle}")[0, 0].double()
    height, width = taps.shape
    assert height % 2 == width % 2 == 1
    assert taps.min() >= 0
    assert abs(taps.sum() - 1) < 1e-5
    y, x = np.indices(taps.shape)
    y, x = -(y - height // 2), x - width // 2
    along = x * np.cos(np.radians(angle)) + y * np.sin(np.radians(angle))
    across = y * np.cos(np.radians(angle)) - x * np.sin(np.radians(angle))
    assert abs((taps * along).sum()) < 1e-3 and abs((taps * across).sum()) < 1e-3
    assert length**2 / 12 - 0.01 <= (taps * along**2).sum() <= length**2 / 12 + 0.26
    assert (taps * across**2).sum() <= 0.26


@settings(deadline=None)
@given(sigma=st.floats(0.05, 20))
def test_gaussian_kernels_are_odd_symmetric_and_of_unit_sum(sigma):
    taps = operators.parse_kernel(f"gaussian:{sigma}")
    assert taps.shape[-1] % 2 == 1
    assert torch.equal(taps, taps.mT) and torch.equal(taps, taps.flip(-1))
    assert abs(taps.sum() - 1) < 1e-5
    ratio = torch.log(taps[0, 0].double().max() / taps[0, 0, taps.shape[-2] // 2, taps.shape[-1] // 2 + 1])
    assert ratio == pytest.approx(1 / (2 * sigma**2), rel=1e-3) or sigma < 0.15


def test_kernel_files_hold_the_kernel(tmp_path):
    kernel = np.array([[0, 1, 2], [3, 4, 5]], dtype=np.uint8)
    np.save(tmp_path / "a.npy", kernel)
    np.savez(tmp_path / "one.npz", kernel=kernel)
    np.savez(tmp_path / "two.npz", k0=kernel.T, k1=kernel)
    Image.fromarray(kernel).save(tmp_path / "a.png")
    Image.fromarray(np.repeat(kernel[..., None], 3, axis=2)).save(tmp_path / "rgb.png")
    expected = torch.from_numpy(kernel / 15).float()[None, None]
    for source in ["a.npy", "one.npz", "two.npz:k1", "a.png", "rgb.png"]:
        torch.testing.assert_close(operators.parse_kernel(str(tmp_path / source)), expected)
    for array in [kernel, kernel.tolist(), torch.from_numpy(kernel), expected]:
        torch.testing.assert_close(operators.parse_kernel(array), expected)
    with pytest.raises(OperatorError, match="several arrays"):
        operators.parse_kernel(tmp_path / "two.npz")
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.png").write_text("not a picture")
    for source in ["pickle.npy", "text.png", "absent.npy", "two.npz:k9"]:
        with pytest.raises(OperatorError, match=r"^cannot read the kernel [^\n]*$"):
            operators.parse_kernel(str(tmp_path / source))


@pytest.mark.parametrize(
    "kernel",
    [
        *["gaussian:", "gaussian:0", "gaussian:-1", "gaussian:1,2", "gaussian:nan", "motion:3", "motion:-1,0"],
        *["motion:x,y", "box:3", "", [[0.0, 0.0]], [[1.0, -1.0]], [[np.nan, 1.0]], [[np.inf, 1.0]], [1.0, 2.0], 3.0],
        *[np.ones((2, 3, 3)), [[1.0], [1.0, 2.0]]],
    ],
)
def test_bad_kernels_are_refused(kernel):
    with pytest.raises(OperatorError, match=r"^[^\n]+$"):
        operators.parse_kernel(kernel)


def test_masks_are_read_from_files_and_arrays(tmp_path):
    mask = np.array([[1, 0, 1], [0, 0, 1]], dtype=np.uint8)
    np.savez(tmp_path / "m.npz", mask)
    Image.fromarray(mask * 250).save(tmp_path / "m.png")
    expected = torch.from_numpy(mask).float()[None, None]
    for source in [
        tmp_path / "m.npz",
        tmp_path / "m.png",
        mask,
        mask > 0,
        mask[None],
        np.stack([mask] * 3),
        mask[..., None],
    ]:
        assert torch.equal(operators.parse_mask(source, (2, 3)), expected)
    colours = np.stack([mask, mask, 1 - mask])
    for source in [colours, np.moveaxis(colours, 0, -1), torch.from_numpy(colours)[None]]:
        assert torch.equal(operators.parse_mask(source, (2, 3)), torch.from_numpy(colours).float()[None])


@pytest.mark.parametrize(
    "mask", [np.zeros((4, 5)), np.ones((5, 4)), np.ones((2, 4, 5)), np.full((4, 5), np.nan), "no.png"]
)
def test_bad_masks_are_refused(mask):
    with pytest.raises(OperatorError, match=r"^[^\n]+$"):
        operators.inpaint(mask, (4, 5), 0.1)


def test_operators_that_do_not_fit_are_refused():
    for build in [
        lambda: operators.blur("gaussian:3", (18, 50), 0.1),
        lambda: operators.downsample(0, (8, 8), 0.1),
        lambda: operators.downsample(9, (8, 20), 0.1),
        lambda: operators.downsample(2.5, (8, 8), 0.1),
        lambda: operators.denoise((8, 8), -0.1),
    ]:
        with pytest.raises(OperatorError, match=r"^[^\n]+$"):
            build()


def test_every_operator_has_a_start():
    settings = {"deblur": ("motion:3,0",), "superres": (2,), "inpaint": (np.eye(16),)}
    built = [build(*settings.get(name, ()), (16, 16), "5/255") for name, build in operators.TASKS.items()]
    for physics in [*built, operators.compress(0.25, (16, 16), 0.1)]:
        assert any(isinstance(physics, kinds) for kinds, _ in STARTS)


def test_a_sensor_sees_one_colour_a_pixel():
    x = torch.rand(1, 3, 6, 8, generator=generator())
    y = operators.demosaic((6, 8), 0).A(x)
    assert ((y != 0).sum(1) == 1).all()
    assert torch.equal(y[:, 1, 0, 1::2], x[:, 1, 0, 1::2]) and torch.equal(y[:, 2, ::2, ::2], x[:, 2, ::2, ::2])


def test_compressive_measurements_are_orthonormal():
    physics = operators.compress(0.25, (32, 40), 0.1, seed=3)
    y = torch.rand(1, 3, 16, 20, generator=generator())
    torch.testing.assert_close(physics.A(physics.A_adjoint(y)), y, rtol=1e-4, atol=1e-5)
    assert not torch.equal(physics.diagonals, operators.compress(0.25, (32, 40), 0.1, seed=4).diagonals)
    for share in (0.0, 1.1, -1.0):
        with pytest.raises(OperatorError):
            operators.compress(share, (32, 40), 0.1)


@pytest.mark.parametrize("shape", [(20, 64), (20, 64, 3), (1, 48, 20)])
def test_misfits_are_told_in_the_own_shape_of_the_mask(shape):
    with pytest.raises(OperatorError) as error:
        operators.parse_mask(np.ones(shape), (48, 64))
    assert str(error.value) == f"the mask, of shape {shape}, does not fit the picture, of shape (48, 64)"
