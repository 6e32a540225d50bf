"""evenkeel.torch in the graphs of PyTorch: torch.jit.trace, torch.jit.script, torch.onnx.export."""
import copy
import io

import pytest

torch = pytest.importorskip("torch")

from torch import nn

import evenkeel
import evenkeel.torch as ours
from test_torch import Cnn, FP32, assert_twins, error

ALL_ACTIVATIONS = ["identity", "relu", "leaky_relu", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu"]


class Fused(nn.Module):
    """A norm with an activation and a residual, as a model has it."""

    def __init__(self, activation, **arguments):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = ours.BatchNorm2d(3, activation=activation, slope=0.2, **arguments)

    def forward(self, x):
        return self.norm(self.conv(x), x)


@pytest.mark.parametrize("activation", ALL_ACTIVATIONS)
@pytest.mark.parametrize("make", [lambda model, x: torch.jit.trace(model, x), lambda model, x: torch.jit.script(model)])
def test_graphs_compute_what_the_module_does(make, activation):
    torch.manual_seed(8)
    model = Fused(activation).eval()
    model.norm.running_mean.uniform_(-1, 1), model.norm.running_var.uniform_(0.5, 2)
    graph = make(model, torch.randn(4, 3, 6, 6))
    file = io.BytesIO()
    torch.jit.save(graph, file)
    file.seek(0)
    again = torch.jit.load(file)
    for x in (torch.randn(4, 3, 6, 6), torch.randn(2, 3, 9, 7)):
        assert error(again(x), model(x)) < FP32
    assert type(model.norm) is ours.BatchNorm2d


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("track", [True, False])
def test_a_scripted_module_trains(track, momentum):
    torch.manual_seed(8)
    a = Fused("relu", momentum=momentum, track_running_stats=track)
    b = torch.jit.script(copy.deepcopy(a))
    for mode in (True, True, False):
        a.train(mode), b.train(mode)
        x = torch.randn(4, 3, 6, 6)
        assert error(b(x), a(x)) < FP32
    assert_twins(a, b)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_a_trace_in_training_moves_the_running_statistics_as_the_module_does(momentum):
    torch.manual_seed(8)
    a = ours.BatchNorm1d(3, momentum=momentum)
    b = copy.deepcopy(a)
    x = torch.randn(8, 3)
    torch.jit.trace(a, x, check_trace=False), b(x)
    assert_twins(a, b)


def test_a_trace_of_the_function():
    mean, var, weight = torch.rand(3), torch.rand(3) + 0.5, torch.rand(3)
    run = lambda x, residual: ours.batch_norm(x, mean, var, weight, activation="leaky_relu", slope=0.3, residual=residual)
    graph = torch.jit.trace(run, (torch.randn(4, 3), torch.randn(4, 3)))
    x, residual = torch.randn(9, 3), torch.randn(9, 3)
    assert error(graph(x, residual), run(x, residual)) < FP32


@pytest.mark.parametrize("activation", ALL_ACTIVATIONS)
def test_onnx_of_a_converted_model(activation):
    onnx = pytest.importorskip("onnx")
    model = Fused(activation)
    file = io.BytesIO()
    torch.onnx.export(model.eval(), torch.randn(2, 3, 5, 5), file, do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE)
    kinds = [node.op_type for node in onnx.load_model_from_string(file.getvalue()).graph.node if node.op_type != "Identity"]
    assert kinds[:3] == ["Conv", "BatchNormalization", "Add"]
    assert (len(kinds) == 3) == (activation == "identity")
