"""Takes additions and activations that follow evenkeel's norms into them, in the graph of a model: evenkeel.torch.convert(model, fuse=True)."""
from __future__ import annotations

import itertools
import operator
from collections import Counter
from typing import Any, Optional

import torch
from torch import nn
from torch.fx.graph import Graph
from torch.fx.graph_module import GraphModule
from torch.fx.node import Node
from torch.fx._symbolic_trace import Tracer
from torch.nn import functional as F

from evenkeel._core import UsageError

_OF_MODULE = {nn.ReLU: "relu", nn.LeakyReLU: "leaky_relu", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh", nn.SiLU: "silu", nn.GELU: "gelu"}
_OF_FUNCTION: dict[Any, str] = {
    F.relu: "relu", F.relu_: "relu", torch.relu: "relu", torch.relu_: "relu", F.leaky_relu: "leaky_relu", torch.sigmoid: "sigmoid",
    F.sigmoid: "sigmoid", torch.tanh: "tanh", F.tanh: "tanh", F.silu: "silu", F.gelu: "gelu"}
_OF_METHOD = {"relu": "relu", "relu_": "relu", "sigmoid": "sigmoid", "sigmoid_": "sigmoid", "tanh": "tanh", "tanh_": "tanh"}
_IN_PLACE = {"iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor", "ilshift", "irshift"}
_ADDITIONS: dict[str, set[Any]] = {"call_function": {operator.add, operator.iadd, torch.add}, "call_method": {"add", "add_"}}


def _graph_of(model: nn.Module, training: bool) -> Graph:
    """The graph of the model in this mode; the modes of its modules are as before."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        graph: Graph = Tracer().trace(model)
        return graph
    except UsageError:
        raise
    except Exception as error:  # whatever a forward() does with what is no tensor
        raise UsageError(f"torch.fx cannot follow the forward() of {type(model).__name__} ({error}); expected one without decisions by "
                         "values of tensors: call convert(model) without fuse=True, or on the parts that can be followed") from error
    finally:
        for module, mode in modes.items():
            module.training = mode


def _activation_of(node: Node, model: nn.Module) -> Optional[tuple[str, float]]:
    """(activation, slope) that a node computes of its first argument; None where it is another operation."""
    slope, gelu = 0.01, "none"
    name: Optional[str] = None
    if node.op == "call_module":
        module: Any = model.get_submodule(str(node.target))
        name = _OF_MODULE.get(type(module))
        slope, gelu = getattr(module, "negative_slope", slope), getattr(module, "approximate", gelu)
    elif node.op == "call_function":
        name = _OF_FUNCTION.get(node.target)
        rest = dict(node.kwargs)
        if name == "leaky_relu":
            slope = rest.pop("negative_slope", node.args[1] if len(node.args) > 1 else slope)  # type: ignore[assignment]
        gelu = rest.pop("approximate", gelu)  # type: ignore[assignment]
        rest.pop("inplace", None)
        if rest:  # the argument itself by its name
            name = None
    elif node.op == "call_method":
        name = _OF_METHOD.get(str(node.target))
    if name is None or len(node.args) < 1:
        return None
    return (name if name != "gelu" or gelu == "none" else "gelu_tanh"), float(slope)


def _leaves_alone(node: Node, model: nn.Module) -> bool:
    """Whether an operation changes none of the tensors that it is given, as far as its name and arguments say."""
    if node.op == "call_module":
        return not any(getattr(module, "inplace", False) for module in model.get_submodule(str(node.target)).modules())
    if node.op in ("call_function", "call_method"):
        name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "_")
        in_place = name.endswith("_") or name == "setitem" or (getattr(node.target, "__module__", "") == "_operator" and name in _IN_PLACE)
        return not in_place and not any(value is True for value in (*node.args, *node.kwargs.values()))  # F.relu(x, True)
    return node.op == "get_attr"


def _added_to(norm: Node, node: Node, model: nn.Module) -> Optional[Node]:
    """What `node` adds to what the norm makes, where that is another tensor, and no operation between the two may change one."""
    if node.target not in _ADDITIONS.get(node.op, ()) or node.kwargs or len(node.args) != 2:
        return None
    others = [argument for argument in node.args if argument is not norm]
    if len(others) != 1 or not isinstance(others[0], Node):
        return None
    between = norm.next
    while between is not node:
        if not _leaves_alone(between, model):
            return None
        between = between.next
    other: Node = others[0]
    return other


def _replace(node: Node, by: Node) -> None:
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def _keep_state(graph: nn.Module, model: nn.Module) -> None:
    """Gives the graph what has parameters or buffers and is not called, or is called by another name: for the same state dict."""
    for name, value in model._parameters.items():
        if name not in graph._parameters:
            graph.register_parameter(name, value)
    for name, buffer in model._buffers.items():
        if name not in graph._buffers:
            graph.register_buffer(name, buffer, persistent=name not in model._non_persistent_buffers_set)
    for name, child in model._modules.items():
        there = graph._modules.get(name)
        if child is None or there is child:
            continue
        if there is not None:
            _keep_state(there, child)
        elif next(itertools.chain(child.parameters(), child.buffers()), None) is not None:
            graph.add_module(name, child)


def fused(model: nn.Module, norms: set[type]) -> nn.Module:
    """A torch.fx.GraphModule that computes what `model` does. Of each norm of the types `norms` that is called once and whose output goes
    nowhere else, the addition of a tensor and the activation that follow are done by the norm. Changes the norms' activation and slope."""
    graph = _graph_of(model, True)
    if graph.python_code("self").src != _graph_of(model, False).python_code("self").src:
        raise UsageError(f"the forward() of {type(model).__name__} does other things in training than behind eval(), and a graph keeps one "
                         "of them; expected modules where that is so, as nn.Dropout in the place of F.dropout: or call convert(model) "
                         "without fuse=True")
    modules = dict(model.named_modules(remove_duplicate=False))
    calls = Counter(id(modules[str(node.target)]) for node in graph.nodes if node.op == "call_module")
    for node in reversed(list(graph.nodes)):  # of two norms that are added, the later one has its output in the cache
        module: Any = modules.get(str(node.target)) if node.op == "call_module" else None
        if type(module) not in norms or calls[id(module)] > 1 or module.activation != "identity" or len(node.args) != 1:
            continue
        if "residual" not in node.kwargs and len(node.users) == 1:
            addition = next(iter(node.users))
            residual = _added_to(node, addition, model)
            if residual is not None:
                addition.prepend(node)  # where the other tensor is there
                node.kwargs = {**node.kwargs, "residual": residual}
                _replace(addition, node)
        if len(node.users) == 1:
            behind = next(iter(node.users))
            found = _activation_of(behind, model) if behind.args[:1] == (node,) else None
            if found is not None and list(itertools.chain(behind.args[1:], behind.kwargs.values())).count(node) == 0:
                module.activation, module.slope = found
                _replace(behind, node)
    graph.lint()
    result: nn.Module = GraphModule(model, graph, type(model).__name__)
    _keep_state(result, model)
    return result
