"""Batch normalization on arrays: NumPy's, PyTorch's on the CPU, and whatever else has a buffer or speaks DLPack. They are
read where they lie.

An array x is [N, C], or [N, C, *space] with any number of axes behind; with axis=-1 the channels stand last, [N, *space, C]. Its
memory may be channels first or channels last, and its examples may be slices of a larger buffer. x, residual, out and gradients have
one shape, one type (fp32, fp64, fp16, bf16) and one layout. Values of channels (gamma, beta, running statistics) are [C], of any
float type. Results are of x's kind: a tensor for a tensor, else NumPy's array.
"""
from __future__ import annotations

import dataclasses
import sys
from typing import Any, NamedTuple, Optional

from evenkeel import _core

# NumPy's arrays, PyTorch's tensors, memoryview and so on: there is no type that they share.
Array = Any


def _torch_of(x: Array) -> Any:
    """PyTorch, where x is one of its tensors; else None. Does not import it: who has a tensor has PyTorch."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(x, torch.Tensor) else None


def _numpy() -> Any:
    try:
        import numpy
    except ImportError:
        raise _core.Error("results need NumPy, which is not installed; give PyTorch tensors, or apt install python3-numpy") from None
    return numpy


def _plain(x: Array) -> Array:
    """x without its gradient, where nobody records gradients; else x, which the extension refuses if it requires grad. Its values lie
    in memory: of a tensor that is the negative of other memory (z.conj().imag), it is a copy."""
    torch = _torch_of(x)
    if torch is None:
        return x
    if x.requires_grad and not torch.is_grad_enabled():
        x = x.detach()
    return x.resolve_neg()


def _plain_weights(x: Array) -> Array:
    """_plain, and booleans of PyTorch as bytes: DLPack of older versions has none."""
    torch = _torch_of(x)
    return x.view(torch.uint8) if torch is not None and x.dtype is torch.bool else _plain(x)


def _require(name: str, value: Any, kind: type, expected: str) -> None:
    if not isinstance(value, kind):
        raise _core.UsageError(f"{name} is of type {type(value).__name__}; expected {expected}")


def _empty_like(x: Array) -> Array:
    """A new array with the shape, type and order of axes in memory of x."""
    torch = _torch_of(x)
    if torch is not None:
        return torch.empty_like(x, requires_grad=False)
    dtype, shape, strides = _core.describe_array(x)[:3]
    numpy = _numpy()
    if _has_buffer(x):
        return numpy.empty_like(numpy.asarray(x), subok=False)
    if dtype not in _NUMPY_TYPES:
        raise _core.UsageError(f"an array of {dtype} is given by DLPack alone, and NumPy, in which results are, has no such type; give PyTorch's "
                               "tensors (torch.from_dlpack)")
    order = sorted(range(len(shape)), key=lambda axis: (-abs(strides[axis]), axis))  # of the axes in memory
    y = numpy.empty([shape[axis] for axis in order], _NUMPY_TYPES[dtype])
    return y.transpose([order.index(axis) for axis in range(len(shape))])


_NUMPY_TYPES = {"fp32": "float32", "fp64": "float64", "fp16": "float16"}


def _has_buffer(x: Array) -> bool:
    try:
        memoryview(x).release()
    except TypeError:
        return False
    return True


def _copy(x: Array) -> Array:
    """x in memory of its own, its axes in the same order there."""
    y = _empty_like(x)
    if _torch_of(x) is not None:
        return y.copy_(x)
    numpy = _numpy()
    y[...] = numpy.asarray(x) if _has_buffer(x) else numpy.from_dlpack(x)
    return y


def _written(*outputs: Array) -> None:
    """Tells autograd that these tensors were written, so that what has saved one for its gradient refuses to use it: an operation in place
    on none of its elements counts as one on the tensor."""
    for x in outputs:
        if _torch_of(x) is not None and not x.is_inference():
            x = x.detach()
            (x if x.dim() else x.unsqueeze(0)).narrow(0, 0, 0).zero_()


def _empty(like: Array, shape: tuple[int, ...]) -> Array:
    """A new fp64 array of like's kind."""
    torch = _torch_of(like)
    if torch is not None:
        return torch.empty(shape, dtype=torch.float64)
    return _numpy().empty(shape)


