"""Batch norm for PyTorch on the CPU: modules whose forward and backward are evenkeel's, in the place of torch.nn's.

    import evenkeel.torch
    model = evenkeel.torch.convert(model)       # every nn.BatchNorm1d, 2d and 3d; revert() goes back
    norm = evenkeel.torch.BatchNorm2d(64, activation="relu")
    y = norm(x, residual=shortcut)              # relu(norm(x) + shortcut) in one pass

State dicts, constructor arguments and behaviour are those of torch.nn.BatchNorm; what is added is given by keyword.
"""
from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any, Optional

import torch
from torch import Tensor, nn

from evenkeel import _core
from evenkeel._core import UsageError

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "batch_norm", "convert", "revert"]

# Numbers of the extension: types of elements, layouts, what a batch does whose statistics are not finite.
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
_FIRST, _LAST = 0, 1
_GUARDS = {"stop": 0, "skip": 1, "update": 2}
_MEMORY_FORMAT = {4: torch.channels_last, 5: torch.channels_last_3d}
_MOST_THREADS = 1024


def _refuse_tensor(name: str, x: Any) -> None:
    """Says what is wrong with a tensor that the kernels cannot read."""
    if not isinstance(x, Tensor):
        raise UsageError(f"{name} is of type {type(x).__name__}; expected a tensor")
    if not x.is_cpu:
        raise UsageError(f"{name} lies on {x.device}, and evenkeel computes on the CPU: move model and data there with .cpu(), or "
                         "give the model its own norms back with evenkeel.torch.revert(model)")
    if x.layout is not torch.strided:
        raise UsageError(f"{name} has the layout {x.layout}; expected a dense tensor: give {name}.to_dense()")
    raise UsageError(f"{name} has elements of {x.dtype}; expected float32, float64, float16 or bfloat16")


class _Call:
    """What forward and backward of one call share: shape, layout and settings."""
    __slots__ = ("n", "c", "space", "layout", "stride", "type", "training", "eps", "activation", "slope", "threads", "guard", "weight")

    def dense(self, x: Tensor) -> Tensor:
        """x in the layout of this call, its examples one behind the other. A copy only where it is not."""
        if self.layout == _FIRST:
            return x.contiguous()
        format = _MEMORY_FORMAT.get(x.dim())
        if format is not None:
            return x.contiguous(memory_format=format)
        return x.transpose(1, -1).contiguous().transpose(1, -1)  # [N, C, L]


def _prepare(call: _Call, x: Tensor) -> Tensor:
    """Finds the layout of x; makes x contiguous where it has none."""
    type = _TYPES.get(x.dtype, -1)
    if type < 0 or not x.is_cpu or x.layout is not torch.strided:
        _refuse_tensor("x", x)
    call.type = type
    shape = x.shape
    call.n, call.c = shape[0], shape[1]
    call.space = 1
    for extent in shape[2:]:
        call.space *= extent
    call.layout, call.stride = _FIRST, 0
    if not x.is_contiguous():
        place = _core.place_at(shape, x.stride())
        if place is None:
            x = x.contiguous()
        else:
            call.layout, call.stride = place
    return x


def _like_x(name: str, value: Tensor, x: Tensor) -> None:
    if value.shape != x.shape or value.dtype != x.dtype or not value.is_cpu:
        if isinstance(value, Tensor) and value.is_cpu and value.dtype == x.dtype:
            raise UsageError(f"{name} has the shape {list(value.shape)}; expected that of x, {list(x.shape)}")
        if isinstance(value, Tensor) and value.is_cpu:
            raise UsageError(f"{name} has elements of {value.dtype}; expected those of x, {x.dtype}")
        _refuse_tensor(name, value)


def _channel_values(names: str, first: Optional[Tensor], second: Optional[Tensor],
                    channels: int) -> tuple[Optional[Tensor], Optional[Tensor], int]:
    """Both contiguous on the CPU and of one type, whose number comes third."""
    type = 0
    for name, value in zip(names.split(), (first, second)):
        if value is None:
            continue
        if not value.is_cpu or value.dtype not in _TYPES:
            _refuse_tensor(name, value)
        if value.dim() != 1 or value.shape[0] != channels:
            raise UsageError(f"{name} has the shape {list(value.shape)}; expected [{channels}], a value for each channel of x")
        type = _TYPES[value.dtype]
    if first is not None and second is not None and first.dtype is not second.dtype:
        second = second.to(first.dtype)
        type = _TYPES[first.dtype]
    return (None if first is None else first.contiguous(), None if second is None else second.contiguous(), type)


def _address(x: Optional[Tensor]) -> int:
    return 0 if x is None else x.data_ptr()


def _forward(call: _Call, x: Tensor, gamma: Optional[Tensor], beta: Optional[Tensor], mean: Optional[Tensor], var: Optional[Tensor],
             counter: Optional[Tensor], residual: Optional[Tensor], save: bool) -> tuple[Tensor, Any]:
    gamma, beta, type = _channel_values("weight bias", gamma, beta, call.c)
    running_type = 0
    if mean is not None:
        running_type = _TYPES.get(mean.dtype, -1)
    y = torch.empty_like(x) if call.stride == 0 or call.stride == call.c * call.space else call.dense(torch.empty_like(x))
    saved = _core.forward_at(x.data_ptr(), call.stride, y.data_ptr(), _address(residual), call.n, call.c, call.space, call.layout,
                             call.type, _address(gamma), _address(beta), type, _address(mean), _address(var), running_type,
                             _address(counter), call.training, call.weight, call.eps, call.activation, call.slope, call.guard,
                             call.threads, save)
    return y, saved
