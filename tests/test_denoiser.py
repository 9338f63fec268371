"""The denoiser: any size and level of noise, errors that it foretells, and files."""

import pytest
import torch

from bayesq import zoo
from bayesq.denoiser import Denoiser, Sizes
from bayesq.errors import ModelError
from bayesq.io import read_image, to_tensor
from bayesq.metrics import psnr
from bayesq.networks.unet import Block
from bayesq.resources import data_dir

TINY = Sizes((8, 16), 1, 1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def photo():
    return to_tensor(read_image(data_dir() / "coffee.png").crop((200, 100, 360, 228)))


@pytest.fixture(scope="module")
def tiny():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Denoiser(TINY).eval().requires_grad_(False)


@pytest.mark.parametrize("size", [(1, 1), (3, 17), (8, 8), (33, 20)])
def test_pictures_of_any_size(tiny, size):
    x = torch.rand(2, 3, *size, generator=generator())
    mean, std = tiny.moments(x, 0.1)
    assert mean.shape == x.shape and std.shape == (2, 1, *size) and (std > 0).all()


def test_each_picture_has_a_level_of_its_own(tiny):
    x = torch.rand(3, 3, 16, 16, generator=generator())
    together = tiny(x, torch.tensor([0.01, 0.1, 0.4]))
    alone = [tiny(x[i : i + 1], sigma) for i, sigma in enumerate((0.01, 0.1, 0.4))]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (13, 22)])
def test_a_map_of_levels_is_taken_place_by_place(tiny, size):
    x = torch.rand(2, 3, *size, generator=generator())
    even = tiny.moments(x, torch.full((2, 1, *size), 0.1))
    assert all(torch.allclose(*pair, atol=2e-3) for pair in zip(even, tiny.moments(x, 0.1), strict=True))
    x = torch.rand(1, 3, 16, 160, generator=generator())
    halves = torch.cat([torch.full((1, 1, 16, 80), sigma) for sigma in (0.05, 0.3)], 3)
    found = tiny(x, halves)
    assert torch.allclose(found[..., :16], tiny(x, 0.05)[..., :16], atol=2e-3)
    assert torch.allclose(found[..., -16:], tiny(x, 0.3)[..., -16:], atol=2e-3)
    assert not torch.allclose(found[..., -16:], tiny(x, 0.05)[..., -16:], atol=2e-3)


def test_little_noise_leaves_the_picture(tiny):
    x = torch.rand(1, 3, 16, 16, generator=generator())
    mean, std = tiny.moments(x, 1e-6)
    assert (mean - x).abs().max() < 1e-4 and std.max() < 1e-4


def test_noise_that_is_all_of_the_doubt_is_white(photo):
    noisy = photo + 0.05 * torch.randn(photo.shape, generator=generator())
    for told in (0.05, torch.tensor([0.05])):
        assert torch.allclose(zoo.denoiser()(noisy, 0.05, told), zoo.denoiser()(noisy, 0.05), atol=1e-5)
    assert not torch.allclose(zoo.denoiser()(noisy, 0.05, 0.01), zoo.denoiser()(noisy, 0.05), atol=1e-2)
    assert zoo.denoiser()(noisy, 0.05, 0.0).isfinite().all()


@pytest.mark.parametrize(("sigma", "gain"), [(5 / 255, 3.0), (25 / 255, 8.0), (75 / 255, 11.0)])
def test_the_shipped_one_denoises_and_knows_its_error(photo, sigma, gain):
    noisy = photo + sigma * torch.randn(photo.shape, generator=generator())
    mean, std = zoo.denoiser().moments(noisy, sigma)
    assert psnr(mean, photo) > psnr(noisy, photo) + gain
    z = (mean - photo) / std
    assert 0.6 < z.square().mean().sqrt() < 1.5
    # where it foretells larger errors they are larger
    order = std.flatten().argsort()
    error = (mean - photo).square().mean(1).flatten()[order]
    assert error[len(error) // 2 :].mean() > 2 * error[: len(error) // 2].mean()


def test_no_block_of_the_shipped_one_is_idle(photo):
    """Units that never leave one side of their threshold add nothing, until a picture comes that wakes them."""
    denoiser, shares = zoo.denoiser(), {}
    blocks = {name: module for name, module in denoiser.network.named_modules() if isinstance(module, Block)}

    def listen(name):
        def hook(_, inputs, output):
            shares.setdefault(name, []).append((output - inputs[0]).norm() / inputs[0].norm())

        return hook

    hooks = [module.register_forward_hook(listen(name)) for name, module in blocks.items()]
    for sigma in (0.01, 0.05, 0.1, 0.3):
        denoiser(photo + sigma * torch.randn(photo.shape, generator=generator()), sigma)
    for hook in hooks:
        hook.remove()
    assert len(blocks) > 8 and all(max(share) > 0.02 for share in shares.values())


def test_the_shipped_one_keeps_to_the_range_of_pictures(photo):
    noise = torch.randn(photo.shape, generator=generator())
    for told in torch.logspace(-2.5, 0, 40):
        for x in (photo + told * noise, 1.4 * photo - 0.2, 1 - photo, photo.round()):
            assert (zoo.denoiser()(x, told) - x.clamp(0, 1)).abs().max() < 1 + 5 * told


def test_files_keep_the_weights(tiny, tmp_path):
    tiny.save(tmp_path / "a.safetensors")
    tiny.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    loaded, x = Denoiser.load(tmp_path / "a.safetensors"), torch.rand(1, 3, 16, 16, generator=generator())
    assert loaded.sizes == TINY and (loaded(x, 0.1) - tiny(x, 0.1)).abs().max() < 1e-3
    assert loaded.model_id.hex() == zoo.model_id(str(tmp_path / "a.safetensors"))
    assert zoo.kind(str(tmp_path / "a.safetensors")) == "denoiser"


def test_other_files_are_refused(tiny, small_codec_path, tmp_path):
    damaged = tmp_path / "weights.safetensors"
    tiny.save(damaged)
    damaged.write_bytes(damaged.read_bytes()[:-9])
    for path in (tmp_path / "none.safetensors", damaged, small_codec_path):
        with pytest.raises(ModelError, match=r"^[^\n]+$"):
            Denoiser.load(path)
    with pytest.raises(ModelError, match="not the weights of a bayesq codec"):
        zoo.load("denoiser")


def test_deepinv_takes_it(photo, tiny):
    from deepinv.optim import PnP

    prior = PnP(denoiser=tiny)
    assert prior.prox(photo, sigma_denoiser=0.1).shape == photo.shape
