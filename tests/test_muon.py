"""The orthogonalised optimiser."""

import pytest
import torch

from bayesq.training.muon import Muon, is_kernel, orthogonalise


@pytest.mark.parametrize(("precision", "accuracy"), [(torch.float32, 1e-2), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("shape", [(8, 8), (6, 40), (40, 6), (1, 7)])
def test_orthogonalising_levels_singular_values_and_keeps_their_directions(shape, precision, accuracy):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    y = orthogonalise(x, precision)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    rotated = u.T @ y @ v.T
    assert ((rotated.diagonal() > 0.6) & (rotated.diagonal() < 1.3)).all()
    assert torch.allclose(rotated, rotated.diagonal().diag(), atol=accuracy)


def test_the_size_of_a_step_does_not_depend_on_that_of_the_gradient():
    steps = []
    for size in (1e-6, 1.0, 1e4):
        kernel = torch.nn.Parameter(torch.zeros(4, 3, 3, 3))
        kernel.grad = size * torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        Muon([kernel], lr=0.01).step()
        steps.append(kernel.detach())
    for step in steps[1:]:
        assert (step - steps[0]).norm() < 0.02 * steps[0].norm()


def test_it_solves_a_least_squares_problem():
    g = torch.Generator().manual_seed(0)
    wanted, x = torch.randn(5, 7, 1, 1, generator=g), torch.randn(64, 7, 1, 1, generator=g)
    kernel = torch.nn.Parameter(torch.zeros(5, 7, 1, 1))
    optimiser = Muon([kernel], lr=0.1)
    for step in range(200):
        optimiser.param_groups[0]["lr"] = 0.1 * (1 - step / 200)
        optimiser.zero_grad()
        torch.nn.functional.conv2d(x, kernel - wanted).square().mean().backward()
        optimiser.step()
    assert (kernel - wanted).square().mean() < 0.01 * wanted.square().mean()


def test_kernels_are_the_matrices_among_the_parameters():
    assert is_kernel(torch.nn.Parameter(torch.zeros(2, 3, 1, 1)))
    assert not is_kernel(torch.nn.Parameter(torch.zeros(9, 4)))
    assert not is_kernel(torch.nn.Parameter(torch.zeros(4, 1, 3, 3)))
