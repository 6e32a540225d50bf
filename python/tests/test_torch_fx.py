"""evenkeel.torch in graphs of torch.fx."""
import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.nn import functional as F

import evenkeel
import evenkeel.torch as ours
from test_torch import FP32, error


class Block(nn.Module):
    """A residual block as torchvision has it, and one that says the same in functions."""

    def __init__(self, inputs, outputs, by_functions):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.by_functions = by_functions

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        if self.by_functions:
            return F.relu(torch.add(identity, self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))))
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class Net(nn.Module):

    def __init__(self, by_functions=False):
        super().__init__()
        self.blocks = nn.Sequential(Block(3, 6, by_functions), Block(6, 6, by_functions))
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(self.drop(self.blocks(x).mean((2, 3))))


def calls_of(graph):
    return [node.target for node in graph.graph.nodes if node.op != "placeholder"]


def expect_same(model, graph, x):
    """Outputs, gradients and running statistics of one step of both, which have tensors of their own."""
    torch.manual_seed(3)
    a = model(x)
    torch.manual_seed(3)  # of dropout
    b = graph(x)
    assert error(b, a) < FP32
    weights = torch.randn_like(a)
    (a * weights).sum().backward(), (b * weights).sum().backward()
    values = dict(graph.named_parameters())
    assert set(values) == {name for name, _ in model.named_parameters()}
    for name, value in model.named_parameters():
        assert error(values[name].grad, value.grad) < 10 * FP32, name  # sums of 200 products, in other orders
    state = graph.state_dict()
    for name, value in model.state_dict().items():
        assert error(state[name].double(), value.double()) < FP32, name


def test_a_graph_of_fx_has_our_norms_as_its_own_calls():
    torch.manual_seed(1)
    model = ours.convert(Net())
    model.blocks[0].bn2 = ours.BatchNorm2d(6, activation="tanh")
    graph = torch.fx.symbolic_trace(copy.deepcopy(model))
    assert "blocks.0.bn2" in calls_of(graph)
    expect_same(model, graph, torch.randn(5, 3, 7, 7))


def test_a_residual_in_a_graph_of_fx():

    class Added(nn.Module):

        def __init__(self):
            super().__init__()
            self.norm = ours.BatchNorm1d(3, activation="relu")

        def forward(self, x):
            return self.norm(x, residual=x * 2)

    model = Added()
    expect_same(model, torch.fx.symbolic_trace(copy.deepcopy(model)), torch.randn(8, 3))


def test_functions_of_values_are_refused_in_a_graph_of_fx():
    with pytest.raises(evenkeel.UsageError, match="x is a value of torch.fx"):
        torch.fx.symbolic_trace(lambda x: ours.batch_norm(x, training=True))


def test_what_a_graph_of_fx_would_do_twice_is_refused():
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        model = ours.convert(nn.Sequential(nn.BatchNorm2d(3)))
        getattr(model[0], register)(lambda *arguments: None)
        with pytest.raises(evenkeel.UsageError, match="hooks of 0 twice"):
            torch.fx.symbolic_trace(model)
    with pytest.raises(evenkeel.UsageError, match="a norm alone"):
        torch.fx.symbolic_trace(ours.BatchNorm2d(3))


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 3, 1, 1), (4, 1, 5, 5), (1,), ()])
def test_a_residual_may_be_expanded(shape):
    torch.manual_seed(1)
    x, residual = torch.randn(4, 3, 5, 5), torch.randn(shape)
    a, b = residual.clone().requires_grad_(), residual.clone().requires_grad_()
    mine, theirs = ours.BatchNorm2d(3, activation="relu"), nn.BatchNorm2d(3)
    y, expected = mine(x, residual=a), F.relu(theirs(x) + b)
    assert error(y, expected) < FP32
    weights = torch.randn_like(y)
    (y * weights).sum().backward(), (expected * weights).sum().backward()
    assert a.grad.shape == b.grad.shape and error(a.grad, b.grad) < 10 * FP32  # sums of up to 300 values
    with pytest.raises(evenkeel.UsageError, match="or one that can be expanded to it"):
        mine(x[:1], residual=x)
