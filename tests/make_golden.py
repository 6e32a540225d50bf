#!/usr/bin/python3
"""Asks PyTorch the questions whose answers tests/golden/*.safetensors hold; tests/golden/README.md describes the files.

    /usr/bin/python3 tests/make_golden.py            # writes tests/golden/*.safetensors
    /usr/bin/python3 tests/make_golden.py --check    # answers again and compares with the committed files

Needs Debian's python3-torch and python3-numpy. No random generator is used: every input is a formula of its index (`mix`),
which C++ evaluates to the same bits. Every input is exactly representable in fp32, so that the fp32 and the fp64 run
start from equal numbers and their distance is rounding inside the run alone.
"""

import argparse
import os
import sys

import numpy
import torch
from torch.nn import functional as F
from torch.optim import lr_scheduler

from golden_case import Case, coarse, distance, label, mix, read_safetensors, value, write_safetensors
from torch_models import CifarResNet, Cnn, CnnGap, Mlp

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden")


# ---- optimizers -------------------------------------------------------------------------------------------------------

# "decay": which parameters the weight decay touches: "weights" (those of conv and linear layers) or "all".
ADAM = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
OPTIMIZERS = {
    "sgd": {"kind": "sgd", "learning_rate": 0.1},
    "momentum": {"kind": "sgd", "learning_rate": 0.1, "momentum": 0.9},
    "nesterov": {"kind": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": True},
    "momentum_decay": {"kind": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01, "decay": "weights"},
    "rmsprop": {"kind": "rmsprop", "learning_rate": 0.01, "alpha": 0.99, "epsilon": 1e-8},
    "adam": {"kind": "adam", "learning_rate": 0.01, **ADAM},
    "adam_decay": {"kind": "adam", "learning_rate": 0.01, **ADAM, "weight_decay": 0.01, "decay": "weights"},
    "adamw": {"kind": "adamw", "learning_rate": 0.01, **ADAM, "weight_decay": 0.1, "decay": "weights"},
    "adamw_all": {"kind": "adamw", "learning_rate": 0.01, **ADAM, "weight_decay": 0.1, "decay": "all"},
}


def make_optimizer(spec, parameters):
    parameters, decay = list(parameters), spec.get("weight_decay", 0.0)
    groups = [{"params": parameters, "weight_decay": decay}]
    if spec.get("decay") == "weights":
        groups = [{"params": [p for p in parameters if p.dim() > 1], "weight_decay": decay},
                  {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0}]
    rate = spec["learning_rate"]
    if spec["kind"] == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=spec.get("momentum", 0.0), nesterov=spec.get("nesterov", False))
    if spec["kind"] == "rmsprop":
        return torch.optim.RMSprop(groups, lr=rate, alpha=spec["alpha"], eps=spec["epsilon"])
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[spec["kind"]]
    return kind(groups, lr=rate, betas=(spec["beta1"], spec["beta2"]), eps=spec["epsilon"])


# ---- one step (and three) from a given state --------------------------------------------------------------------------

STEP_MODELS = {  # name: (make, shape of the batch, classes, first stream: chosen so that check_precision is content)
    "mlp": (lambda: Mlp(20, (16, 12), 5), (8, 20), 5, 20000),
    "cnn": (lambda: Cnn((4, 6, 8), 1, 12, 5), (8, 1, 12, 12), 5, 11000),
    "cnn-gap": (lambda: CnnGap((4, 6, 8), 2, 5), (4, 2, 6, 10), 5, 18000),
    "resnet": (lambda: CifarResNet((1, 1), (4, 8), 3, 5), (5, 3, 8, 8), 5, 4000),
}


def step_state(model, stream):
    """A state with nothing at its default: weights, gamma, beta and the running statistics are all different numbers."""
    state = {}
    for i, (name, tensor) in enumerate(model.state_dict().items()):
        v = value(stream + i, tuple(tensor.shape)) if tensor.dim() > 0 else None
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
            state[name] = 1 + v / 2
        elif tensor.dim() == 1:
            state[name] = v / 2
        else:
            state[name] = v * 2.0 ** -shift_of(tensor)
    return state


def shift_of(weight):
    """The smallest s with 2^-s <= 1 / sqrt(fan in)."""
    fan_in, s = weight[0].numel(), 0
    while 4 ** s < fan_in:
        s += 1
    return s