def batch_norm(x: Array, gamma: Optional[Array] = None, beta: Optional[Array] = None, running_mean: Optional[Array] = None,
               running_var: Optional[Array] = None, *, training: bool = False, new_batch_weight: Optional[float] = 0.1,
               eps: float = 1e-5, activation: str = "identity", slope: float = 0.01, residual: Optional[Array] = None,
               weights: Optional[Array] = None, out: Optional[Array] = None, axis: int = 1,
               num_batches_tracked: Optional[Array] = None, on_nonfinite: str = "stop", threads: int = 0) -> Array:
    """y = activation(gamma * (x - mean) / sqrt(var + eps) + beta + residual), of the shape of x.

    training=False: mean and var are running_mean and running_var, which must be given.
    training=True: they are those of each channel of x, and the running statistics, where given, are assigned in place
        running = (1 - new_batch_weight) * running + new_batch_weight * batch's
    with the unbiased variance of the batch, as PyTorch does (its `momentum` is this weight). new_batch_weight=None is the plain
    average of all batches, and needs num_batches_tracked.

    x: [N, C, *space]      gamma, beta, running_mean, running_var: [C]; gamma None is 1, beta None is 0
    residual, out: as x; out is assigned and returned, and may be x or residual
    weights: [N], or [N, *space], of any real type, taken as fp32; training only, for x of fp32 and fp64. 0 is absence: such a value is in no statistic. Running statistics
        want weights that count examples: those of the values of a channel must add up to more than 1.001, since the unbiased
        variance divides by their sum less 1
    num_batches_tracked: a single int64, 0 to 2^62, counted up in place
    activation: identity, relu, leaky_relu (with slope), sigmoid, tanh, gelu, gelu_tanh, silu
    axis: 1, or -1 for channels in the last axis
    on_nonfinite: what happens to the running statistics where those of the batch are not finite, or too large for the type of the
        running ones (fp16: 65504): "stop" leaves them and raises Error, "skip" leaves them, "update" assigns what arithmetic gives
    threads: 0 are the cores of this process. The result has the same bits for any number.
    """
    x, residual = _plain(x), _plain(residual)
    y = _empty_like(x) if out is None else out
    _core.norm_forward(x, y, _plain(gamma), _plain(beta), running_mean, running_var, num_batches_tracked, residual, _plain_weights(weights),
                       axis, training, new_batch_weight, eps, activation, slope, on_nonfinite, threads, None)
    _written(out, *((running_mean, running_var, num_batches_tracked) if training else ()))
    return y


@dataclasses.dataclass(frozen=True, eq=False)
class Saved:
    """What batch_norm_backward needs of batch_norm_forward. Holds x, parameters, weights and residual themselves, not copies: leave them
    as they are until then. Of a residual that out overwrote it holds a copy, unless the gradient needs none."""
    x: Array
    gamma: Optional[Array]
    beta: Optional[Array]
    residual: Optional[Array]  # None for identity, and where a mask of one bit per element stands for it
    weights: Optional[Array]
    axis: int
    batch_statistics: bool
    activation: str
    slope: float
    threads: int
    has_residual: bool
    _scale: bytearray
    _mask: Optional[bytearray]

    @property
    def mean(self) -> list[float]:
        """[C]: what was subtracted."""
        return list(memoryview(self._scale).cast("d")[0::2])

    @property
    def rstd(self) -> list[float]:
        """[C]: 1 / sqrt(var + eps)."""
        return list(memoryview(self._scale).cast("d")[1::2])

    def __repr__(self) -> str:
        return f"Saved(channels={len(self._scale) // 16}, activation={self.activation!r}, batch_statistics={self.batch_statistics})"


class Gradients(NamedTuple):
    """Gradients at the inputs of batch_norm_forward; None for what it was not given."""
    dx: Array  # as x
    dgamma: Optional[Array]  # [C]
    dbeta: Optional[Array]  # [C]
    dresidual: Optional[Array]  # as x


