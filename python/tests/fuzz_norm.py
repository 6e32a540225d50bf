#!/usr/bin/env python3
"""evenkeel.batch_norm and its gradient on random arrays and arguments, against the formulas in NumPy's fp64.

  PYTHONPATH=build/release/python python/tests/fuzz_norm.py [SECONDS] [SEED]

Shapes, strides, types, layouts and arguments are drawn, wrong ones too. A call either gives what the formulas give, and writes nothing
but its outputs, or raises evenkeel.UsageError or BackendError with one sentence; which of both is known beforehand. Every case has a
seed of its own, which is printed where it fails. Exit 1 at the first failure.
"""
import pathlib
import random
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import numpy

import evenkeel
from norm_oracle import Oracle, rows_of

ACTIVATIONS = ["identity", "relu", "leaky_relu", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu"]
# Errors are norm-wise and in units of the rounding of the type: so many of what is added up, each summand at its size (see sizes_of).
ROUNDING = {"float32": 6e-8, "float64": 1.2e-16, "float16": 5e-4}


ROUNDINGS = 16


class Mistake(Exception):
    """What the norm did wrong."""


def values(rng, shape, dtype):
    return rng.normal(rng.normal(), rng.uniform(0.3, 2), shape).astype(dtype)


def laid_out(draw, rng, shape, dtype, layout):
    """An array of this shape, whose memory is `layout`; its examples may lie in a larger buffer. -> (array, buffer)"""
    inner = shape[1:] if layout == "first" else (*shape[2:], shape[1])
    gap = draw.choice([0, 0, 1, 7])
    size = int(numpy.prod(inner))
    buffer = values(rng, (shape[0], size + gap), dtype)
    array = buffer[:, gap // 2:gap // 2 + size]
    array = numpy.lib.stride_tricks.as_strided(
        array, (shape[0], *inner),
        (array.strides[0], *(numpy.array([int(numpy.prod(inner[i + 1:])) for i in range(len(inner))]) * array.itemsize).tolist()))
    if layout == "last":
        array = numpy.moveaxis(array, -1, 1)
    return array, buffer


def draw_case(seed):
    draw, rng = random.Random(seed), numpy.random.default_rng(seed)
    rank = draw.randint(2, 5)
    shape = (draw.choice([1, 2, 3, 8, 9, 17]), draw.choice([1, 2, 3, 8, 15, 16, 17, 33]),
             *(draw.choice([1, 2, 3, 5, 8, 13]) for _ in range(rank - 2)))
    dtype = draw.choice(["float32", "float32", "float64", "float16"])
    layout = draw.choice(["first", "last"])
    parameter = lambda: values(rng, shape[1] * 2, draw.choice(["float32", "float64"]))[::2] if draw.random() < 0.3 else values(
        rng, shape[1], draw.choice(["float32", "float64"]))
    case = {
        "x": laid_out(draw, rng, shape, dtype, layout),
        "dy": laid_out(draw, rng, shape, dtype, layout),
        "out": laid_out(draw, rng, shape, dtype, layout) if draw.random() < 0.5 else None,
        "residual": laid_out(draw, rng, shape, dtype, layout) if draw.random() < 0.4 else None,
        "gamma": parameter() if draw.random() < 0.7 else None,
        "beta": parameter() if draw.random() < 0.7 else None,
        "training": draw.random() < 0.7,
        "activation": draw.choice(ACTIVATIONS) if draw.random() < 0.6 else "identity",
        "slope": float(numpy.float32(draw.choice([0.01, 0.3, -0.5]))),  # the kernels take an fp32
        "eps": draw.choice([1e-5, 1e-3, 0.1]),
        "threads": draw.choice([0, 1, 2, 3]),
        "weight": draw.choice([0.0, 0.1, 1.0]),
        "running": draw.random() < 0.5,
        "weights": None,
    }
    case["running"] = case["running"] or not case["training"]
    case["mean"], case["var"] = values(rng, shape[1], "float32"), numpy.abs(values(rng, shape[1], "float32")) + numpy.float32(0.05)
    if case["training"] and dtype != "float16" and shape[0] > 1 and draw.random() < 0.3:
        of = (shape[0], *shape[2:]) if draw.random() < 0.4 else shape[0]
        case["weights"] = rng.integers(0, 3, of).astype(draw.choice(["float32", "int64"]))
        case["weights"].reshape(-1)[:2] = 2  # so that there is a variance
    return draw, rng, shape, dtype, layout, case


# What can be wrong, in three groups. Each function takes a draw and gives what is wrong, or None where that is impossible with this shape.
WRONG_X = ["integers", "complex", "negative", "reversed", "broadcast", "transposed", "empty", "list", "one value", "rank"]
WRONG_ARRAYS = ["type of residual", "shape of out", "type of out", "layout of out", "read-only out", "overlap"]
WRONG_ARGUMENTS = ["gamma's size", "gamma's type", "no statistics", "one statistic", "read-only statistics", "eps", "threads",
                   "activation", "weights"]


def spoil(draw, rng, shape, dtype, layout, case):
    """Makes one thing wrong; says what, or None."""
    kind = draw.choice(WRONG_X + WRONG_ARRAYS + WRONG_ARGUMENTS)
    if kind in WRONG_X:
        x = wrong_x(kind, draw, shape, dtype, case)
        if x is not None:
            case["x"] = (x, numpy.zeros(0))
        return None if x is None else kind
    if kind in WRONG_ARRAYS:
        return wrong_array(kind, draw, rng, shape, dtype, layout, case)
    return wrong_argument(kind, draw, shape, case)


def wrong_x(kind, draw, shape, dtype, case):
    x = case["x"][0]
    if kind == "integers":
        return numpy.ones(shape, draw.choice(["int32", "uint8", "bool", "int64"]))
    if kind == "complex":
        return numpy.ones(shape, "complex64")
    if kind == "negative" and shape[0] > 1:
        return x[::-1]
    if kind == "reversed" and shape[1] > 1:
        return x[:, ::-1]
    if kind == "broadcast" and shape[0] > 1:
        return numpy.broadcast_to(x[:1], shape)
    if kind == "transposed" and shape[0] > 1 and shape[1] > 1 and len(shape) == 2:
        return numpy.asfortranarray(x)
    if kind == "empty":
        at = draw.randrange(len(shape))
        return numpy.zeros([0 if i == at else extent for i, extent in enumerate(shape)], dtype)
    if kind == "list":
        return x.tolist()
    if kind == "one value" and case["training"]:
        case["out"] = case["residual"] = None
        return numpy.ones((1, shape[1]), dtype)
    return numpy.ones(shape[1], dtype) if kind == "rank" else None


def wrong_array(kind, draw, rng, shape, dtype, layout, case):
    other = "float64" if dtype == "float32" else "float32"
    name, array = "out", None
    if kind == "type of residual":
        name, array = "residual", values(rng, shape, other)
    elif kind == "shape of out":
        array = numpy.zeros((*shape, 1) if draw.random() < 0.5 else (shape[0] + 1, *shape[1:]), dtype)
    elif kind == "type of out":
        array = numpy.zeros(shape, other)
    elif kind == "layout of out" and shape[1] > 1 and int(numpy.prod(shape[2:])) > 1:
        array, _ = laid_out(draw, rng, shape, dtype, "first" if layout == "last" else "last")
    elif kind == "read-only out":
        array = case["dy"][0].copy(order="K")
        array.flags.writeable = False
    elif kind == "overlap" and shape[0] > 1 and layout == "first":
        example = int(numpy.prod(shape[1:]))
        whole = values(rng, (shape[0] + 1) * example, dtype)
        case["x"] = (whole[:-example].reshape(shape), whole)
        array = whole[example:].reshape(shape)
    if array is None:
        return None
    case[name] = (array, numpy.zeros(0))
    return kind


def wrong_argument(kind, draw, shape, case):
    if kind == "gamma's size":
        case["gamma"] = numpy.ones(shape[1] + draw.choice([-1, 1, 5]))
    elif kind == "gamma's type":
        case["gamma"] = numpy.ones(shape[1], draw.choice(["int64", "complex128"]))
    elif kind == "no statistics" and not case["training"]:
        case["running"] = False
    elif kind == "one statistic" and case["running"]:
        case["mean"] = None
    elif kind == "read-only statistics" and case["running"] and case["training"]:
        case["var"].flags.writeable = False
    elif kind == "eps":
        case["eps"] = draw.choice([0.0, -1.0, float("nan"), float("inf")])
    elif kind == "threads":
        case["threads"] = draw.choice([-1, 1025, 2**30])
    elif kind == "activation":
        case["activation"] = draw.choice(["", "RELU", "softmax"])
    elif kind == "weights":
        case["weights"] = draw.choice([numpy.ones(shape[0] + 1), numpy.full(shape[0], -1.0), numpy.zeros(shape[0]),
                                       numpy.full(shape[0], numpy.nan), numpy.ones((shape[0], 99))])
    else:
        return None
    return kind


def check(what, found, expected, size, dtype):
    """size: norm of the summands that the formula adds."""
    off = numpy.linalg.norm(numpy.asarray(found, "float64") - expected)
    allowed = ROUNDINGS * (ROUNDING[dtype] * size + ROUNDING[str(found.dtype)] * numpy.linalg.norm(expected)) + 1e-300
    if not off <= allowed:
        raise Mistake(f"{what} is off by {off:.3g}, allowed are {allowed:.3g}")


def sizes_of(oracle, x, dy, beta, residual):
    """Norms of what is added up for y, dx, dgamma, dbeta, dresidual: a rounding of any summand is a rounding of that size."""
    rows, g = numpy.abs(rows_of(x)), numpy.abs(rows_of(dy))
    xhat = oracle.rstd * (rows + numpy.abs(oracle.mean))
    z = numpy.abs(oracle.gamma) * xhat
    if beta is not None:
        z = z + numpy.abs(numpy.asarray(beta, "float64").reshape(-1, 1))
    if residual is not None:
        z = z + numpy.abs(rows_of(residual))
    g = g * (1 + z)  # a rounding of z moves act'(z) by as much, or less
    dbeta, dgamma = g.sum(1, keepdims=True), (g * (1 + xhat)).sum(1, keepdims=True)
    dx = numpy.abs(oracle.gamma) * oracle.rstd * (g + oracle.w * (dbeta + (1 + xhat) * dgamma) / oracle.count)
    return [float(numpy.linalg.norm(size)) for size in (z, dx, dgamma, dbeta, g)]


def call(case):
    first = lambda name: None if case[name] is None else case[name][0]
    running = (case["mean"], case["var"]) if case["running"] else (None, None)
    return evenkeel.batch_norm_forward(first("x"), case["gamma"], case["beta"], *running, training=case["training"],
                                       new_batch_weight=case["weight"], eps=case["eps"], activation=case["activation"],
                                       slope=case["slope"], residual=first("residual"), weights=case["weights"], out=first("out"),
                                       threads=case["threads"])


def run_good(shape, dtype, case):
    x, dy = case["x"][0], case["dy"][0]
    if case["training"] and x.size == shape[1]:
        try:
            call(case)
        except evenkeel.UsageError:
            return
        raise Mistake("one value per channel was taken")
    before = {name: case[name][1].copy() for name in ("x", "dy", "residual") if case[name] is not None}
    mean, var = case["mean"].copy(), case["var"].copy()
    outside = None
    if case["out"] is not None:  # what lies between its examples must stay
        outside = case["out"][1].copy()
    y, saved = call(case)
    given = {} if case["training"] else {"mean": mean, "var": var}
    oracle = Oracle(x, case["gamma"], case["beta"], case["eps"], case["activation"], case["slope"],
                    None if case["residual"] is None else case["residual"][0], case["weights"], **given)
    size_y, *sizes = sizes_of(oracle, x, dy, case["beta"], None if case["residual"] is None else case["residual"][0])
    check("y", y, oracle.y, size_y, dtype)
    if case["running"] and case["training"]:
        w, count = case["weight"], oracle.count
        check("running_mean", case["mean"], (1 - w) * mean + w * oracle.mean[:, 0], numpy.linalg.norm(x.astype("float64")), "float32")
        if count > 1:
            check("running_var", case["var"], (1 - w) * var + w * oracle.var[:, 0] * count / (count - 1),
                  numpy.linalg.norm(var) + numpy.linalg.norm(oracle.var), "float32")
    elif not (numpy.array_equal(mean, case["mean"]) and numpy.array_equal(var, case["var"])):
        raise Mistake("running statistics changed")
    gradients = evenkeel.batch_norm_backward(dy, saved)
    if case["activation"] not in ("relu", "leaky_relu"):  # a rounding of z may step over their kink
        for name, found, expected, size in zip(gradients._fields, gradients, oracle.backward(dy), sizes):
            if found is not None:
                check(name, found, expected, size, dtype)
    for name, content in before.items():
        if not numpy.array_equal(content, case[name][1], equal_nan=True):
            raise Mistake(f"{name} was written to")
    if outside is not None:
        out, buffer = case["out"]
        start = (out.ctypes.data - buffer.ctypes.data) // buffer.itemsize
        numpy.lib.stride_tricks.as_strided(outside.reshape(-1)[start:], out.shape, out.strides)[...] = out
        if not numpy.array_equal(outside, buffer):
            raise Mistake("something beside out was written to")


def run_bad(kind, case):
    try:
        call(case)
    except (evenkeel.UsageError, evenkeel.BackendError) as error:
        if "\n" in str(error) or len(str(error)) < 20:
            raise Mistake(f"{kind}: no sentence: {error!r}") from None
        return
    raise Mistake(f"{kind}: nothing was raised")


def main():
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time()) * 1_000_000
    end, good, bad = time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        seed += 1
        try:
            draw, rng, shape, dtype, layout, case = draw_case(seed)
            kind = spoil(draw, rng, shape, dtype, layout, case) if draw.random() < 0.35 else None
            if kind is None:
                run_good(shape, dtype, case)
                good += 1
            else:
                run_bad(kind, case)
                bad += 1
        except Exception as error:
            print(f"fuzz_norm: {type(error).__name__}: {error}\nagain: fuzz_norm.py 0.001 {seed - 1}", file=sys.stderr)
            return 1
    print(f"fuzz_norm: {good} calls as the formulas have it, {bad} wrong ones refused, last seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