def run_steps(make, state, x, labels, spec, dtype, steps):
    """The losses, and after each step the state and the logits in eval mode; also gradients and logits of the first."""
    model = make().to(dtype)
    model.load_state_dict(state)
    optimizer = make_optimizer(spec, model.parameters())
    losses, states, gradients, first_logits = [], [], {}, None
    for step in range(steps):
        model.train()
        optimizer.zero_grad()
        logits = model(x.to(dtype))
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        if step == 0:
            gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
            first_logits = logits.detach()
        optimizer.step()
        losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            states.append(({k: v.clone() for k, v in model.state_dict().items()}, model(x.to(dtype))))
    return losses, states, gradients, first_logits


def step_case(name):
    make, shape, classes, stream = STEP_MODELS[name]
    x, labels = value(stream + 900, shape) * 2, label(stream + 901, shape[0], classes)
    state = step_state(make(), stream)
    case = Case(model=name, input_shape=list(shape), optimizers=OPTIMIZERS)
    case.add("x", x, "float32")
    case.add("labels", labels)
    for key, tensor in state.items():
        case.add(f"param.{key}", tensor, None if tensor.dtype == torch.int64 else "float32")
    with KinkDistance() as kink:
        for opt, spec in OPTIMIZERS.items():
            case.set(f"optimizer.{opt}", spec)
            for dtype, suffix in ((torch.float32, ""), (torch.float64, "64")):
                add_steps(case, opt, suffix, *run_steps(make, state, x, labels, spec, dtype, 3))
    check_precision(case, name, kink)
    return case


def add_steps(case, opt, suffix, losses, states, gradients, logits):
    if opt == "sgd":  # the same for every optimizer
        case.add("loss" + suffix, [losses[0]], "float64")
        case.add("logits" + suffix, logits)
        for key, gradient in gradients.items():
            case.add(f"grad{suffix}.{key}", gradient)
    case.add(f"losses{suffix}.{opt}", losses, "float64")
    for after, (state, eval_logits) in (("after", states[0]), ("third", states[2])):
        for key, tensor in state.items():
            if suffix == "" or tensor.dtype != torch.int64:
                case.add(f"{after}{suffix}.{opt}.{key}", tensor)
        case.add(f"{after}{suffix}.{opt}.eval_logits", eval_logits)


class KinkDistance:
    """While active: the smallest |z| that any relu was given in fp64. A sign that rounding decides would decide the test."""

    def __enter__(self):
        self.least, self.relu = 1.0, F.relu
        F.relu = self.watched
        return self

    def __exit__(self, *_):
        F.relu = self.relu

    def watched(self, z):
        if z.dtype == torch.float64:
            self.least = min(self.least, z.detach().abs().min().item())
        return self.relu(z)


def check_precision(case, name, kink):
    """A case is of use only where fp32 PyTorch is itself far inside the bounds that the C++ tests ask for."""
    t, worst = case.tensors, {}
    for key in t:
        kind, _, rest = key.partition(".")
        if kind + "64" + ("." if rest else "") + rest in t:
            other = t[kind + "64" + ("." if rest else "") + rest]
            worst[kind] = max(worst.get(kind, 0), distance(t[key], other))
    print(f"  step_{name}: fp32 from fp64: " + ", ".join(f"{k} {v:.1e}" for k, v in worst.items())
          + f"; relu's input nearest to 0: {kink.least:.1e}")
    assert kink.least > 9e-6
    assert worst["loss"] < 3e-7 and worst["grad"] < 3e-6 and worst["after"] < 1e-6 and worst["third"] < 3e-6, worst


# ---- thirty steps -----------------------------------------------------------------------------------------------------

STEPS = 30
CLASSES = 10
LABEL_STREAM, PROTOTYPE_STREAM, NOISE_STREAM, WEIGHT_STREAM, NUDGE_STREAM = 1, 2, 3, 100, 500
# The prototype's share and the learning rates are chosen so that the losses fall and a relu gate that opens in one run and
# not in another, which fp32 cannot prevent in millions of them, moves the losses of `mlp` by less than 1e-4. (With a share
# of 1/8 and SGD at 0.05, fp32 PyTorch is 3e-4 to 4e-3 from its own fp64; Adam with a share of 1/4 up to 4e-4.)
TRAJECTORIES = {  # name: (make, batch, x's shape without the batch, share of the prototype, optimizer)
    "mlp_sgd": (Mlp, 128, (784,), 0.25, {"kind": "sgd", "learning_rate": 0.01, "momentum": 0.9}),
    "mlp_adam": (Mlp, 128, (784,), 0.5, {"kind": "adam", "learning_rate": 0.001, **ADAM, "epsilon": 1e-3}),
    "cnn_sgd": (Cnn, 32, (1, 28, 28), 0.5, {"kind": "sgd", "learning_rate": 0.01, "momentum": 0.9}),
    "cnn_adamw": (Cnn, 32, (1, 28, 28), 0.5, {"kind": "adamw", "learning_rate": 0.001, **ADAM, "weight_decay": 0.01,
                                              "decay": "weights"}),
}
# The fp32 runs: as PyTorch does it, with the initial weights off by at most one ulp, and other orders of summation.
RUNS_MLP = ["plain"] + [f"nudged_{k}" for k in range(1, 12)]
RUNS_CNN = RUNS_MLP[:8] + ["no_onednn", "channels_last"]


