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
from typing import Any, Mapping, NamedTuple, Optional

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F

from evenkeel import _core
from evenkeel._core import UsageError
from evenkeel._torch_modes import watched

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "batch_norm", "convert", "revert"]

# Numbers of the extension: types of elements, layouts, what a batch does whose statistics are not finite.
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
_FIRST, _LAST = 0, 1
_GUARDS = {"stop": 0, "skip": 1, "update": 2}
_ACTIVATIONS: dict[str, int] = {}


class _Settings(NamedTuple):
    """What a call is told beside its tensors."""
    training: bool  # normalize by the batch
    weight: Optional[float]  # of the new batch in the running statistics; None: their plain average
    eps: float
    activation: int
    slope: float
    guard: int


def _refuse_tensor(name: str, x: Any) -> None:
    """Says what is wrong with a tensor that the kernels cannot read."""
    if isinstance(x, torch.fx.Proxy):  # type: ignore[attr-defined]
        raise UsageError(f"{name} is a value of torch.fx, which is followed only where it is x of a module, and this module a part of the "
                         "model that is traced; expected a tensor")
    if not isinstance(x, Tensor):
        raise UsageError(f"{name} is of type {type(x).__name__}; expected a tensor")
    if not x.is_cpu:  # type: ignore[attr-defined]
        raise UsageError(f"{name} lies on {x.device}, and evenkeel computes on the CPU: move model and data there with .cpu(), or "
                         "give the model its own norms back with evenkeel.torch.revert(model)")
    if x.layout is not torch.strided:
        raise UsageError(f"{name} has the layout {x.layout}; expected a dense tensor: give {name}.to_dense()")
    raise UsageError(f"{name} has elements of {x.dtype}; expected float32, float64, float16 or bfloat16")


def _type_of(name: str, x: Tensor) -> int:
    number = _TYPES.get(x.dtype, -1)
    if number < 0 or not x.is_cpu or x.layout is not torch.strided:  # type: ignore[attr-defined]
        _refuse_tensor(name, x)
    return number


def _placed(x: Tensor) -> tuple[Tensor, int, int]:
    """(x, layout, example stride); x is made contiguous where its memory is in neither layout."""
    x = x.resolve_neg()  # a copy where the sign is not in memory, as of z.conj().imag
    if x.is_contiguous():
        return x, _FIRST, 0
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x, _LAST, 0
    place = _core.place_at(x.shape, x.stride())
    if place is None:
        return x.contiguous(), _FIRST, 0
    return x, place[0], place[1]


def _dense(x: Tensor, layout: int) -> Tensor:
    """x in a layout, its examples one behind the other; a copy only where it is not so already."""
    x = x.resolve_neg()
    if layout == _FIRST:
        return x.contiguous()
    if x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _empty_in(x: Tensor, layout: int, stride: int) -> Tensor:
    """A new tensor like x, in its layout, its examples one behind the other."""
    if stride == 0:
        return torch.empty_like(x)
    return _dense(torch.empty(x.shape, dtype=x.dtype), layout)


def _like_x(name: str, value: Tensor, x: Tensor) -> None:
    _type_of(name, value)
    if value.shape != x.shape:
        raise UsageError(f"{name} has the shape {list(value.shape)}; expected that of x, {list(x.shape)}")
    if value.dtype is not x.dtype:
        raise UsageError(f"{name} has elements of {value.dtype}; expected those of x, {x.dtype}")


def _address(x: Optional[Tensor]) -> int:
    return 0 if x is None else x.data_ptr()


def _require_channels(name: str, value: Tensor, channels: int) -> int:
    """The type's number of [C] values."""
    number = _type_of(name, value)
    if value.dim() != 1 or value.shape[0] != channels:
        raise UsageError(f"{name} has the shape {list(value.shape)}; expected [{channels}], a value for each channel of x")
    return number


def _affine(gamma: Optional[Tensor], beta: Optional[Tensor],
            channels: int) -> tuple[Optional[Tensor], Optional[Tensor], int]:
    """gamma and beta, contiguous and of one type, and its number."""
    number = 0
    if gamma is not None:
        number = _require_channels("weight", gamma, channels)
        gamma = gamma.resolve_neg().contiguous()
    if beta is not None:
        of_beta = _require_channels("bias", beta, channels)
        if gamma is not None and of_beta != number:
            beta = beta.to(gamma.dtype)
        else:
            number = of_beta
        beta = beta.resolve_neg().contiguous()
    return gamma, beta, number


