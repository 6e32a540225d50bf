"""evenkeel.torch where PyTorch watches tensors from outside: forward-mode AD, vmap, functorch, make_fx, fake tensors. The right numbers, or
one sentence that names revert(). The oracle is PyTorch's own norm, and finite differences stand behind that."""
import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian

import evenkeel
import evenkeel.torch as ours
from test_torch import error, twins

# The same operations of PyTorch on both sides.
SAME = 1e-6


def pair(training, **arguments):
    a, b = twins("2d", 3, dtype=torch.float64, **arguments)
    return a.train(training), b.train(training)


X = torch.randn(5, 3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
DX = torch.randn(5, 3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("arguments", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}])
@pytest.mark.parametrize("grad", [True, False])
def test_forward_mode(training, arguments, grad):
    a, b = pair(training, **arguments)
    tangents = []
    for module in (a, b):
        with forward_ad.dual_level(), torch.set_grad_enabled(grad):
            y = module(forward_ad.make_dual(X, DX))
            tangents.append(forward_ad.unpack_dual(y).tangent)
    assert tangents[0].norm() > 0.1 and error(tangents[0], tangents[1]) < SAME
    for name, value in b.state_dict().items():
        assert error(a.state_dict()[name], value) < SAME, name


def test_forward_mode_is_the_difference_of_values():
    a = ours.BatchNorm2d(3, activation="silu").double()
    residual = torch.randn_like(X)
    with forward_ad.dual_level():
        y = a(forward_ad.make_dual(X, DX), residual=residual)
        tangent = forward_ad.unpack_dual(y).tangent
    h = 1e-5
    with torch.no_grad():
        difference = (a(X + h * DX, residual=residual) - a(X - h * DX, residual=residual)) / (2 * h)
    # The rest of the central difference is h^2 times a third derivative of order 1, and 1e-16 / h of rounding.
    assert error(tangent, difference) < 1e-8


def test_a_tangent_of_the_weight_alone():
    a, b = pair(True)
    tangents = []
    for module in (a, b):
        with forward_ad.dual_level(), torch.no_grad():
            weight = forward_ad.make_dual(module.weight.detach(), torch.ones(3, dtype=torch.float64))
            call = ours.batch_norm if module is a else nn.functional.batch_norm
            tangents.append(forward_ad.unpack_dual(call(X, None, None, weight, None, True)).tangent)
    assert tangents[0].norm() > 0.1 and error(*tangents) < SAME


def test_a_dual_level_without_tangents_is_ours():
    a, _ = pair(True)
    plain = copy.deepcopy(a)(X)
    with forward_ad.dual_level():
        assert torch.equal(a(X), plain)


def test_make_fx_records_pytorchs_operations():
    make_fx = pytest.importorskip("torch.fx.experimental.proxy_tensor").make_fx
    a, b = pair(False)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            graph = make_fx(lambda x: a(x))(X)
        other = torch.randn_like(X)
        assert error(graph(other), b(other)) < SAME
    both = make_fx(lambda x: torch.autograd.grad(a(x).square().sum(), x)[0])(X.clone().requires_grad_())
    x = torch.randn_like(X).requires_grad_()
    assert error(both(x), torch.autograd.grad(b(x).square().sum(), x)[0]) < SAME


def test_functorch_transforms():
    functorch = pytest.importorskip("functorch")
    a, b = pair(False)
    samples = torch.stack([X, DX])
    assert error(functorch.vmap(a)(samples), functorch.vmap(b)(samples)) < SAME
    found, expected = (functorch.grad(lambda x: module(x).square().sum())(X) for module in (a, b))
    assert error(found, expected) < SAME
    found, expected = (functorch.jvp(module, (X, ), (DX, ))[1] for module in (a, b))
    assert error(found, expected) < SAME


def test_fake_tensors_have_shapes():
    with pytest.importorskip("torch._subclasses").FakeTensorMode():
        y = ours.BatchNorm2d(3)(torch.empty(6, 3, 2, 2))
    assert type(y) is not torch.Tensor and y.shape == (6, 3, 2, 2)


@pytest.mark.parametrize("ask", [
    lambda norm, x: jacobian(norm, x, vectorize=True),
    lambda norm, x: torch.autograd.grad(norm(x), x, torch.ones((2, *x.shape), dtype=x.dtype), is_grads_batched=True),
])
def test_batches_of_gradients_name_the_way_out(ask):
    a, _ = pair(True)
    x = X.clone().requires_grad_()
    with pytest.raises(RuntimeError, match=r"inside of a transform of PyTorch.*evenkeel.torch.revert\(model\)"):
        ask(a, x)
    ask(ours.revert(a), x)


def test_forward_mode_over_a_gradient_names_the_way_out():
    a, _ = pair(True)
    x = X.clone().requires_grad_()
    y = a(x)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward-mode AD.*revert"):
        torch.autograd.grad(y, x, forward_ad.make_dual(torch.ones_like(y), DX))