def trajectory_batch(step, batch, shape, share):
    """Examples step * batch ... : the prototype of the label's class, times share, plus noise (README, "The data")."""
    size, first = int(numpy.prod(shape)), step * batch
    labels = label(LABEL_STREAM, batch, CLASSES, first)
    prototypes = value(PROTOTYPE_STREAM, (CLASSES, size))
    x = prototypes[labels] * share + value(NOISE_STREAM, (batch, size), first * size)
    return x.reshape((batch,) + shape), labels


def trajectory_init(model):
    """name -> (stream, shift) of the parameters that are not gamma = 1 and beta = 0, and the state."""
    state, init = model.state_dict(), {}
    for i, (name, parameter) in enumerate(model.named_parameters()):
        if name.startswith("bn"):
            continue
        shift = shift_of(parameter if parameter.dim() > 1 else state[name.replace("bias", "weight")])
        init[name] = {"stream": WEIGHT_STREAM + i, "shift": shift}
        state[name] = value(WEIGHT_STREAM + i, tuple(parameter.shape)) * 2.0 ** -shift
    return init, state


def trajectory(name, dtype, run="plain"):
    make, batch, shape, share, spec = TRAJECTORIES[name]
    model = make().to(dtype)
    init, state = trajectory_init(model)
    if run.startswith("nudged"):
        for key, entry in init.items():
            nudge = value(NUDGE_STREAM + 100 * int(run[7:]) + entry["stream"], tuple(state[key].shape))
            state[key] = state[key] * (1 + nudge * 2.0 ** -23)
    model.load_state_dict(state)
    layout = torch.channels_last if run == "channels_last" else torch.contiguous_format
    model = model.to(memory_format=layout)
    optimizer, losses = make_optimizer(spec, model.parameters()), []
    for step in range(STEPS):
        x, labels = trajectory_batch(step, batch, shape, share)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x.to(dtype).contiguous(memory_format=layout)), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    x, labels = trajectory_batch(0, batch, shape, share)
    with torch.no_grad():
        eval_loss = F.cross_entropy(model(x.to(dtype)), labels).item()
    return losses, eval_loss, {k: v.contiguous() for k, v in model.state_dict().items() if v.dim() > 0}


