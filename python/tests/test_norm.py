"""evenkeel.batch_norm and its gradient against the formulas in fp64."""
import threading
import time

import pytest

numpy = pytest.importorskip("numpy")

import evenkeel
from norm_oracle import Oracle, norm_error

SHAPES = [(7, 3), (5, 4, 6), (4, 8, 10, 10), (4, 1, 9, 9), (4, 9, 1, 1), (2, 3, 3, 4, 5)]
ACTIVATIONS = ["identity", "relu", "leaky_relu", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu"]
# Norm-wise, of y and of gradients: some roundings of the type (docs/numerics.md). fp16 is rounded once, from fp32.
TOLERANCE = {"float32": 1e-6, "float64": 1e-13, "float16": 1e-3}


def numbers(shape, seed=0, dtype="float32"):
    return numpy.random.default_rng(seed).normal(0.3, 1.5, shape).astype(dtype)


def channels_last(x):
    """The same values, channels inmost in memory."""
    return numpy.moveaxis(numpy.ascontiguousarray(numpy.moveaxis(x, 1, -1)), -1, 1)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_training_forward_and_backward(shape, last, dtype):
    parameters = "float64" if dtype == "float64" else "float32"
    x, dy = numbers(shape, 1, dtype), numbers(shape, 2, dtype)
    gamma, beta = numbers(shape[1], 3, parameters), numbers(shape[1], 4, parameters)
    if last:
        x, dy = channels_last(x), channels_last(dy)
    y, saved = evenkeel.batch_norm_forward(x, gamma, beta)
    dx, dgamma, dbeta, dresidual = evenkeel.batch_norm_backward(dy, saved)
    assert y.dtype == x.dtype and dx.dtype == x.dtype and dgamma.dtype == gamma.dtype and dresidual is None
    assert y.strides == x.strides or x.size == x.shape[0] * x.shape[1]
    expected = Oracle(x, gamma, beta)
    tolerance = TOLERANCE[dtype]
    assert norm_error(y, expected.y) < tolerance
    for found, right in zip((dx, dgamma, dbeta), expected.backward(dy)):
        assert norm_error(found, right) < tolerance
    assert norm_error(saved.mean, expected.mean[:, 0]) < 1e-6 and norm_error(saved.rstd, expected.rstd[:, 0]) < 1e-6


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_and_residuals(activation, training):
    shape = (4, 3, 5, 6)
    x, dy, residual = numbers(shape, 1), numbers(shape, 2), numbers(shape, 3)
    gamma, beta = numbers(3, 4), numbers(3, 5)
    mean, var = numbers(3, 6), numpy.abs(numbers(3, 7)) + numpy.float32(0.1)
    given = {} if training else {"mean": mean, "var": var}
    y, saved = evenkeel.batch_norm_forward(x, gamma, beta, None if training else mean, None if training else var, training=training,
                                           activation=activation, slope=0.2, residual=residual)
    assert (saved.residual is None) == (activation in ("identity", "relu", "leaky_relu"))  # a mask of bits stands for it
    expected = Oracle(x, gamma, beta, activation=activation, slope=0.2, residual=residual, **given)
    assert norm_error(y, expected.y) < 1e-6
    for found, right in zip(evenkeel.batch_norm_backward(dy, saved), expected.backward(dy)):
        assert norm_error(found, right) < 2e-6
    assert numpy.array_equal(
        y, evenkeel.batch_norm(x, gamma, beta, None if training else mean, None if training else var, training=training,
                               activation=activation, slope=0.2, residual=residual))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("weighted", ["none", "examples", "positions"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_residual_that_is_overwritten_has_its_gradient(activation, weighted, last):
    shape = (5, 3, 4)
    x, dy, residual = numbers(shape, 1), numbers(shape, 2), numbers(shape, 3)
    gamma, beta = numbers(3, 4), numbers(3, 5)
    if last:
        x, dy, residual = channels_last(x), channels_last(dy), channels_last(residual)
    w = {"none": None, "examples": numpy.array([2, 1, 1, 0, 3]), "positions": numpy.arange(20).reshape(5, 4) % 3}[weighted]
    out = residual.copy(order="K")
    y, saved = evenkeel.batch_norm_forward(x, gamma, beta, activation=activation, slope=0.2, residual=out, out=out, weights=w)
    masked = activation in ("relu", "leaky_relu") and weighted != "positions"
    assert (saved.residual is None) == (activation == "identity" or masked)  # else a copy: no more is kept than is needed
    expected = Oracle(x, gamma, beta, activation=activation, slope=0.2, residual=residual, weights=w)
    assert y is out and norm_error(y, expected.y) < 1e-6
    for found, right in zip(evenkeel.batch_norm_backward(dy, saved), expected.backward(dy)):
        assert norm_error(found, right) < 2e-6  # that of test_activations_and_residuals


def test_a_tensor_of_a_larger_one_that_is_overwritten_has_its_gradient():
    torch = pytest.importorskip("torch")
    shape = (4, 3, 5, 6)
    x, dy, residual = (torch.from_numpy(numbers(shape, seed)).to(memory_format=torch.channels_last) for seed in (1, 2, 3))
    out = torch.zeros((8,) + shape[1:]).to(memory_format=torch.channels_last)[::2]  # gaps between the examples
    out.copy_(residual)
    y, saved = evenkeel.batch_norm_forward(x, activation="silu", residual=out, out=out)
    expected = Oracle(x, activation="silu", residual=residual)
    assert y is out and norm_error(y, expected.y) < 1e-6
    for found, right in zip(evenkeel.batch_norm_backward(dy, saved), expected.backward(dy)):
        assert found is None or norm_error(found, right) < 2e-6


def test_a_residual_is_kept_as_it_is_where_nothing_overwrites_it():
    residual = numbers((5, 3, 4), 3)
    _, saved = evenkeel.batch_norm_forward(numbers((5, 3, 4), 1), activation="silu", residual=residual)
    assert saved.residual is residual


def test_running_statistics_are_those_of_pytorch():
    x = numbers((6, 3, 4), 1)
    mean, var, counter = numpy.zeros(3, "float32"), numpy.ones(3, "float32"), numpy.zeros((), "int64")
    expected = Oracle(x)
    m = 24
    evenkeel.batch_norm(x, running_mean=mean, running_var=var, training=True, new_batch_weight=0.25, num_batches_tracked=counter)
    assert norm_error(mean, 0.25 * expected.mean[:, 0]) < 1e-6
    assert norm_error(var, 0.75 + 0.25 * expected.var[:, 0] * m / (m - 1)) < 1e-6
    assert counter == 1
    before = mean.copy(), var.copy()
    evenkeel.batch_norm(x, running_mean=mean, running_var=var)
    assert numpy.array_equal(mean, before[0]) and numpy.array_equal(var, before[1])


def test_the_plain_average_of_batches():
    mean, var, counter = numpy.zeros(3), numpy.ones(3), numpy.zeros(1, "int64")
    batches = [numbers((5, 3), i) for i in range(4)]
    for x in batches:
        evenkeel.batch_norm(x, running_mean=mean, running_var=var, training=True, new_batch_weight=None, num_batches_tracked=counter)
    assert counter[0] == 4
    assert norm_error(mean, numpy.mean([x.mean(0, dtype="float64") for x in batches], 0)) < 1e-6
    assert norm_error(var, numpy.mean([x.var(0, ddof=1, dtype="float64") for x in batches], 0)) < 1e-6


def test_a_batch_that_is_not_finite_leaves_the_running_statistics():
    x = numbers((4, 2), 1)
    x[1, 1] = numpy.nan
    mean, var, counter = numpy.zeros(2, "float32"), numpy.ones(2, "float32"), numpy.zeros(1, "int64")
    arguments = dict(running_mean=mean, running_var=var, num_batches_tracked=counter, training=True)
    with pytest.raises(evenkeel.Error, match="not finite.*left as they are"):
        evenkeel.batch_norm(x, **arguments)
    y = evenkeel.batch_norm(x, on_nonfinite="skip", **arguments)
    assert numpy.isfinite(y[:, 0]).all() and numpy.isnan(y[:, 1]).all()
    assert mean.tolist() == [0, 0] and var.tolist() == [1, 1] and counter[0] == 0
    evenkeel.batch_norm(x, on_nonfinite="update", **arguments)
    assert numpy.isfinite(mean[0]) and numpy.isnan(mean[1]) and counter[0] == 1


@pytest.mark.parametrize("dtype, scale", [("float16", 1e3), ("float32", 1e25)])
def test_running_statistics_that_would_overflow_their_type_are_left(dtype, scale):
    x = numbers((8, 2, 4), 1, "float64")
    x[:, 1] *= scale
    mean, var, counter = numpy.zeros(2, dtype), numpy.ones(2, dtype), numpy.zeros(1, "int64")
    arguments = dict(running_mean=mean, running_var=var, num_batches_tracked=counter, training=True)
    name = {"float16": "fp16", "float32": "fp32"}[dtype]
    with pytest.raises(evenkeel.Error, match=f"^running_var of channel 1 would be too large for {name}, and .* left as they are"):
        evenkeel.batch_norm(x, **arguments)
    evenkeel.batch_norm(x, on_nonfinite="skip", **arguments)
    assert mean.tolist() == [0, 0] and var.tolist() == [1, 1] and counter[0] == 0
    evenkeel.batch_norm(x, on_nonfinite="update", **arguments)
    assert numpy.isfinite(var[0]) and var[1] == numpy.inf and counter[0] == 1
    evenkeel.batch_norm(x, **arguments)  # what is infinite already is no news of this batch
    assert counter[0] == 2


@pytest.mark.parametrize("count", [-1, -2**63, 2**62 + 1, 2**63 - 1])
@pytest.mark.parametrize("weight", [0.1, None])
def test_an_impossible_number_of_batches_is_refused_and_nothing_is_written(count, weight):
    x = numbers((4, 3), 1)
    mean, var, counter, out = numpy.zeros(3, "float32"), numpy.ones(3, "float32"), numpy.array(count), numpy.zeros_like(x)
    arguments = dict(running_mean=mean, running_var=var, num_batches_tracked=counter, training=True, new_batch_weight=weight)
    with pytest.raises(evenkeel.UsageError, match=rf"^num_batches_tracked is {count}; expected .*0 to 2\^62$"):
        evenkeel.batch_norm(x, out=out, **arguments)
    assert not mean.any() and (var == 1).all() and counter == count and not out.any()
    counter[...] = 2**62
    evenkeel.batch_norm(x, **arguments)
    assert counter == 2**62 + 1 and numpy.isfinite(var).all()


@pytest.mark.parametrize("per_position", [False, True])
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_weights(activation, per_position):
    shape = (5, 3, 4)
    x, dy, residual = numbers(shape, 1), numbers(shape, 2), numbers(shape, 3)
    w = numpy.random.default_rng(4).integers(0, 3, (5, 4) if per_position else 5)
    w[0] = 2
    w[1] = 0
    x[1] = numpy.nan  # absent
    residual[1] = 0
    y, saved = evenkeel.batch_norm_forward(x, weights=w, activation=activation, residual=residual)
    expected = Oracle(x, weights=w, activation=activation, residual=residual)
    there = numpy.arange(5) != 1
    assert norm_error(y[there], expected.y[there]) < 1e-6
    dx, _, _, dresidual = evenkeel.batch_norm_backward(dy, saved)
    right = expected.backward(dy)
    assert norm_error(dx, right[0]) < 1e-6 and norm_error(dresidual, right[3]) < 1e-6
    mask = evenkeel.batch_norm(x[there], weights=numpy.array([True, False, True, True]), training=True)
    assert norm_error(mask, Oracle(x[there], weights=[1, 0, 1, 1]).y) < 1e-6


@pytest.mark.parametrize("dtype", ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32",
                                   "float64"])
def test_weights_of_any_type_and_stride(dtype):
    x = numbers((5, 3, 4), 1)
    whole = (numpy.arange(40) % 3).reshape(5, 8).astype(dtype)
    for w in (whole[:, :4].copy(), whole[:, ::2], whole[:, 3::-1], numpy.asfortranarray(whole[:, 1:5]), whole[:, 3], whole[::-1, 0],
              numpy.broadcast_to(whole[:1, :4], (5, 4))):
        assert norm_error(evenkeel.batch_norm(x, training=True, weights=w), Oracle(x, weights=w.astype(float)).y) < 1e-6


def test_weights_that_are_tensors():
    torch = pytest.importorskip("torch")
    x, dy = numbers((5, 3, 4), 1), numbers((5, 3, 4), 2)
    mask = torch.arange(20).reshape(5, 4) % 3 > 0
    for w in (mask, mask[:, 0], mask.t().contiguous().t(), mask.to(torch.bfloat16), mask.to(torch.float16), mask.to(torch.int16)):
        expected = Oracle(x, weights=w.to(torch.float64))
        y, saved = evenkeel.batch_norm_forward(torch.from_numpy(x), weights=w)
        assert norm_error(y, expected.y) < 1e-6
        assert norm_error(evenkeel.batch_norm_backward(torch.from_numpy(dy), saved).dx, expected.backward(dy)[0]) < 1e-6


@pytest.mark.parametrize("wrong", [numpy.nan, -1.0])
def test_what_is_no_weight_is_named_before_the_sum(wrong):
    w = numpy.array([0.5, wrong, 0.5, 0])
    with pytest.raises(evenkeel.UsageError, match=rf"weights\[1\] is {wrong:g}; expected a finite number"):
        evenkeel.batch_norm(numbers((4, 3), 1), None, None, ONES.copy(), ONES.copy(), training=True, weights=w)


# Sums over the 4 values of a channel, or as many examples of 2 positions. 1e-3 above 1 is the bound.
@pytest.mark.parametrize("on_nonfinite", ["stop", "skip", "update"])
@pytest.mark.parametrize("total", [1e-3, 0.999, 1, 1 + 1e-6, 1.0009])
@pytest.mark.parametrize("space", [(), (2,)])
def test_weights_that_add_up_to_one_have_no_running_variance(total, space, on_nonfinite):
    x = numbers((4, 3) + space, 1)
    w = numpy.full((4,) + space, total / (4 * len(space) * 2 or 4))
    mean, var, counter, out = numpy.zeros(3, "float32"), numpy.ones(3, "float32"), numpy.zeros(1, "int64"), numpy.zeros_like(x)
    running = {"running_mean": mean, "running_var": var}
    for weights in (w, w.reshape(4, -1)[:, 0].copy()):  # of positions, of examples
        with pytest.raises(evenkeel.UsageError, match="the weights of a channel's values add up to .*expected more than 1.001.*leave running_mean"):
            evenkeel.batch_norm(x, training=True, weights=weights, num_batches_tracked=counter, out=out, on_nonfinite=on_nonfinite, **running)
    assert not mean.any() and (var == 1).all() and counter[0] == 0 and not out.any()
    # Without the variance any sum will do.
    y = evenkeel.batch_norm(x, training=True, weights=w, num_batches_tracked=counter)
    assert norm_error(y, Oracle(x).y) < 1e-6 and counter[0] == 1
    # And so does a sum above the bound: the variance is the one of math.md.
    heavy = w * (1.01 / total)
    evenkeel.batch_norm(x, training=True, weights=heavy, new_batch_weight=1.0, **running)
    assert norm_error(var, Oracle(x).var[:, 0] * 1.01 / 0.01) < 1e-4  # W - 1 of fp32 weights: 1e-7 / 0.01


def test_channels_in_the_last_axis():
    x, gamma = numbers((4, 5, 6, 3), 1), numbers(3, 2)
    y = evenkeel.batch_norm(x, gamma, training=True, axis=-1)
    assert y.flags.c_contiguous
    assert norm_error(numpy.moveaxis(y, -1, 1), Oracle(numpy.moveaxis(x, -1, 1), gamma).y) < 1e-6
    assert numpy.array_equal(y, evenkeel.batch_norm(x, gamma, training=True, axis=3))


def test_slices_of_a_larger_buffer_need_no_copy():
    buffer = numbers((4, 10, 5, 5), 1)
    x, out = buffer[:, 2:5], buffer[:, 6:9]
    expected = Oracle(x.copy()).y
    before = buffer.copy()
    assert evenkeel.batch_norm(x, training=True, out=out) is out
    assert norm_error(out, expected) < 1e-6
    before[:, 6:9] = out
    assert numpy.array_equal(buffer, before)  # nothing beside out


def test_in_place():
    x, dy = numbers((4, 3, 5), 1), numbers((4, 3, 5), 2)
    copy = x.copy()
    assert evenkeel.batch_norm(x, training=True, out=x) is x
    assert norm_error(x, Oracle(copy).y) < 1e-6
    y, saved = evenkeel.batch_norm_forward(copy)
    right = Oracle(copy).backward(dy)[0]
    assert evenkeel.batch_norm_backward(dy, saved, out=dy).dx is dy
    assert norm_error(dy, right) < 1e-6


def test_parameters_of_another_type_and_stride():
    x = numbers((6, 4), 1)
    gamma, beta = numbers(8, 2, "float64")[::2], numbers(4, 3, "float16")
    y, saved = evenkeel.batch_norm_forward(x, gamma, beta)
    assert norm_error(y, Oracle(x, gamma, beta).y) < 1e-6
    dx, dgamma, dbeta, _ = evenkeel.batch_norm_backward(x, saved)
    assert dgamma.dtype == numpy.float64 and dbeta.dtype == numpy.float16
    assert norm_error(dbeta, Oracle(x, gamma, beta).backward(x)[2]) < 1e-3  # fp16


def test_half_precision_values_of_channels_are_rounded_to_nearest_even():
    # Every kind of fp16: normal, subnormal, halfway, too large. NumPy is the judge.
    values = numpy.array([1, 1 + 2**-11, 1 + 3 * 2**-11, 65504, 65519.9, 65520, 2**-14, 2**-24, 2**-25, 3 * 2**-25, 2**-26, -7e-6, 2047.5])
    x = numpy.concatenate([values, values]).reshape(2, -1) + numpy.array([[-1.0], [1.0]])
    mean, var = numpy.zeros(13, "float16"), numpy.ones(13, "float16")
    evenkeel.batch_norm(x, running_mean=mean, running_var=var, training=True, new_batch_weight=1.0, on_nonfinite="update")
    exact = evenkeel.moments(x).mean
    with numpy.errstate(over="ignore"):
        assert numpy.array_equal(mean, exact.astype("float16"))


def test_moments_of_parts_merge():
    x = numbers((9, 3, 4), 1) + numpy.float32(1000)
    whole = evenkeel.moments(x)
    parts = evenkeel.merge(evenkeel.moments(x[:2]), evenkeel.moments(x[2:]))
    assert parts.count.tolist() == [36, 36, 36]
    rows = numpy.moveaxis(x.astype("float64"), 1, 0).reshape(3, -1)
    for m in (whole, parts):
        assert norm_error(m.mean, rows.mean(1)) < 1e-9 and norm_error(m.var(), rows.var(1)) < 4e-7
    assert norm_error(whole.var(unbiased=True), rows.var(1, ddof=1)) < 4e-7
    assert norm_error(evenkeel.moments(numpy.moveaxis(x, 1, -1).copy(), axis=-1).mean, whole.mean) < 1e-9


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_the_same_bits_for_any_number_of_threads(threads):
    x = numbers((16, 24, 20, 20), 1)
    assert numpy.array_equal(evenkeel.batch_norm(x, training=True, threads=1), evenkeel.batch_norm(x, training=True, threads=threads))


def test_the_gil_is_released():
    """While one call computes, Python runs on: a thread counts all the while."""
    x = numbers((64, 32, 64, 64), 1)
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    thread = threading.Thread(target=tick)
    thread.start()
    out, inside = numpy.empty_like(x), 0
    for _ in range(20):
        start = time.perf_counter()
        evenkeel.batch_norm(x, training=True, out=out, threads=1)
        end = time.perf_counter()
        inside += sum(start + 0.001 < t < end - 0.001 for t in ticks)
        ticks.clear()
    done.set()
    thread.join()
    assert inside > 0  # with the GIL held no tick would fall into the middle of a call


def test_from_several_threads_at_a_time():
    inputs = [numbers((8, 6, 10, 10), i) for i in range(4)]
    right = [evenkeel.batch_norm(x, training=True) for x in inputs]
    found = [None] * 4

    def work(i):
        for _ in range(50):
            found[i] = evenkeel.batch_norm(inputs[i], training=True, threads=2)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(numpy.array_equal(a, b) for a, b in zip(found, right))


X = numbers((4, 3, 5), 1)
ONES = numpy.ones(3, "float32")


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


@pytest.mark.parametrize("arguments, message", [
    ({}, "running_mean and running_var are not given"),
    ({"training": True, "running_mean": ONES.copy()}, "running_mean is given without running_var"),
    ({"training": True, "x": X.astype("int32")}, "x has elements of int32"),
    ({"training": True, "x": X[0, 0]}, r"x has the shape \[5\]; expected at least two axes"),
    ({"training": True, "x": X[:0]}, "x is empty"),
    ({"training": True, "x": X[:, :0]}, "x is empty"),
    ({"training": True, "x": X[:1, :, :1].copy()}, "one value per channel.*training=False"),
    ({"training": True, "x": X.astype("float64")[::-1, ::-1]}, "neither channels first nor channels last.*ascontiguousarray"),
    ({"training": True, "x": X.T}, "neither channels first nor channels last"),
    ({"training": True, "x": numpy.broadcast_to(X[:1], X.shape)}, "neither channels first nor channels last"),
    ({"training": True, "x": [[1.0, 2.0]]}, "x is of type list"),
    ({"training": True, "axis": 0}, "axis is 0; expected 1, or -1"),
    ({"training": True, "gamma": numpy.ones(4)}, r"gamma has the shape \[4\]; expected \[3\]"),
    ({"training": True, "beta": numpy.ones((3, 1))}, r"beta has the shape \[3, 1\]"),
    ({"training": True, "gamma": numpy.ones(3, "int64")}, "gamma has elements of int64"),
    ({"training": True, "running_mean": ONES.copy(), "running_var": numpy.ones(2)}, "running_var has the shape"),
    ({"training": True, "running_mean": read_only(ONES), "running_var": ONES.copy()}, "running_mean is read-only"),
    ({"training": True, "running_mean": ONES, "running_var": ONES}, "share memory"),
    ({"training": True, "residual": X[:2]}, r"residual has the shape \[2, 3, 5\]; expected that of x"),
    ({"training": True, "residual": X.astype("float64")}, "residual has elements of fp64; expected those of x, fp32"),
    ({"training": True, "residual": channels_last(X)}, "lie differently in memory"),
    ({"training": True, "out": read_only(X)}, "out is read-only"),
    ({"training": True, "out": X.astype("float64")}, "out has elements of fp64"),
    ({"training": True, "out": X[:, :2]}, "out has the shape"),
    ({"training": True, "out": "text"}, "out is of type str"),
    ({"training": True, "activation": "rleu"}, "did you mean relu"),
    ({"training": True, "eps": 0}, "eps is 0"),
    ({"training": True, "threads": -1}, "threads is -1"),
    ({"training": True, "weights": numpy.ones(3)}, r"weights has the shape \[3\]; expected \[4\].*\[4, 5\]"),
    ({"training": True, "weights": -numpy.ones(4)}, "weight"),
    ({"training": True, "weights": numpy.zeros(4)}, "all 4 weights are 0.*or normalize by running statistics with training=False$"),
    ({"training": True, "x": X[:, :, 0].copy(), "weights": numpy.array([1, 0, 0, 0])}, "only one weight.*with training=False$"),
    ({"training": True, "weights": numpy.array([1, 1e300, 1, 1])}, r"weights\[1\] is 1e\+300, too large for fp32"),
    ({"training": True, "weights": numpy.array([1, numpy.inf, 1, 1])}, r"weights\[1\] is inf; expected a finite number"),
    ({"training": True, "weights": numpy.ones(4, "complex64")}, "weights has elements of the format 'Zf'; expected fp32"),
    ({"running_mean": ONES, "running_var": ONES, "weights": numpy.ones(4)}, "weights is given with training=False"),
    ({"training": True, "new_batch_weight": 1.5, "running_mean": ONES, "running_var": ONES.copy()}, "new_batch_weight is 1.5"),
    ({"training": True, "new_batch_weight": None, "running_mean": ONES, "running_var": ONES.copy()}, "without num_batches_tracked"),
    ({"training": True, "num_batches_tracked": numpy.zeros(1)}, "num_batches_tracked has elements of fp64; expected int64"),
    ({"training": True, "num_batches_tracked": numpy.zeros(2, "int64")}, "expected a single value"),
    ({"training": True, "on_nonfinite": "ignore"}, "expected stop, skip or update"),
    ({"training": True, "on_nonfinite": None}, "on_nonfinite is None; expected \"stop\", \"skip\" or \"update\""),
    ({"training": True, "axis": None}, "axis is None; expected 1, or -1"),
    ({"training": True, "axis": 1.0}, "axis is 1.0; expected 1, or -1"),
    ({"training": True, "axis": 2**70}, "axis is 1180591620717411303424; expected 1, or -1"),
    ({"training": True, "threads": 2**40}, "threads is 1099511627776; expected 0"),
    ({"training": True, "threads": None}, "threads is None; expected 0"),
    ({"training": True, "activation": None}, "activation is None; expected a name"),
    ({"training": True, "eps": "small"}, "eps is 'small'; expected a number"),
    ({"training": True, "slope": None}, "slope is None; expected a number"),
    ({"training": True, "new_batch_weight": "much"}, "new_batch_weight is 'much'; expected a number from 0 to 1"),
    ({"training": X}, "training is of type numpy.ndarray; expected True or False"),
])
def test_bad_input_gets_one_sentence(arguments, message):
    arguments = dict(arguments)
    with pytest.raises(evenkeel.UsageError, match=message) as raised:
        evenkeel.batch_norm(arguments.pop("x", X), **arguments)
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, ValueError)


def test_overlapping_outputs_are_refused_and_nothing_is_written():
    buffer = numbers((6, 3), 1)
    before = buffer.copy()
    with pytest.raises(evenkeel.UsageError, match="out overlaps x"):
        evenkeel.batch_norm(buffer[:4], training=True, out=buffer[2:])
    flat = numpy.zeros(12 + 3, "float32")
    with pytest.raises(evenkeel.UsageError, match="out overlaps the running statistics"):
        evenkeel.batch_norm(buffer[:4], training=True, out=flat[:12].reshape(4, 3), running_mean=flat[10:13], running_var=ONES.copy())
    with pytest.raises(evenkeel.UsageError, match="out is x, which backward needs"):
        evenkeel.batch_norm_forward(buffer, out=buffer)
    assert numpy.array_equal(buffer, before)


def test_bad_gradients_are_refused():
    y, saved = evenkeel.batch_norm_forward(X)
    for dy, message in [(X[:2], "dy has the shape"), (X.astype("float16"), "dy has elements of fp16"), (X.T, "dy has the shape"),
                        (channels_last(X), "lie differently"), (None, "dy")]:
        with pytest.raises(evenkeel.UsageError, match=message):
            evenkeel.batch_norm_backward(dy, saved)
    with pytest.raises(evenkeel.UsageError, match="dx is read-only"):
        evenkeel.batch_norm_backward(X, saved, out=read_only(X))


def test_merging_moments_of_other_channels_is_refused():
    with pytest.raises(evenkeel.UsageError, match="3 and 2 channels"):
        evenkeel.merge(evenkeel.moments(X), evenkeel.moments(X[:, :2]))


@pytest.mark.parametrize("shape", [(), (3,), (9,), (4, 3), (3, 3, 1), (3, 0)])
def test_tables_of_another_shape_are_refused(shape):
    m, other = evenkeel.moments(X), evenkeel.Moments(numpy.ones(shape))
    with pytest.raises(evenkeel.UsageError, match=r"b.table has the shape \[.*\]; expected \[3, channels\]"):
        evenkeel.merge(m, other)
    with pytest.raises(evenkeel.UsageError, match="a.table has the shape"):
        evenkeel.merge(other, other)


def test_what_other_functions_return_is_asked_for():
    m = evenkeel.moments(X)
    with pytest.raises(evenkeel.UsageError, match="^b is of type int; expected Moments"):
        evenkeel.merge(m, 3)
    with pytest.raises(evenkeel.UsageError, match="^a is of type ndarray; expected Moments"):
        evenkeel.merge(m.table, m)
    with pytest.raises(evenkeel.UsageError, match="^saved is of type NoneType; expected what batch_norm_forward returned"):
        evenkeel.batch_norm_backward(X, None)
    with pytest.raises(evenkeel.UsageError, match="b.table is of type list"):
        evenkeel.merge(m, evenkeel.Moments([[1.0]] * 3))


def test_nothing_of_pytorch_is_imported():
    import subprocess
    import sys
    code = "import evenkeel, sys; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