class _Forward:
    """One forward pass: what it gave, and what backward needs of it."""
    __slots__ = ("x", "y", "gamma", "beta", "residual", "numbers", "affine_type", "scale", "mask")

    def __init__(self, x: Tensor, gamma: Optional[Tensor], beta: Optional[Tensor], residual: Optional[Tensor], mean: Optional[Tensor],
                 var: Optional[Tensor], counter: Optional[Tensor], settings: _Settings, save: bool) -> None:
        number = _type_of("x", x)
        x, layout, stride = _placed(x)
        n, c = x.shape[0], x.shape[1]
        space = x.numel() // (n * c)
        gamma, beta, affine_type = _affine(gamma, beta, c)
        running_type = 0
        if mean is not None and var is not None:
            running_type = _require_channels("running_mean", mean, c)
            if _require_channels("running_var", var, c) != running_type:
                raise UsageError(f"running_mean has elements of {mean.dtype}, running_var of {var.dtype}; expected one type")
            if not (mean.is_contiguous() and var.is_contiguous()):
                raise UsageError("running_mean or running_var is not contiguous; expected tensors of their own")
            if mean.is_neg() or var.is_neg():
                raise UsageError("running_mean or running_var is the negative of other memory (PyTorch's negative bit); expected tensors "
                                 "of their own: give .resolve_neg()")
        if residual is not None:
            _like_x("residual", residual, x)
            residual = _dense(residual, layout)
        y = _empty_in(x, layout, stride)
        saved = _core.forward_at(x.data_ptr(), stride, y.data_ptr(), _address(residual), n, c, space, layout, number, _address(gamma),
                                 _address(beta), affine_type, _address(mean), _address(var), running_type, _address(counter),
                                 settings.training, settings.weight, settings.eps, settings.activation, settings.slope, settings.guard,
                                 torch.get_num_threads(), save)
        self.y = y
        if save:
            self.x, self.gamma, self.beta, self.affine_type = x, gamma, beta, affine_type
            self.scale, self.mask = saved
            self.residual = residual if self.mask is None and settings.activation != 0 else None
            self.numbers = (n, c, space, layout, stride, number)


