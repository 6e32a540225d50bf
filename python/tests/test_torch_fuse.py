"""evenkeel.torch.convert(model, fuse=True): additions and activations behind the norms are theirs."""
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


def activations_of(model):
    return {name: module.activation for name, module in model.named_modules() if type(module) in ours._THEIRS}


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


@pytest.mark.parametrize("by_functions", [False, True])
def test_a_residual_network_is_the_same_with_less_to_do(by_functions):
    torch.manual_seed(1)
    model = Net(by_functions)
    graph = ours.convert(copy.deepcopy(model), fuse=True)
    assert activations_of(graph) == {"blocks.0.bn1": "relu", "blocks.0.downsample.1": "identity", "blocks.0.bn2": "relu",
                                     "blocks.1.bn1": "relu", "blocks.1.bn2": "relu"}
    assert not [call for call in calls_of(graph) if "relu" in str(call) or "add" in str(call)]
    x = torch.randn(5, 3, 7, 7)
    expect_same(model, graph, x)
    model.eval(), graph.eval()
    assert error(graph(x), model(x)) < FP32
    assert error(copy.deepcopy(graph)(x), model(x)) < FP32


def test_tensors_are_shared_and_the_model_stays_as_it_was():
    model = Net()
    text = repr(model)
    graph = ours.convert(model, fuse=True)
    assert repr(model) == text and model.training and graph.training
    assert {id(p) for p in model.parameters()} == {id(p) for p in graph.parameters()}
    assert set(model.state_dict()) == set(graph.state_dict())
    with pytest.raises(evenkeel.UsageError, match="has the activation relu"):
        ours.revert(graph)


LAYERS = {
    "leaky_relu": (nn.LeakyReLU(0.3), lambda y: F.leaky_relu(y, 0.3)),
    "sigmoid": (nn.Sigmoid(), torch.sigmoid),
    "tanh": (nn.Tanh(), lambda y: y.tanh()),
    "silu": (nn.SiLU(), F.silu),
    "gelu": (nn.GELU(), F.gelu),
    "gelu_tanh": (nn.GELU(approximate="tanh"), lambda y: F.gelu(y, approximate="tanh")),
}


class Behind(nn.Module):
    """A norm, and a function of its output (and input)."""

    def __init__(self, function):
        super().__init__()
        self.norm, self.function = nn.BatchNorm1d(3), function

    def forward(self, x):
        return self.function(self.norm(x), x)


@pytest.mark.parametrize("activation", LAYERS)
def test_activations_as_modules_and_as_functions(activation):
    module, function = LAYERS[activation]
    for model in (nn.Sequential(nn.BatchNorm1d(3), module), Behind(lambda y, x: function(y))):
        graph = ours.convert(copy.deepcopy(model), fuse=True)
        assert len(calls_of(graph)) == 2  # the norm, and the output
        expect_same(model, graph, torch.randn(8, 3))


@pytest.mark.parametrize("function", [
    lambda y, x: y + 1,  # no tensor
    lambda y, x: y + y,
    lambda y, x: torch.add(y, x, alpha=2),
    lambda y, x: (y, F.relu(y))[1] + y,  # the output goes elsewhere, too
    lambda y, x: F.hardtanh(y),
    lambda y, x: F.relu(x) * y,
    lambda y, x: y + x.clone().relu_(),  # something is changed in between
    lambda y, x: y + F.relu(x.clone(), True),
])
def test_what_cannot_be_taken_stays(function):
    model = Behind(function)
    graph = ours.convert(copy.deepcopy(model), fuse=True)
    assert activations_of(graph) == {"norm": "identity"}
    expect_same(model, graph, torch.randn(8, 3))


def test_what_is_made_behind_the_norm_can_be_added():
    for function in (lambda y, x: F.relu(y + F.pad(x[:, :2].cos(), (0, 1))), lambda y, x: F.relu(x.cos() + y)):
        model = Behind(function)
        graph = ours.convert(copy.deepcopy(model), fuse=True)
        assert activations_of(graph) == {"norm": "relu"}
        expect_same(model, graph, torch.randn(8, 3))


def test_a_value_per_channel_is_added_as_pytorch_does():

    class Before(nn.Module):

        def __init__(self):
            super().__init__()
            self.norm, self.shift = nn.BatchNorm2d(3), nn.Parameter(torch.randn(3, 1, 1))

        def forward(self, x):
            shift = self.shift * 2
            return F.relu(self.norm(x) + shift)

    model = Before()
    graph = ours.convert(copy.deepcopy(model), fuse=True)
    assert activations_of(graph) == {"norm": "relu"}
    expect_same(model, graph, torch.randn(4, 3, 5, 5))


def test_a_norm_that_is_called_twice_keeps_to_itself():
    norm = nn.BatchNorm1d(3)
    model = nn.Sequential(norm, nn.ReLU(), nn.Linear(3, 3, bias=False), norm)
    graph = ours.convert(copy.deepcopy(model), fuse=True)
    assert set(activations_of(graph).values()) == {"identity"}
    expect_same(model, graph, torch.randn(8, 3))


def test_what_is_not_called_keeps_its_tensors():
    model = Behind(lambda y, x: y)
    model.unused, model.empty = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.ReLU()
    model.register_buffer("passing", torch.zeros(1), persistent=False)
    model.register_parameter("alone", nn.Parameter(torch.zeros(2)))
    graph = ours.convert(model, fuse=True)
    assert set(graph.state_dict()) == set(model.state_dict())
    assert {name for name, _ in graph.named_buffers()} == {name for name, _ in model.named_buffers()}
    assert graph.alone is model.alone and "empty" not in dict(graph.named_children())


def test_what_a_graph_cannot_say_is_refused():
    with pytest.raises(evenkeel.UsageError, match="cannot follow the forward.* of Behind.*without fuse=True"):
        ours.convert(Behind(lambda y, x: y if x.sum() > 0 else x), fuse=True)


    class Switched(Behind):

        def forward(self, x):
            return F.dropout(self.norm(x), 0.5, self.training)

    model = Switched(None)
    with pytest.raises(evenkeel.UsageError, match="other things in training than behind eval"):
        ours.convert(model, fuse=True)
    assert model.training and model.norm.training
    with pytest.raises(evenkeel.UsageError, match="inplace=False"):
        ours.convert(nn.Sequential(nn.BatchNorm1d(3)), inplace=True, fuse=True)


def test_modes_of_parts_stay_as_they_were():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU(), nn.BatchNorm1d(3))
    model[2].eval()
    graph = ours.convert(model, fuse=True)
    assert [getattr(graph, name).training for name in ("0", "2")] == [True, False]
    assert [m.training for m in model] == [True, True, False]


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