def batch_norm_forward(x: Array, gamma: Optional[Array] = None, beta: Optional[Array] = None, running_mean: Optional[Array] = None,
                       running_var: Optional[Array] = None, *, training: bool = True, new_batch_weight: Optional[float] = 0.1,
                       eps: float = 1e-5, activation: str = "identity", slope: float = 0.01, residual: Optional[Array] = None,
                       weights: Optional[Array] = None, out: Optional[Array] = None, axis: int = 1,
                       num_batches_tracked: Optional[Array] = None, on_nonfinite: str = "stop",
                       threads: int = 0) -> tuple[Array, Saved]:
    """batch_norm, and what its gradient needs: (y, saved). The same arguments, but training=True, and out may not be x.

    With out=residual the gradient still needs the residual, and a copy of it is kept, for sigmoid, tanh, gelu, gelu_tanh and silu, and
    for relu and leaky_relu with weights of positions. Otherwise it needs at most one bit per element.

    training=False normalizes by the running statistics, and the gradient then takes them as constants (a frozen norm).
    """
    x, gamma, beta, residual, weights = _plain(x), _plain(gamma), _plain(beta), _plain(residual), _plain_weights(weights)
    y = _empty_like(x) if out is None else out
    scale, mask, kept = _core.norm_forward(x, y, gamma, beta, running_mean, running_var, num_batches_tracked, residual, weights, axis,
                                           training, new_batch_weight, eps, activation, slope, on_nonfinite, threads, _copy)
    _written(out, *((running_mean, running_var, num_batches_tracked) if training else ()))
    return y, Saved(x, gamma, beta, kept, weights, axis, bool(training), activation, slope, threads, residual is not None, scale, mask)


def batch_norm_backward(dy: Array, saved: Saved, *, out: Optional[Array] = None) -> Gradients:
    """The gradient: dy at y in, (dx, dgamma, dbeta, dresidual) out. dy: as x. out: where dx is written to; may be dy.

    dgamma and dbeta are there where gamma and beta were given, in their types; dresidual where a residual was.
    """
    _require("saved", saved, Saved, "what batch_norm_forward returned beside y")
    dy = _plain(dy)
    dx = _empty_like(saved.x) if out is None else out
    dgamma = None if saved.gamma is None else _empty_like(saved.gamma)
    dbeta = None if saved.beta is None else _empty_like(saved.beta)
    dresidual = _empty_like(saved.x) if saved.has_residual else None
    _core.norm_backward(saved.x, dy, saved.gamma, saved.beta, saved._scale, saved._mask, saved.residual, saved.weights, dx, dresidual,
                        dgamma, dbeta, saved.axis, saved.batch_statistics, saved.activation, saved.slope, saved.threads)
    _written(out)
    return Gradients(dx, dgamma, dbeta, dresidual)


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and m2 = sum of (value - mean)^2 of each channel, as the rows of `table`: [3, C] of fp64. Equal where all of them are."""
    table: Array

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Moments):
            return NotImplemented
        return [list(map(float, row)) for row in self.table] == [list(map(float, row)) for row in other.table]

    __hash__ = None  # type: ignore[assignment]

    @property
    def count(self) -> Array:
        """[C]"""
        return self.table[0]

    @property
    def mean(self) -> Array:
        """[C]"""
        return self.table[1]

    @property
    def m2(self) -> Array:
        """[C]"""
        return self.table[2]

    def var(self, *, unbiased: bool = False) -> Array:
        """[C]: m2 / count, or m2 / (count - 1)."""
        return self.m2 / (self.count - 1 if unbiased else self.count)


def _channels(x: Array, axis: int) -> int:
    shape: tuple[int, ...] = _core.describe_array(x)[1]
    return shape[1 if axis == 1 else -1] if len(shape) > 1 else 0


def moments(x: Array, *, axis: int = 1, threads: int = 0) -> Moments:
    """Moments of each channel of x, [N, C, *space], in one reading of memory."""
    x = _plain(x)
    table = _empty(x, (3, _channels(x, axis)))
    _core.norm_moments(x, table, axis, threads)
    return Moments(table)


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of two disjoint sets together, without loss: parts of a batch, batches, processes."""
    for name, value in (("a", a), ("b", b)):
        _require(name, value, Moments, "Moments, as evenkeel.moments gives them")
    table = _empty(a.table, tuple(_core.describe_array(a.table)[1]))
    _core.norm_merge(a.table, b.table, table)
    return Moments(table)