class _Norm(torch.autograd.Function):
    """The norm as autograd knows it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Optional[Tensor], beta: Optional[Tensor], residual: Optional[Tensor],  # type: ignore[override]
                mean: Optional[Tensor], var: Optional[Tensor], counter: Optional[Tensor], settings: _Settings) -> Tensor:
        call = _Forward(x, gamma, beta, residual, mean, var, counter, settings, True)
        ctx.save_for_backward(call.x, call.gamma, call.beta, call.residual)
        ctx.rest = (call.numbers, call.affine_type, call.scale, call.mask, settings)
        return call.y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # type: ignore[override]
        saved = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: the gradient is to be differentiated, perhaps
            return _Gradient.apply(ctx, dy, *saved) + (None, None, None, None)
        return _gradient(ctx, dy, *saved) + (None, None, None, None)


def _gradient(ctx: Any, dy: Tensor, x: Tensor, gamma: Optional[Tensor], beta: Optional[Tensor],
              residual: Optional[Tensor]) -> tuple[Optional[Tensor], ...]:
    """(dx, dgamma, dbeta, dresidual), what is needed of it."""
    if watched(dy, x, gamma, beta, residual):
        raise RuntimeError("evenkeel.torch's gradient of a norm is asked for inside of a transform of PyTorch (vmap, is_grads_batched, forward-mode AD, "
                           "make_fx, fake tensors or another mode that sees operations) that did not see the forward pass; give the model "
                           "PyTorch's norms back: evenkeel.torch.revert(model)")
    need_x, need_gamma, need_beta, need_residual = ctx.needs_input_grad[:4]
    (n, c, space, layout, stride, number), affine_type, scale, mask, settings = ctx.rest
    dy = _dense(dy, layout)
    dresidual = None
    if need_residual:  # without an activation it is dy itself
        dresidual = dy if settings.activation == 0 else _empty_in(x, layout, stride)
    written = dresidual if settings.activation != 0 else None
    dx = _empty_in(x, layout, stride) if need_x or written is not None else None
    dgamma = torch.empty_like(gamma) if need_gamma and gamma is not None else None
    dbeta = torch.empty_like(beta) if need_beta and beta is not None else None
    if dx is not None or dgamma is not None or dbeta is not None:
        _core.backward_at(x.data_ptr(), stride, dy.data_ptr(), _address(residual), _address(dx), _address(written), n, c, space, layout,
                          number, _address(gamma), _address(beta), _address(dgamma), _address(dbeta), affine_type, scale, mask,
                          settings.training, settings.activation, settings.slope, torch.get_num_threads())
    return dx if need_x else None, dgamma, dbeta, dresidual


class _Gradient(torch.autograd.Function):
    """The gradient as a node of the graph, which says why it cannot be differentiated again."""

    @staticmethod
    def forward(ctx: Any, outer: Any, dy: Tensor, *saved: Optional[Tensor]) -> Any:  # type: ignore[override]
        return _gradient(outer, dy, *saved)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError("evenkeel.torch has no gradient of the gradient of a norm; where a loss needs it (a gradient penalty), give "
                           "the model PyTorch's norms back: evenkeel.torch.revert(model)")


def _of_nothing(x: Tensor, gamma: Optional[Tensor], beta: Optional[Tensor]) -> Tensor:
    """y of a batch without a value, with gradients that are 0, as PyTorch has it."""
    y = x.clone()
    for value in (gamma, beta):
        if value is not None and x.dim() > 1:
            y = y + value.sum().to(x.dtype)
    return y


def _expanded(residual: Tensor, x: Tensor) -> Tensor:
    """What is added to [N, C, *space] as PyTorch's + takes it: a value per channel, [C, 1, 1], and the like."""
    try:
        return residual.expand_as(x)
    except RuntimeError:
        raise UsageError(f"residual has the shape {list(residual.shape)}; expected that of x, {list(x.shape)}, or one that can be expanded "
                         "to it") from None


def _by_operations(x: Tensor, gamma: Optional[Tensor], beta: Optional[Tensor], residual: Optional[Tensor], mean: Optional[Tensor],
                   var: Optional[Tensor], counter: Optional[Tensor], settings: _Settings) -> Tensor:
    """As _apply, in operations of PyTorch."""
    weight = settings.weight
    if counter is not None:
        counter.add_(1)
        weight = 1 / float(counter) if weight is None else weight
    y = F.batch_norm(x, mean, var, gamma, beta, settings.training, weight or 0.0, settings.eps)
    name = next(name for name, number in _ACTIVATIONS.items() if number == settings.activation)
    return _activated(y if residual is None else y + residual, name, settings.slope)


def _apply(x: Tensor, gamma: Optional[Tensor], beta: Optional[Tensor], residual: Optional[Tensor], mean: Optional[Tensor],
           var: Optional[Tensor], counter: Optional[Tensor], settings: _Settings) -> Tensor:
    count = x.numel()
    if count == 0:
        return _of_nothing(x, gamma, beta)
    if settings.training and count == x.shape[1]:
        raise UsageError(f"x {list(x.shape)} has one value per channel, and its variance is 0 whatever it is; expected at least 2 " +
                         ("where the norm has no running statistics: take more examples, or drop the last batch where it is short" if mean is None
                          else "in training: take more examples, drop the last batch where it is short, or call model.eval()"))
    if residual is not None:
        if residual.dtype is not x.dtype and torch.is_autocast_cpu_enabled():
            residual = residual.to(x.dtype)
        if residual.shape != x.shape:
            residual = _expanded(residual, x)
    if watched(x, gamma, beta, residual, mean, var):
        return _by_operations(x, gamma, beta, residual, mean, var, counter, settings)
    if torch.is_grad_enabled() and (x.requires_grad or (gamma is not None and gamma.requires_grad) or
                                    (beta is not None and beta.requires_grad) or
                                    (residual is not None and residual.requires_grad)):
        y: Tensor = _Norm.apply(x, gamma, beta, residual, mean, var, counter, settings)
        return y
    return _Forward(x, gamma, beta, residual, mean, var, counter, settings, False).y