def sample(tensor, most=256):
    """At most 256 values, evenly spaced: elements 0, k, 2 k, ... with k = max(1, n // 256)."""
    flat = tensor.reshape(-1)
    return flat[::max(1, flat.numel() // most)][:most]


def trajectory_case(name):
    make, batch, shape, share, spec = TRAJECTORIES[name]
    run_names = RUNS_MLP if make is Mlp else RUNS_CNN
    case = Case(model=name.split("_")[0], batch=batch, steps=STEPS, optimizer=spec, input_shape=[batch, *shape],
                init=trajectory_init(make())[0], label_stream=LABEL_STREAM, prototype_stream=PROTOTYPE_STREAM,
                noise_stream=NOISE_STREAM, prototype_share=share, runs=run_names)
    losses, eval_loss, final = trajectory(name, torch.float64)
    runs = []
    for run in run_names:
        with torch.backends.mkldnn.flags(enabled=run != "no_onednn"):
            runs.append(trajectory(name, torch.float32, run))
    case.add("loss64", losses, "float64")
    case.add("loss32", [run[0] for run in runs], "float64")
    case.add("eval_loss64", [eval_loss], "float64")
    case.add("eval_loss32", [run[1] for run in runs], "float64")
    for key, tensor in final.items():
        case.add(f"final64.{key}", sample(tensor))
        case.add(f"norm64.{key}", [tensor.norm().item()], "float64")
        case.add(f"final32.{key}", sample(runs[0][2][key]))
        case.add(f"norm32.{key}", [runs[0][2][key].double().norm().item()], "float64")
        case.add(f"distance32.{key}", [distance(sample(run[2][key]), sample(tensor)) for run in runs], "float64")
    report_trajectory(name, case.tensors, run_names)
    return case


def report_trajectory(name, t, run_names):
    print(f"  {name}: loss {t['loss64'][0]:.4f} -> {t['loss64'][-1]:.4f}, eval {t['eval_loss64'][0]:.4f}; off in fp32:")
    for i, run in enumerate(run_names):
        relative = (numpy.abs(t["loss32"][i] - t["loss64"]) / t["loss64"]).max()
        weights = max(t[k][i] for k in t if k.startswith("distance32."))
        print(f"    {run}: loss by {relative:.1e} relative at worst, final tensors by {weights:.1e}")
        assert relative < 8e-5 or name.startswith("cnn")


# ---- single operations ------------------------------------------------------------------------------------------------

def with_gradient(function, inputs, dy=None, stream=9):
    """y, dy and the gradients of sum(y * dy) with respect to the inputs, in fp64."""
    inputs = [None if t is None else t.clone().requires_grad_(True) for t in inputs]
    y = function(*inputs)
    dy = coarse(stream, tuple(y.shape)) if dy is None else dy
    gradients = iter(torch.autograd.grad(y, [t for t in inputs if t is not None], dy))
    return y, dy, [None if t is None else next(gradients) for t in inputs]


CONVOLUTIONS = {  # name: x's shape, output channels, kernel, stride, padding, dilation, groups, bias
    "plain": ((2, 3, 7, 9), 4, (3, 3), (1, 1), (1, 1), (1, 1), 1, False),
    "no_padding_bias": ((2, 3, 7, 9), 4, (5, 3), (1, 1), (0, 0), (1, 1), 1, True),
    "stride_2": ((3, 2, 7, 8), 5, (3, 3), (2, 2), (1, 1), (1, 1), 1, False),
    "all_unequal": ((2, 3, 8, 11), 4, (3, 5), (2, 3), (1, 2), (1, 1), 1, True),
    "wide_padding": ((2, 2, 4, 5), 3, (3, 3), (1, 1), (2, 2), (1, 1), 1, True),
    "dilation_2": ((2, 3, 9, 8), 4, (3, 3), (1, 1), (2, 2), (2, 2), 1, False),
    "dilation_unequal": ((2, 2, 7, 10), 3, (3, 2), (1, 2), (1, 2), (1, 3), 1, True),
    "groups_2": ((2, 4, 6, 5), 6, (3, 3), (1, 1), (1, 1), (1, 1), 2, True),
    "depthwise": ((2, 5, 6, 7), 5, (3, 3), (1, 1), (1, 1), (1, 1), 5, False),
    "depthwise_times_2_stride_2": ((2, 3, 7, 6), 6, (3, 3), (2, 2), (1, 1), (1, 1), 3, True),
    "pointwise": ((3, 4, 5, 3), 7, (1, 1), (1, 1), (0, 0), (1, 1), 1, True),
    "pointwise_stride_2": ((2, 4, 5, 6), 3, (1, 1), (2, 2), (0, 0), (1, 1), 1, False),
    "whole_image": ((2, 3, 4, 4), 5, (4, 4), (1, 1), (0, 0), (1, 1), 1, True),
    "groups_stride_dilation": ((2, 6, 9, 11), 4, (3, 3), (2, 2), (1, 2), (2, 1), 2, True),
}


def conv2d_case():
    case = Case()
    for name, (shape, outputs, kernel, stride, padding, dilation, groups, bias) in CONVOLUTIONS.items():
        x = coarse(10, shape)
        weight = coarse(11, (outputs, shape[1] // groups) + kernel)
        b = coarse(12, (outputs,)) if bias else None
        y, dy, (dx, dweight, dbias) = with_gradient(
            lambda x, w, b: F.conv2d(x, w, b, stride, padding, dilation, groups), [x, weight, b])
        case.add_sub_case(name, {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups},
                          x=x, weight=weight, bias=b, y=y, dy=dy, dx=dx, dweight=dweight, dbias=dbias)
    return case


def linear_case():
    case = Case()
    for name, n, inputs, outputs, bias in (("plain", 5, 7, 3, False), ("bias", 4, 9, 6, True), ("one_row", 1, 17, 33, True)):
        x, weight, b = coarse(20, (n, inputs)), coarse(21, (outputs, inputs)), coarse(22, (outputs,)) if bias else None
        y, dy, (dx, dweight, dbias) = with_gradient(F.linear, [x, weight, b])
        case.add_sub_case(name, {}, x=x, weight=weight, bias=b, y=y, dy=dy, dx=dx, dweight=dweight, dbias=dbias)
    return case


POOLS = {  # name: x's shape, kernel, stride, padding
    "plain": ((2, 3, 6, 8), (2, 2), (2, 2), (0, 0)),
    "odd_size": ((2, 2, 7, 5), (2, 2), (2, 2), (0, 0)),
    "overlap_padding": ((2, 3, 7, 9), (3, 3), (2, 2), (1, 1)),
    "stride_1": ((1, 2, 5, 6), (3, 3), (1, 1), (1, 1)),
    "all_unequal": ((2, 2, 9, 8), (2, 3), (3, 1), (1, 0)),
    "gaps": ((2, 2, 8, 9), (2, 2), (3, 3), (0, 0)),
    "whole_image": ((2, 3, 4, 5), (4, 5), (1, 1), (0, 0)),
}


def distinct(stream, shape):
    """A shuffled row of distinct multiples of 1/64 around 0: no two are equal, so that every maximum is unique."""
    count = int(numpy.prod(shape))
    ranks = numpy.argsort(mix(stream, count), kind="stable") - count // 2
    return torch.from_numpy(ranks / 64.0).reshape(shape)


def pool_case():
    case = Case()
    for name, (shape, kernel, stride, padding) in POOLS.items():
        settings, x = {"kernel": kernel, "stride": stride, "padding": padding}, distinct(30, shape)
        y, dy, (dx,) = with_gradient(lambda x: F.max_pool2d(x, kernel, stride, padding), [x])
        case.add_sub_case("max_" + name, {"op": "max_pool", **settings}, x=x, y=y, dy=dy, dx=dx)
        for include in ((False, True) if padding != (0, 0) else (False,)):
            y, dy, (dx,) = with_gradient(lambda x: F.avg_pool2d(x, kernel, stride, padding, count_include_pad=include), [x])
            case.add_sub_case(f"avg_{name}" + ("_count_padding" if include else ""),
                              {"op": "avg_pool", **settings, "count_include_pad": include}, x=x, y=y, dy=dy, dx=dx)
    x = torch.floor(coarse(31, (2, 2, 6, 6)) * 2)  # -2 .. 1: nearly every window has equal maxima; the first one wins
    y, dy, (dx,) = with_gradient(lambda x: F.max_pool2d(x, 3, 2, 1), [x])
    case.add_sub_case("max_ties", {"op": "max_pool", "kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)}, x=x, y=y, dy=dy, dx=dx)
    x = coarse(32, (3, 4, 5, 7))
    y, dy, (dx,) = with_gradient(lambda x: F.adaptive_avg_pool2d(x, 1), [x])
    case.add_sub_case("global_avg", {"op": "global_avg_pool"}, x=x, y=y, dy=dy, dx=dx)
    return case


def activation_case():
    case = Case()
    tiny = [2.0 ** -e for e in (1, 2, 3, 6, 10, 14, 20, 30, 60, 100, 126)]
    large = [9.0, 10.5, 13.0, 16.0, 20.0, 30.0, 50.0, 87.0, 88.5, 89.0, 104.0, 1e3, 1e6, 1e30]
    special = tiny + [float(numpy.float32(v)) for v in large]
    x = torch.cat([torch.arange(-512, 513) / 64.0, torch.tensor(special + [-v for v in special], dtype=torch.float64)])
    functions = {
        "relu": (F.relu, {}), "leaky_relu": (lambda x: F.leaky_relu(x, 0.01), {"slope": 0.01}),
        "leaky_relu_quarter": (lambda x: F.leaky_relu(x, 0.25), {"slope": 0.25}),
        "sigmoid": (torch.sigmoid, {}), "tanh": (torch.tanh, {}), "silu": (F.silu, {}),
        "gelu": (F.gelu, {"approximate": "none"}),
        "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), {"approximate": "tanh"}),
    }
    for name, (function, settings) in functions.items():
        y, dy, (dx,) = with_gradient(function, [x], dy=torch.ones_like(x))
        assert torch.isfinite(y).all(), name
        # At huge |x| PyTorch's own formulas of a gradient give inf * 0; the right value is a limit: 1 on the right, 0 on the left.
        dx = torch.where(torch.isfinite(dx), dx, (x > 0).double())
        case.add_sub_case(name, settings, x=x, y=y, dx=dx)
    return case


def loss_case():
    case = Case()
    plain, labels = value(40, (7, 5)) * 4, label(41, 7, 5)
    extreme = plain.clone()
    extreme[0, 1], extreme[1, 2], extreme[2] = 90.0, -200.0, 0.0
    extreme[3] = torch.tensor([1000.0, -1000.0, 999.0, 0.0, 998.5])
    for name, logits in (("plain", plain), ("extreme", extreme)):
        for smoothing in (0.0, 0.1, 0.3):
            loss, _, (dx,) = with_gradient(lambda x: F.cross_entropy(x, labels, label_smoothing=smoothing), [logits],
                                           dy=torch.tensor(1.0, dtype=torch.float64))
            case.add_sub_case(f"cross_entropy_{name}_smoothing_{round(100 * smoothing)}", {"op": "softmax_cross_entropy", "label_smoothing": smoothing},
                              x=logits, labels=labels, loss=loss.reshape(1), dx=dx)
    for shape in ((6, 1), (4, 3)):
        x, target = value(42, shape) * 2, value(43, shape) * 2
        loss, _, (dx,) = with_gradient(lambda x: F.mse_loss(x, target), [x], dy=torch.tensor(1.0, dtype=torch.float64))
        case.add_sub_case(f"mse_{shape[0]}x{shape[1]}", {"op": "mse", "mean_over": "all elements"},
                          x=x, target=target, loss=loss.reshape(1), dx=dx)
    return case


def batch_norm_case():
    case = Case()
    shapes = {"dense": (7, 5), "image": (3, 4, 5, 2), "two_values": (2, 3), "one_image": (1, 3, 4, 5), "wide": (5, 37)}
    for name, shape in shapes.items():
        channels, view = shape[1], (1, -1) + (1,) * (len(shape) - 2)
        offset = torch.floor(value(54, (channels,)) * 100).reshape(view)
        x = value(50, shape) * 2 + offset
        gamma, beta = 1 + value(51, (channels,)) / 2, value(52, (channels,))
        gamma[0], beta[-1] = -gamma[0], 0.0
        mean, var = value(53, (channels,)), 1 + value(55, (channels,)) / 2
        new_mean, new_var = mean.clone(), var.clone()
        y, dy, (dx, dgamma, dbeta) = with_gradient(
            lambda x, g, b: F.batch_norm(x, new_mean, new_var, g, b, training=True, momentum=0.1, eps=1e-5), [x, gamma, beta])
        y_eval, _, (dx_eval, dgamma_eval, dbeta_eval) = with_gradient(
            lambda x, g, b: F.batch_norm(x, mean, var, g, b, training=False, eps=1e-5), [x, gamma, beta], dy=dy)
        case.add_sub_case(name, {"epsilon": 1e-5, "new_batch_weight": 0.1}, x=x, gamma=gamma, beta=beta, running_mean=mean,
                          running_var=var, y=y, dy=dy, dx=dx, dgamma=dgamma, dbeta=dbeta, new_running_mean=new_mean,
                          new_running_var=new_var, y_eval=y_eval, dx_eval=dx_eval, dgamma_eval=dgamma_eval, dbeta_eval=dbeta_eval)
    return case


def ghost_norm(x, gamma, beta, size, mean, var):
    """Batch norm of every `size` examples; a last group of one value per channel joins the one before. The running statistics take one
    step towards the mean of the groups' means (by their size) and their pooled unbiased variance."""
    space = x[0, 0].numel()
    parts = list(torch.split(x, size))
    if len(parts) > 1 and len(parts[-1]) * space == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    dims = [0] + list(range(2, x.dim()))
    counts = [len(part) * space for part in parts]
    means = sum(part.mean(dims) * n for part, n in zip(parts, counts)) / sum(counts)
    pooled = sum(part.var(dims, unbiased=False) * n for part, n in zip(parts, counts)) / (sum(counts) - len(parts))
    new = 0.9 * mean + 0.1 * means.detach(), 0.9 * var + 0.1 * pooled.detach()
    return torch.cat([F.batch_norm(part, None, None, gamma, beta, training=True, eps=1e-5) for part in parts]), new


def renorm(x, gamma, beta, r_max, d_max, mean, var):
    """Ioffe 2017, algorithm 1; no gradient flows through r and d. sigma as in Keras: sqrt(variance + eps)."""
    dims, view = [0] + list(range(2, x.dim())), (1, -1) + (1,) * (x.dim() - 2)
    batch_mean, batch_var = x.mean(dims), x.var(dims, unbiased=False)
    sigma, running_sigma = torch.sqrt(batch_var + 1e-5), torch.sqrt(var + 1e-5)
    r = (sigma / running_sigma).clamp(1 / r_max, r_max).detach()
    d = ((batch_mean - mean) / running_sigma).clamp(-d_max, d_max).detach()
    hat = (x - batch_mean.view(view)) / sigma.view(view) * r.view(view) + d.view(view)
    new = 0.9 * mean + 0.1 * batch_mean.detach(), 0.9 * var + 0.1 * x.var(dims, unbiased=True).detach()
    return hat * gamma.view(view) + beta.view(view), new


def norm_kinds_case():
    """Norms that are not of the whole batch, in the network  x -> norm -> flatten -> linear(1) -> mean (z - 1)^2."""
    case = Case()
    cases = {
        "ghost_image": ((10, 3, 4, 5), {"kind": "batch", "ghost_batch": 4}),
        "ghost_dense": ((9, 5), {"kind": "batch", "ghost_batch": 4}),
        "ghost_whole": ((6, 3, 2, 2), {"kind": "batch", "ghost_batch": 6}),
        "ghost_blocks": ((40, 3, 2, 2), {"kind": "batch", "ghost_batch": 16}),
        "renorm_image": ((6, 4, 3, 3), {"kind": "renorm", "r_max": 1.25, "d_max": 0.25}),
        "renorm_dense": ((12, 5), {"kind": "renorm", "r_max": 3.0, "d_max": 5.0}),
        "group_image": ((5, 6, 3, 4), {"kind": "group", "groups": 3}),
        "group_dense": ((5, 12), {"kind": "group", "groups": 3}),
        "layer_image": ((4, 6, 3, 4), {"kind": "layer"}),
        "layer_dense": ((7, 10), {"kind": "layer"}),
        "instance_image": ((4, 5, 3, 4), {"kind": "instance"}),
    }
    for name, (shape, settings) in cases.items():
        channels, view = shape[1], (1, -1) + (1,) * (len(shape) - 2)
        x = value(60, shape) * 2 + torch.floor(value(61, (channels,)) * 3).reshape(view)
        gamma, beta = 1 + value(62, (channels,)) / 2, value(63, (channels,))
        gamma[0], gamma[-1] = -gamma[0], 0.0
        mean, var = value(64, (channels,)), 1 + value(65, (channels,)) / 2
        weight = value(66, (1, x[0].numel()))
        new = None

        def network(x, g, b):
            nonlocal new
            kind = settings["kind"]
            if kind == "batch":
                y, new = ghost_norm(x, g, b, settings["ghost_batch"], mean, var)
            elif kind == "renorm":
                y, new = renorm(x, g, b, settings["r_max"], settings["d_max"], mean, var)
            elif kind == "layer" and x.dim() == 2:
                y = F.layer_norm(x, (channels,), g, b, eps=1e-5)
            else:
                groups = settings.get("groups", 1) if kind != "instance" else channels
                y = F.instance_norm(x, weight=g, bias=b, eps=1e-5) if kind == "instance" else F.group_norm(x, groups, g, b, 1e-5)
            return y

        inputs = [t.clone().double().requires_grad_() for t in (x, gamma, beta)]
        y = network(*inputs)
        loss = ((y.flatten(1) @ weight.double().T - 1) ** 2).mean()
        loss.backward()
        dx, dgamma, dbeta = (t.grad for t in inputs)
        extra = {} if new is None else {"running_mean": mean, "running_var": var, "new_running_mean": new[0],
                                        "new_running_var": new[1]}
        case.add_sub_case(name, settings, x=x, gamma=gamma, beta=beta, weight=weight, y=y, loss=loss.reshape(1), dx=dx,
                          dgamma=dgamma, dbeta=dbeta, **extra)
    return case


def clip_case():
    case = Case()
    gradients = [value(60, (3, 4)), value(61, (5,)) * 3, value(62, (2, 2, 3, 3)) / 8]
    for name, max_norm in (("above", 1.0), ("slightly_above", 4.0), ("below", 100.0)):
        clipped = [torch.nn.Parameter(torch.zeros_like(g)) for g in gradients]
        for parameter, gradient in zip(clipped, gradients):
            parameter.grad = gradient.clone()
        norm = torch.nn.utils.clip_grad_norm_(clipped, max_norm)
        case.add_sub_case(name, {"max_norm": max_norm, "added_to_norm": 1e-6}, norm=norm.reshape(1),
                          **{f"grad{i}": g for i, g in enumerate(gradients)}, **{f"clipped{i}": p.grad for i, p in enumerate(clipped)})
    return case


# ---- schedules --------------------------------------------------------------------------------------------------------

def rates(learning_rate, make, steps):
    """The learning rate that each of the steps 0, 1, ... would use."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=learning_rate)
    scheduler, values = make(optimizer), []
    for step in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step + 1 < steps:
            scheduler.step()
    return numpy.array(values)


def one_cycle(total, max_rate, rise=0.3, start=25.0, final=1e4):
    settings = {"schedule": "one_cycle", "total_steps": total, "max_learning_rate": max_rate, "rise": rise,
                "start_divisor": start, "final_divisor": final}
    return settings, rates(max_rate, lambda o: lr_scheduler.OneCycleLR(
        o, max_rate, total_steps=total, pct_start=rise, div_factor=start, final_div_factor=final, cycle_momentum=False), total)


def cosine(total, rate, least=0.0):
    settings = {"schedule": "cosine", "total_steps": total, "learning_rate": rate, "least_learning_rate": least}
    return settings, rates(rate, lambda o: lr_scheduler.CosineAnnealingLR(o, total, least), total + 1)


def step_schedule(every, factor, rate, steps):
    settings = {"schedule": "step", "every": every, "factor": factor, "learning_rate": rate}
    return settings, rates(rate, lambda o: lr_scheduler.StepLR(o, every, factor), steps)


def warm_up(start, over, rate, steps):
    settings = {"schedule": "warm_up", "start_factor": start, "warm_up_steps": over, "learning_rate": rate}
    return settings, rates(rate, lambda o: lr_scheduler.LinearLR(o, start, 1.0, over), steps)


def schedule_case():
    case, cases = Case(), {
        "one_cycle_100": one_cycle(100, 3e-3), "one_cycle_1407": one_cycle(1407, 3e-3), "one_cycle_10": one_cycle(10, 0.1),
        "one_cycle_7_half": one_cycle(7, 1.0, rise=0.5, start=10.0, final=100.0),
        "cosine_50": cosine(50, 0.1), "cosine_21_least": cosine(21, 0.4, least=0.01),
        "step_10": step_schedule(10, 0.5, 0.1, 45), "step_7": step_schedule(7, 0.1, 1.0, 29),
        "warm_up_from_tenth": warm_up(0.1, 20, 0.2, 30), "warm_up_8": warm_up(1 / 8, 7, 0.2, 12),
    }
    for name, (settings, values) in cases.items():
        case.set("cases", (case.metadata.get("cases", "") + " " + name).strip())
        case.set(name, settings)
        case.add(f"{name}.rates", values, "float64")
    return case


# ---- all files --------------------------------------------------------------------------------------------------------

def make_all():
    """File name -> a function that makes its case."""
    files = {f"step_{name}": (lambda name=name: step_case(name)) for name in STEP_MODELS}
    files |= {f"trajectory_{name}": (lambda name=name: trajectory_case(name)) for name in TRAJECTORIES}
    return files | {"op_conv2d": conv2d_case, "op_linear": linear_case, "op_pool": pool_case, "op_activation": activation_case,
                    "op_loss": loss_case, "op_batch_norm": batch_norm_case, "op_norm_kinds": norm_kinds_case, "clip": clip_case, "schedules": schedule_case}


def compare(name, case):
    """The number of tensors of a committed file that PyTorch here answers differently.

    fp64 must agree to 1e-9, one step and single operations to fp32's rounding. The fp32 runs of thirty steps depend on the
    processor's vector width and differ as they differ among themselves; of them only types and shapes are compared.
    """
    tensors, metadata = read_safetensors(os.path.join(GOLDEN, name + ".safetensors"))
    wrong = sorted(set(tensors) ^ set(case.tensors))
    wrong += [key for key in case.metadata if key != "made_by" and metadata.get(key) != case.metadata[key]]
    for key in set(tensors) & set(case.tensors):
        old, new = tensors[key], case.tensors[key]
        fp64 = "64" in key.split(".")[0] or name == "schedules"
        bound = 1e-9 if fp64 else numpy.inf if name.startswith("trajectory") else 1e-5
        if old.dtype != new.dtype or old.shape != new.shape or distance(new, old) > bound:
            wrong.append(key)
    for key in wrong:
        print(f"  {name}: '{key}' differs from the committed file")
    return len(wrong)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where an answer differs from the file")
    parser.add_argument("--only", metavar="NAME", help="one file, without .safetensors")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the sums of one thread are the same every time
    wrong, total = 0, 0
    for name, make in make_all().items():
        if options.only in (None, name):
            case = make()
            if options.check:
                wrong += compare(name, case)
            else:
                path = os.path.join(GOLDEN, name + ".safetensors")
                write_safetensors(path, case.tensors, case.metadata)
                total += os.path.getsize(path)
                print(f"{name}: {len(case.tensors)} tensors, {os.path.getsize(path)} bytes")
    print(f"{wrong} answers differ" if options.check else f"{total} bytes in all")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
