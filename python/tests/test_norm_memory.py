"""What evenkeel.batch_norm does with arrays that share memory, hide values behind a mask, or speak DLPack alone."""
import evenkeel
import numpy as np
import pytest

RNG = np.random.default_rng(5)
X = RNG.normal(2, 3, (8, 4, 3)).astype("f4")


class Speaker:
    """An array that is reached by DLPack and by nothing else."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, stream=None):
        return self.array.__dlpack__()

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


# --- DLPack ---


@pytest.mark.parametrize("x", [X, np.ascontiguousarray(X.transpose(0, 2, 1)).transpose(0, 2, 1), X[:, 1:3], X.astype("f2"), X.astype("f8")])
def test_what_speaks_dlpack_alone_gets_numpy_results(x):
    y = evenkeel.batch_norm(Speaker(x), training=True)
    expected = evenkeel.batch_norm(x, training=True)
    assert type(y) is np.ndarray and y.dtype == x.dtype and y.strides == expected.strides
    np.testing.assert_array_equal(y, expected)


def test_gradients_of_what_speaks_dlpack_alone():
    gamma, beta, residual = (RNG.random(shape).astype("f4") for shape in ((4, ), (4, ), X.shape))
    found, expected = [], []
    for wrap, results in ((Speaker, found), (np.asarray, expected)):
        out = residual.copy()
        y, saved = evenkeel.batch_norm_forward(wrap(X), wrap(gamma), wrap(beta), residual=wrap(out), out=out, activation="silu")
        results += [y, *evenkeel.batch_norm_backward(wrap(X), saved)]
    for a, b in zip(found, expected):
        assert type(a) is np.ndarray
        np.testing.assert_array_equal(a, b)


def test_a_type_that_numpy_has_not_is_named():
    torch = pytest.importorskip("torch")
    with pytest.raises(evenkeel.UsageError, match="bf16 is given by DLPack alone, and NumPy.*torch.from_dlpack"):
        evenkeel.batch_norm(Speaker(torch.randn(4, 3).bfloat16()), training=True)


# --- masks ---


@pytest.mark.parametrize("call", [
    lambda m: evenkeel.moments(m), lambda m: evenkeel.batch_norm(m, training=True), lambda m: evenkeel.batch_norm_forward(m),
    lambda m: evenkeel.Network("mlp").fit(m.reshape(8, 12), np.arange(8) % 2)
])
def test_a_mask_is_not_lost(call):
    with pytest.raises(evenkeel.UsageError, match=r"x is a masked array, and its mask would be lost; give x.data, and weights"):
        call(np.ma.array(X, mask=X > 3))


def test_a_mask_of_weights_is_not_lost():
    with pytest.raises(evenkeel.UsageError, match=r"weight: found a masked array.*weight.filled\(0\)"):
        evenkeel.Network("mlp").fit(X.reshape(8, 12), np.arange(8) % 2, weight=np.ma.array(np.ones(8), mask=np.arange(8) < 2))
    with pytest.raises(evenkeel.UsageError, match="weights is a masked array"):
        evenkeel.batch_norm(X, training=True, weights=np.ma.array(np.ones(8), mask=np.arange(8) < 2))


@pytest.mark.parametrize("mask", [np.ma.nomask, np.zeros(X.shape, bool)])
def test_a_mask_of_nothing_is_none(mask):
    assert evenkeel.moments(np.ma.array(X, mask=mask)) == evenkeel.moments(X)


def test_moments_are_equal_where_all_values_are():
    a = evenkeel.moments(X)
    assert a == evenkeel.moments(X) and a != evenkeel.moments(X + 1) and a != evenkeel.moments(X[:, :2]) and a != 3


# --- overlaps ---


def statistics():
    return np.zeros(4, "f4"), np.ones(4, "f4")


def test_running_statistics_between_each_other_are_apart():
    table = np.stack(statistics(), 1)
    mean, var = statistics()
    evenkeel.batch_norm(X, None, None, table[:, 0], table[:, 1], training=True)
    evenkeel.batch_norm(X, None, None, mean, var, training=True)
    np.testing.assert_array_equal(table, np.stack((mean, var), 1))
    table = np.stack(statistics(), 1)
    evenkeel.batch_norm(X, None, None, table[::-1, 0], table[:, 1], training=True)
    np.testing.assert_array_equal(table, np.stack((mean[::-1], var), 1))
    buffer = np.zeros((8, 6, 3), "f4")  # statistics in the gaps between examples
    buffer[:, :4] = X
    buffer[:4, 4, 0], buffer[:4, 5, 0] = statistics()
    evenkeel.batch_norm(buffer[:, :4], None, None, buffer[:4, 4, 0], buffer[:4, 5, 0], training=True)
    np.testing.assert_array_equal(buffer[:4, 4:, 0], np.stack((mean, var), 1))
    np.testing.assert_array_equal(buffer[:, :4], X)


def overlapping():
    mean, var = statistics()
    x = X.copy()
    table = np.zeros(7, "f4")
    yield (x, var, None, mean, var), {}, "gamma overlaps the running statistics"
    yield (x, None, mean, mean, var), {}, "beta overlaps the running statistics"
    yield (x, None, None, x[0, :, 0], var), {}, "x overlaps the running statistics"
    yield (x, None, None, mean, x[-1].reshape(-1)[-4:]), {}, "x overlaps the running statistics"
    yield (X, None, None, mean, x[1, :, 2]), {"residual": x}, "residual overlaps the running statistics"
    yield (X, None, None, mean, x[1, :, 2]), {"out": x}, "out overlaps the running statistics"
    yield (x, None, None, mean, mean[::-1]), {}, "running_mean and running_var share memory"
    yield (x, None, None, table[:4], table[3:]), {}, "running_mean and running_var share memory"
    yield (x, None, None, table[0::2], table[6:2:-1]), {}, "running_mean and running_var share memory"  # 0 2 4 6, 6 5 4 3


@pytest.mark.parametrize("case", range(9))
def test_running_statistics_that_are_an_input_are_refused(case):
    arguments, named, message = list(overlapping())[case]
    before = [None if a is None else a.copy() for a in arguments]
    with pytest.raises(evenkeel.UsageError, match=message):
        evenkeel.batch_norm(*arguments, training=True, **named)
    for array, old in zip(arguments, before):
        assert array is None or np.array_equal(array, old)


# --- autograd ---


def test_autograd_sees_what_was_written():
    torch = pytest.importorskip("torch")
    x, out, weight = torch.randn(8, 4), torch.randn(8, 4), torch.randn(8, 4, requires_grad=True)
    mean, var, count = torch.zeros(4), torch.ones(4), torch.tensor(0)
    loss = (weight * out).sum()  # keeps out for the gradient of weight
    evenkeel.batch_norm(x, None, None, mean, var, training=True, out=out, num_batches_tracked=count)
    assert [t._version for t in (out, mean, var, count, x)] == [1, 1, 1, 1, 0]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    evenkeel.batch_norm(x, None, None, mean, var, out=out)
    assert (out._version, mean._version) == (2, 1)
    _, saved = evenkeel.batch_norm_forward(x, out=out)
    dx = torch.empty(8, 4)
    evenkeel.batch_norm_backward(x, saved, out=dx)
    assert (out._version, dx._version) == (3, 1)
    with torch.inference_mode():
        evenkeel.batch_norm(x, training=True, out=torch.empty(8, 4))