def _number(name: str, value: Any) -> float:
    if type(value) is float:
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UsageError(f"{name} is {value!r}; expected a number") from None


def _eps(eps: Any) -> None:
    if not 0 < _number("eps", eps) < float("inf"):
        raise UsageError(f"eps is {eps}; expected a number above 0")


def _weight(momentum: Any) -> float:
    value = _number("momentum", momentum)
    if not 0 <= value <= 1:
        raise UsageError(f"momentum is {value}; expected a number from 0 to 1, the weight of the new batch in the running statistics")
    return value


def _activation(name: str) -> int:
    number = _ACTIVATIONS.get(name) if isinstance(name, str) else None
    if number is None:
        number = _core.activation_index(name)  # raises where there is none
        _ACTIVATIONS[name] = number
    return number


def _guard(name: str) -> int:
    number = _GUARDS.get(name, -1) if isinstance(name, str) else -1
    if number < 0:
        raise UsageError(f"on_nonfinite is {name!r}; expected stop, skip or update")
    return number


def batch_norm(x: Optional[Tensor] = None, running_mean: Optional[Tensor] = None, running_var: Optional[Tensor] = None,
               weight: Optional[Tensor] = None, bias: Optional[Tensor] = None, training: bool = False, momentum: float = 0.1,
               eps: float = 1e-5, *, activation: str = "identity", slope: float = 0.01, residual: Optional[Tensor] = None,
               on_nonfinite: str = "update", input: Optional[Tensor] = None) -> Tensor:
    """torch.nn.functional.batch_norm by evenkeel, seen by autograd: y = activation(norm(x) + residual).

    x, residual: [N, C, *space]; running_mean, running_var, weight, bias: [C]. training assigns the running statistics, where given.
    input: PyTorch's name of x.
    """
    given: Tensor = _one_of(x, input)
    if not isinstance(given, Tensor) or given.dim() < 2:
        _refuse_shape(given)
    if (running_mean is None) != (running_var is None):
        raise UsageError("one of running_mean and running_var is given; expected both, or neither")
    if running_mean is None and not training:
        raise UsageError("running_mean and running_var are not given; expected both with training=False")
    if momentum is None:
        raise UsageError("momentum is None, the plain average of all batches, for which a function has no count of batches; expected a "
                         "number from 0 to 1, or a module with momentum=None")
    settings = _Settings(bool(training), _weight(momentum), _number("eps", eps), _activation(activation), _number("slope", slope),
                         _guard(on_nonfinite))
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        y = F.batch_norm(given, running_mean, running_var, weight, bias, training, momentum, eps)
        return _activated(y if residual is None else y + residual, activation, slope)
    return _apply(given, weight, bias, residual, running_mean, running_var, None, settings)


def _one_of(x: Any, input: Any) -> Any:
    """x under either of its names."""
    if x is not None and input is not None and not isinstance(input, torch.fx.Proxy):  # type: ignore[attr-defined]
        raise UsageError("x and input are both given; expected one of them, input is PyTorch's name of x")
    return input if x is None else x


def _refuse_shape(x: Any) -> None:
    if not isinstance(x, Tensor):
        _refuse_tensor("x", x)
    raise UsageError(f"x has the shape {list(x.shape)}; expected [N, C, *space]")


def _activated(y: Tensor, activation: str, slope: float) -> Tensor:
    """activation(y) in operations of PyTorch; TorchScript compiles it."""
    if activation == "identity":
        return y
    if activation == "relu":
        return F.relu(y)
    if activation == "leaky_relu":
        return F.leaky_relu(y, slope)
    if activation == "sigmoid":
        return torch.sigmoid(y)
    if activation == "tanh":
        return torch.tanh(y)
    if activation == "silu":
        return F.silu(y)
    z: Tensor = F.gelu(y, approximate="tanh" if activation == "gelu_tanh" else "none")
    return z


def _node_of_fx(module: nn.Module, x: Any, residual: Any) -> Any:
    """The call of a norm in a graph of torch.fx, which does not look into it, as into none of PyTorch's modules; None where x is of no graph."""
    if not isinstance(x, torch.fx.Proxy) or not isinstance(x.tracer, torch.fx.Tracer):  # type: ignore[attr-defined]
        return None
    path = x.tracer.path_of_module(module)
    if not path:
        raise UsageError("a norm alone is no model that torch.fx could trace; put it into one: torch.nn.Sequential(norm)")
    if module._forward_hooks or module._forward_pre_hooks:
        raise UsageError(f"torch.fx would call the hooks of {path} twice, while it traces and in the graph; remove them before, and register them on "
                         "the graph's module")
    return x.tracer.create_proxy("call_module", path, (x,), {} if residual is None else {"residual": residual})


