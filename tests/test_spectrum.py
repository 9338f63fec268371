"""Lanczos' quadrature against spectra that are known."""

import pytest
import torch
from deepinv.physics import LinearPhysics
from linear_gaussian import OPERATORS

from bayesq import operators
from bayesq.operators.spectrum import spectrum

SIZE = (32, 32)


@pytest.fixture(params=OPERATORS)
def physics(request):
    return OPERATORS[request.param](SIZE[0])


def test_moments_are_those_of_the_operator(physics):
    probe = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    nodes, weights = spectrum(physics, probe)
    assert nodes.min() >= 0 and weights.min() >= 0 and weights.sum() == pytest.approx(1)
    image, norm = probe, float(probe.square().sum())
    for power in range(1, 5):
        image = physics.A_adjoint(physics.A(image))
        assert float(weights @ nodes**power) == pytest.approx(float((image * probe).sum()) / norm, rel=1e-4)


def test_resolvents_are_those_of_a_known_spectrum():
    values = torch.linspace(0.01, 1, 3 * 32 * 32).view(1, 3, *SIZE)
    physics = LinearPhysics(A=lambda x: values * x, A_adjoint=lambda y: values * y)
    probe = torch.ones(1, 3, *SIZE)
    nodes, weights = spectrum(physics, probe)
    for damping in (0.05, 1.0):
        exact = (values.square() / (values.square() + damping)).mean()
        assert float(weights @ (nodes / (nodes + damping))) == pytest.approx(exact.item(), rel=1e-3)


def test_few_values_need_few_products():
    physics = operators.inpaint(torch.arange(32) % 2 + torch.zeros(SIZE), SIZE, 0.1)
    nodes, weights = spectrum(physics, torch.ones(1, 3, *SIZE))
    torch.testing.assert_close(nodes, torch.tensor([0.0, 1.0], dtype=torch.double), atol=1e-5, rtol=0)
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.5], dtype=torch.double), atol=1e-5, rtol=0)
