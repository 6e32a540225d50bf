"""What evenkeel.torch does with tensors that are not what lies in their memory, and with arguments that cannot be."""
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F

import evenkeel
import evenkeel.torch as ours
from test_torch import FP32, error, step, twins


def negative(shape):
    """A tensor whose sign is in PyTorch's negative bit, and not in its memory."""
    x = torch.randn(shape)._neg_view()
    assert x.is_neg()
    return x


@pytest.mark.parametrize("make", [
    negative, lambda shape: torch.randn(shape, dtype=torch.cfloat).conj().imag,
    lambda shape: negative(shape).contiguous(memory_format=torch.channels_last)
])
def test_the_negative_bit_of_x_and_dy(make):
    torch.manual_seed(9)
    a, b = twins("2d", 4)
    x, dy, plain = make((6, 4, 3, 5)), make((6, 4, 3, 5)), torch.randn(6, 4, 3, 5)
    for given in ((x, dy), (x, plain), (plain, dy)):
        for found, expected in zip(step(a, *given), step(b, *given)):
            assert error(found, expected) < FP32


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_the_negative_bit_of_weight_bias_and_residual(activation):
    torch.manual_seed(9)
    x, residual = torch.randn(6, 4), negative((6, 4))
    given = {"weight": negative(4), "bias": negative(4)}
    y = ours.batch_norm(x, training=True, activation=activation, residual=residual, **given)
    expected = F.batch_norm(x, None, None, training=True, **given) + residual
    assert error(y, F.relu(expected) if activation == "relu" else expected) < FP32


def test_running_statistics_with_the_negative_bit_are_refused():
    mean, var = torch.zeros(4)._neg_view(), torch.ones(4)
    with pytest.raises(evenkeel.UsageError, match=r"running_mean.*negative bit.*resolve_neg"):
        ours.batch_norm(torch.randn(6, 4), mean, var, training=True)


def test_a_counter_with_the_negative_bit_counts():
    a = ours.BatchNorm1d(4)
    a.num_batches_tracked = torch.tensor(-3)._neg_view()
    a(torch.randn(6, 4))
    assert a.num_batches_tracked == 4


def test_evenkeel_batch_norm_and_the_negative_bit():
    torch.manual_seed(9)
    x, gamma, beta, residual, dy = negative((6, 4)), negative(4), negative(4), negative((6, 4)), negative((6, 4))
    plain = [t.resolve_neg() for t in (x, gamma, beta)]
    y, saved = evenkeel.batch_norm_forward(x, gamma, beta, residual=residual, weights=(-torch.ones(6))._neg_view())
    other, plain_saved = evenkeel.batch_norm_forward(*plain, residual=residual.resolve_neg(), weights=torch.ones(6))
    assert torch.equal(y, other)
    for found, expected in zip(evenkeel.batch_norm_backward(dy, saved), evenkeel.batch_norm_backward(dy.resolve_neg(), plain_saved)):
        assert torch.equal(found, expected)
    assert torch.equal(evenkeel.batch_norm(x, gamma, beta, training=True), evenkeel.batch_norm(*plain, training=True))
    assert torch.equal(evenkeel.moments(x).mean, evenkeel.moments(plain[0]).mean)
    with pytest.raises(evenkeel.UsageError, match=r"out is the negative.*give out.resolve_neg\(\)"):
        evenkeel.batch_norm(x, training=True, out=negative((6, 4)))
    with pytest.raises(evenkeel.UsageError, match=r"^x is the negative"):
        evenkeel._core.describe_array(x)


STATISTICS = {"running_mean": torch.zeros(3), "running_var": torch.ones(3), "training": True}


@pytest.mark.parametrize("arguments, message", [
    ({"momentum": None}, "momentum is None.*expected a number from 0 to 1"),
    ({"momentum": -0.5}, "momentum is -0.5; expected a number from 0 to 1"),
    ({"momentum": 1.5}, "momentum is 1.5"),
    ({"momentum": float("nan")}, "momentum is nan"),
    ({"momentum": "much"}, "momentum is 'much'; expected a number"),
    ({"eps": None}, "eps is None; expected a number"),
    ({"slope": "steep", "activation": "leaky_relu"}, "slope is 'steep'; expected a number"),
    ({"activation": None}, "activation is None; expected a name"),
    ({"activation": ["relu"]}, r"activation is \['relu'\]; expected a name"),
    ({"activation": "rleu"}, "did you mean relu"),
    ({"on_nonfinite": None}, "on_nonfinite is None; expected stop, skip or update"),
    ({"on_nonfinite": []}, r"on_nonfinite is \[\]; expected stop, skip or update"),
])
def test_bad_arguments_get_one_sentence(arguments, message):
    statistics = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in STATISTICS.items()}
    with pytest.raises(evenkeel.UsageError, match=message) as raised:
        ours.batch_norm(torch.randn(5, 3), **statistics, **arguments)
    assert "\n" not in str(raised.value)
    assert torch.equal(statistics["running_mean"], torch.zeros(3))


@pytest.mark.parametrize("name, value, message", [
    ("momentum", -0.5, "momentum is -0.5; expected a number from 0 to 1"),
    ("momentum", "much", "momentum is 'much'; expected a number"),
    ("on_nonfinite", "foo", "on_nonfinite is 'foo'; expected stop, skip or update"),
    ("activation", None, "activation is None; expected a name"),
    ("slope", None, "slope is None; expected a number"),
    ("eps", None, "eps is None; expected a number"),
])
def test_bad_attributes_of_a_module_get_one_sentence(name, value, message):
    with pytest.raises(evenkeel.UsageError, match=message):
        ours.BatchNorm1d(3, **{name: value})
    a = ours.BatchNorm1d(3)
    setattr(a, name, value)
    with pytest.raises(evenkeel.UsageError, match=message) as raised:
        a(torch.randn(5, 3))
    assert "\n" not in str(raised.value) and a.num_batches_tracked == 0


def test_the_kernels_refuse_an_average_without_a_count():
    x, y, mean, var = torch.randn(5, 3), torch.empty(5, 3), torch.zeros(3), torch.ones(3)
    at = [t.data_ptr() for t in (x, y, mean, var)]
    for weight, message in [(None, "expected num_batches_tracked"), (-0.5, "weight of a new batch is -0.5")]:
        with pytest.raises(evenkeel.UsageError, match=message):
            evenkeel._core.forward_at(at[0], 0, at[1], 0, 5, 3, 1, 0, 0, 0, 0, 0, at[2], at[3], 0, 0, True, weight, 1e-5, 0, 0.01, 2, 1, False)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("dtype, count", [(torch.int64, -1), (torch.int64, 2**63 - 1), (torch.float64, -1.0), (torch.int32, -2)])
def test_an_impossible_number_of_batches_is_refused(dtype, count, momentum):
    norm = ours.BatchNorm1d(3, momentum=momentum)
    norm.num_batches_tracked = torch.tensor(count, dtype=dtype)
    with pytest.raises(evenkeel.UsageError, match=rf"num_batches_tracked is {count}; expected .*0 to 2\^62$"):
        norm(torch.randn(4, 3))
    assert norm.num_batches_tracked == count and norm.running_mean.eq(0).all() and norm.running_var.eq(1).all()