class _BatchNorm:
    """What the three modules share. Stands before PyTorch's class, whose constructor, state dict and checks of shapes they have."""

    # Of the class, so that a norm whose class was changed by convert() has them.
    activation = "identity"
    slope = 0.01
    on_nonfinite = "update"

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: Optional[float] = 0.1, affine: bool = True,
                 track_running_stats: bool = True, device: Any = None, dtype: Any = None, *, activation: str = "identity",
                 slope: float = 0.01, on_nonfinite: str = "update") -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)  # type: ignore[call-arg]
        _activation(activation)
        _guard(on_nonfinite)
        _eps(eps)
        _number("slope", slope)
        if momentum is not None:
            _weight(momentum)
        self.activation, self.slope, self.on_nonfinite = activation, slope, on_nonfinite

    def forward(self: Any, x: Optional[Tensor] = None, residual: Optional[Tensor] = None, input: Optional[Tensor] = None) -> Tensor:
        """y = activation(norm(x) + residual). x, residual: [N, C, *space]. input: PyTorch's name of x."""
        # TorchScript compiles one side of this only, and a trace records no more than PyTorch's own operations.
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            given = input if x is None else x
            assert given is not None, "x is not given"
            y: Tensor = self._by_pytorch(given, residual)
        elif torch.jit.is_tracing():  # type: ignore[attr-defined]
            y = self._by_pytorch(_one_of(x, input), residual)
        else:
            y = self._by_evenkeel(_one_of(x, input), residual)
        return y

    def _by_pytorch(self: Any, x: Tensor, residual: Optional[Tensor]) -> Tensor:
        """forward in operations of PyTorch, for graphs: torch.jit.trace, torch.jit.script, torch.onnx.export."""
        self._check_input_dim(x)
        mean: Optional[Tensor] = self.running_mean
        var: Optional[Tensor] = self.running_var
        given = self.momentum
        weight = 0.0 if given is None else float(given)
        if self.training and self.track_running_stats:
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
                if given is None:
                    weight = 1.0 / float(self.num_batches_tracked)
        elif self.training:
            mean, var = None, None
        y = F.batch_norm(x, mean, var, self.weight, self.bias, self.training or (mean is None and var is None), weight, self.eps)
        if residual is not None:
            y = y + residual
        return _activated(y, self.activation, self.slope)

    def _tensors(self: Any) -> tuple[Optional[Tensor], ...]:
        """weight, bias, running_mean, running_var, num_batches_tracked, as the attributes of these names say."""
        if type(self) in _THEIRS:  # an attribute of a module is a search
            values, buffers = self._parameters, self._buffers
            try:
                return values["weight"], values["bias"], buffers["running_mean"], buffers["running_var"], buffers["num_batches_tracked"]
            except KeyError:  # torch.nn.utils.prune and others put an attribute in the place of a parameter
                pass
        # A class derived from ours may hold them elsewhere: torch.nn.utils.stateless, torch.nn.utils.parametrize.
        return self.weight, self.bias, self.running_mean, self.running_var, self.num_batches_tracked

    def _by_evenkeel(self: Any, x: Tensor, residual: Optional[Tensor]) -> Tensor:
        if not isinstance(x, Tensor):
            node = _node_of_fx(self, x, residual)
            if node is not None:
                return node
            _refuse_tensor("x", x)
        self._check_input_dim(x)
        gamma, beta, mean, var, counter = self._tensors()
        training = self.training
        weight = self.momentum
        if training and self.track_running_stats:
            if weight is not None or counter is None:
                weight = _weight(0.0 if weight is None else weight)
            if counter is not None and (counter.dtype is not torch.int64 or counter.is_neg() or x.numel() == 0):
                if not 0 <= float(counter) <= 2**62:  # as the extension asks of an int64
                    raise UsageError(f"num_batches_tracked is {counter.item()}; expected the number of batches before this one, 0 to 2^62")
                counter.add_(1)
                weight, counter = (1 / float(counter) if weight is None else weight), None
        else:
            weight, counter = 0.0, None
            if training:
                mean = var = None
        settings = _Settings(training or (mean is None and var is None), weight, _number("eps", self.eps), _activation(self.activation),
                             _number("slope", self.slope), _guard(self.on_nonfinite))
        return _apply(x, gamma, beta, residual, mean, var, counter, settings)

    def extra_repr(self: Any) -> str:
        text: str = super().extra_repr()  # type: ignore[misc]
        return text if self.activation == "identity" else f"{text}, activation={self.activation!r}"


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):  # type: ignore[misc]
    """torch.nn.BatchNorm1d by evenkeel. x: [N, C] or [N, C, L]."""


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):  # type: ignore[misc]
    """torch.nn.BatchNorm2d by evenkeel. x: [N, C, H, W], channels first or channels last."""


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):  # type: ignore[misc]
    """torch.nn.BatchNorm3d by evenkeel. x: [N, C, D, H, W], channels first or channels last."""


_OURS: dict[type, type] = {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d, nn.BatchNorm3d: BatchNorm3d}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}


def _copy_sharing_tensors(model: nn.Module) -> nn.Module:
    """A model of its own whose parameters and buffers are those of `model`."""
    memo = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # whatever a module keeps: results of torch.nn.utils.weight_norm, activations, locks
        raise UsageError(f"the model cannot be copied ({error}); give inplace=True, which copies nothing: the class of its norms changes, and nothing "
                         "else") from error


def _require_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        hint = ": a state dict has no norms that could be changed; load it into the model" if isinstance(model, Mapping) else ""
        raise UsageError(f"model is of type {type(model).__name__}; expected a torch.nn.Module{hint}")


def _norm_of_script(module: nn.Module) -> bool:
    script: Any = torch.jit.ScriptModule  # type: ignore[attr-defined]
    return isinstance(module, script) and "BatchNorm" in str(module.original_name)


def convert(model: nn.Module, inplace: bool = False) -> nn.Module:
    """The model with evenkeel's norms in the place of every nn.BatchNorm1d, 2d and 3d. Parameters and buffers stay the same tensors.

    inplace=False leaves `model` as it is and gives another that shares its tensors: both train the same weights. inplace=True changes
    the class of the modules and nothing else, so that optimizers, hooks and other references to them stay good.
    SyncBatchNorm, lazy norms before their first batch, classes of others that derive from PyTorch's norms, norms in TorchScript and norms with an eps of 0
    are left, with a warning.
    """
    _require_model(model)
    model = model if inplace else _copy_sharing_tensors(model)
    left = []
    for name, module in model.named_modules():
        if type(module) in _OURS and module.eps > 0:
            module.__class__ = _OURS[type(module)]
        elif type(module) in _OURS:
            left.append(f"{name or 'the model itself'} (eps is {module.eps})")
        elif _norm_of_script(module) or isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, _BatchNorm):
            left.append(f"{name or 'the model itself'} ({type(module).__name__})")
    if left:
        warnings.warn(f"evenkeel.torch.convert left {len(left)} norms as they are: " + ", ".join(left), stacklevel=2)
    return model


def revert(model: nn.Module, inplace: bool = False) -> nn.Module:
    """The model with PyTorch's norms in the place of evenkeel's; convert() the other way round.

    Throws UsageError for a norm with an activation, which PyTorch's norms do not have, and for one of a class that derives from ours.
    """
    _require_model(model)
    ours = [(name or "the model itself", module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    for name, module in ours:
        if type(module) not in _THEIRS:
            raise UsageError(f"{name} is a {type(module).__name__}, a class that derives from evenkeel's norms, of which nobody knows what PyTorch's class "
                             "would be; put a norm of PyTorch in its place, or remove what changed its class (torch.nn.utils.parametrize)")
        if module.activation != "identity":
            raise UsageError(f"{name} has the activation {module.activation}, which PyTorch's norms do not have; "
                             "put the activation behind a norm without one")
    model = model if inplace else _copy_sharing_tensors(model)
    for norm in list(model.modules()):
        if type(norm) in _THEIRS:
            norm.__class__ = _THEIRS[type(norm)]
    return model
