"""evenkeel.torch against PyTorch: its own cases for batch norm (test_nn.py, test_optim.py), written anew, and what a drop-in must keep."""
import copy
import io
import pickle
import warnings

import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.nn import functional as F

import evenkeel
import evenkeel.torch as ours

PAIRS = {"1d": (ours.BatchNorm1d, nn.BatchNorm1d), "2d": (ours.BatchNorm2d, nn.BatchNorm2d), "3d": (ours.BatchNorm3d, nn.BatchNorm3d)}
SPACE = {"1d": (7,), "2d": (5, 6), "3d": (3, 4, 5)}


def error(found, expected):
    """||found - expected|| / ||expected||"""
    found, expected = found.detach().double(), expected.detach().double()
    size = expected.norm()
    return ((found - expected).norm() / size if size > 0 else found.norm()).item()


def twins(rank, features, *, dtype=torch.float32, seed=0, **arguments):
    """One of our modules and PyTorch's, with the same values that are not the initial ones."""
    torch.manual_seed(seed)
    a, b = (cls(features, **arguments) for cls in PAIRS[rank])
    with torch.no_grad():
        for name, value in b.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape) + 0.5)
    a.load_state_dict(b.state_dict())
    return a.to(dtype), b.to(dtype)


def step(module, x, dy):
    """y, dx and the gradients of the parameters."""
    x = x.detach().requires_grad_()
    module.zero_grad()
    y = module(x)
    y.backward(dy)
    return [y.detach(), x.grad, *(p.grad for p in module.parameters())]


def assert_twins(a, b, tolerance=1e-5):
    state = b.state_dict()
    assert list(a.state_dict()) == list(state)
    for key, value in a.state_dict().items():
        assert value.dtype is state[key].dtype and error(value, state[key]) < tolerance, key


# PyTorch sums in fp32: its own dx is off by some 1e-6 (ours is within 6e-7 of fp64, norm_oracle.py).
FP32 = 1e-5


@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("rank", PAIRS)
def test_training_and_evaluation(rank, track, affine, momentum):
    a, b = twins(rank, 4, affine=affine, track_running_stats=track, momentum=momentum)
    for mode in (True, True, False, True):
        a.train(mode), b.train(mode)
        x, dy = torch.randn(6, 4, *SPACE[rank]) * 2 + 3, torch.randn(6, 4, *SPACE[rank])
        for found, expected in zip(step(a, x, dy), step(b, x, dy)):
            assert error(found, expected) < FP32
        assert_twins(a, b)


def test_tables():
    a, b = twins("1d", 33)
    x, dy = torch.randn(20, 33), torch.randn(20, 33)
    for found, expected in zip(step(a, x, dy), step(b, x, dy)):
        assert error(found, expected) < FP32
    assert_twins(a, b)


@pytest.mark.parametrize("x_type, parameter_type, tolerance", [
    (torch.float32, torch.float32, FP32),
    (torch.float64, torch.float64, 1e-12),
    (torch.bfloat16, torch.float32, 8e-3),  # a rounding of bf16 is 2^-9, PyTorch's own way has several
    (torch.bfloat16, torch.bfloat16, 8e-3),
])
@pytest.mark.parametrize("shape", [(4, 8, 10, 10), (4, 1, 9, 9), (4, 9, 1, 1)])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_batchnorm_nhwc_cpu(shape, format, x_type, parameter_type, tolerance):
    a, b = twins("2d", shape[1], dtype=parameter_type)
    b = b.double()  # exact on the same rounded values: PyTorch 1.13 knows no mixed types on every layout
    x = torch.randn(shape).to(x_type).contiguous(memory_format=format)
    dy = torch.randn(shape).to(x_type).contiguous(memory_format=format)
    found, expected = step(a, x, dy), step(b, x.double(), dy.double())
    assert found[0].dtype is x_type and found[1].dtype is x_type and found[2].dtype is parameter_type
    assert found[0].is_contiguous(memory_format=format) and found[1].is_contiguous(memory_format=format)
    for ours_, theirs in zip(found, expected):
        assert error(ours_, theirs) < tolerance
    for key, value in a.state_dict().items():
        assert error(value, b.state_dict()[key]) < (tolerance if parameter_type is torch.bfloat16 else FP32)


def test_batchnorm_nhwc_cpu_with_a_gradient_in_the_other_layout():
    a, b = twins("2d", 8)
    x, dy = torch.randn(4, 8, 10, 10).to(memory_format=torch.channels_last), torch.randn(4, 8, 10, 10)
    for found, expected in zip(step(a, x, dy), step(b, x, dy)):
        assert error(found, expected) < FP32


@pytest.mark.parametrize("make", [
    lambda x: x.transpose(2, 3), lambda x: x[:, 2:6], lambda x: x[::2], lambda x: x[:, :, ::2], lambda x: x[..., 1:4],
    lambda x: x[:1].expand(4, -1, -1, -1), lambda x: x.to(memory_format=torch.channels_last)[:, 1:5], lambda x: x.flip(0),
    lambda x: x.to(memory_format=torch.channels_last)[1:3], lambda x: x.permute(1, 0, 2, 3)
])
def test_batchnorm_non_contig_cpu(make):
    torch.manual_seed(1)
    x = make(torch.randn(6, 8, 5, 5))
    a, b = twins("2d", x.shape[1])
    dy = make(torch.randn(6, 8, 5, 5))
    for found, expected in zip(step(a, x, dy), step(b, x, dy)):
        assert error(found, expected) < FP32
    assert_twins(a, b)


@pytest.mark.parametrize("shape", [(3, 6, 4), (3, 6, 2, 4, 5)])
def test_channels_inmost_of_other_ranks(shape):
    rank = "1d" if len(shape) == 3 else "3d"
    a, b = twins(rank, 6)
    inmost = lambda: torch.randn(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
    x, dy = inmost(), inmost()
    found = step(a, x, dy)
    assert found[0].stride(1) == 1
    for one, expected in zip(found, step(b, x, dy)):
        assert error(one, expected) < FP32


def test_batchnorm_simple_average():
    a, b = twins("1d", 3, momentum=None)
    a.reset_running_stats(), b.reset_running_stats()
    first, second = torch.randn(6, 3), torch.randn(5, 3)
    a(first), b(first)
    one = a.running_mean.clone()
    assert error(one, first.mean(0)) < 1e-6
    a(second), b(second)
    assert error(a.running_mean, (first.mean(0) + second.mean(0)) / 2) < 1e-6
    assert a.num_batches_tracked == 2
    assert_twins(a, b)


def test_batchnorm_buffer_update_when_stats_are_not_tracked():
    a = ours.BatchNorm1d(3, track_running_stats=False)
    a.register_buffer("num_batches_tracked", torch.tensor(5)), a.register_buffer("running_mean", torch.rand(3))
    a.register_buffer("running_var", torch.rand(3))
    before = copy.deepcopy(a.state_dict())
    a(torch.randn(8, 3))
    for key, value in a.state_dict().items():
        assert torch.equal(value, before[key])


def test_running_statistics_that_are_no_longer_tracked():
    a, b = twins("1d", 3)
    a.track_running_stats = b.track_running_stats = False
    x = torch.randn(8, 3)
    for mode in (True, False):
        a.train(mode), b.train(mode)
        assert error(a(x), b(x)) < FP32
    assert_twins(a, b)


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1)])
def test_batchnorm_raises_error_if_less_than_one_value_per_channel(shape):
    a = ours.BatchNorm1d(3)
    with pytest.raises(ValueError, match="one value per channel"):
        a(torch.randn(shape))
    assert a.num_batches_tracked == 0
    a.eval()
    assert a(torch.randn(shape)).shape == shape


@pytest.mark.parametrize("wrong", ["running_mean", "running_var", "weight", "bias"])
@pytest.mark.parametrize("training", [True, False])
def test_batchnorm_raises_error_if_a_tensor_is_not_same_size_as_input(wrong, training):
    values = {name: torch.rand(3) for name in ("running_mean", "running_var", "weight", "bias")}
    values[wrong] = torch.rand(2)
    with pytest.raises(evenkeel.UsageError, match=rf"{wrong} has the shape \[2\]; expected \[3\]"):
        ours.batch_norm(torch.randn(4, 3), training=training, **values)


def test_batchnorm_raises_error_if_the_rank_or_the_features_are_others():
    for module, shape in [(ours.BatchNorm1d(3), (4, 3, 2, 2)), (ours.BatchNorm2d(3), (4, 3)), (ours.BatchNorm3d(3), (4, 3, 2, 2))]:
        with pytest.raises(ValueError):
            module(torch.randn(shape))
    with pytest.raises(ValueError, match="expected"):
        ours.BatchNorm2d(3)(torch.randn(4, 5, 2, 2))
    for x in (torch.ones(3), "text"):
        with pytest.raises(evenkeel.UsageError):
            ours.batch_norm(x, training=True)
    with pytest.raises(evenkeel.UsageError, match="running_mean and running_var are not given"):
        ours.batch_norm(torch.ones(3, 3))
    with pytest.raises(evenkeel.UsageError, match="expected both, or neither"):
        ours.batch_norm(torch.ones(3, 3), torch.ones(3), training=True)


def test_other_devices_types_and_layouts_are_refused():
    with pytest.raises(evenkeel.UsageError, match=r"x lies on meta.*revert"):  # as CUDA's are
        ours.BatchNorm1d(3)(torch.zeros(4, 3, device="meta"))
    with pytest.raises(evenkeel.UsageError, match="weight lies on meta"):
        ours.batch_norm(torch.zeros(4, 3), weight=torch.ones(3, device="meta"), training=True)
    with pytest.raises(evenkeel.UsageError, match="elements of torch.int64"):
        ours.BatchNorm1d(3)(torch.zeros(4, 3, dtype=torch.int64))
    with pytest.raises(evenkeel.UsageError, match="to_dense"):
        ours.BatchNorm1d(3)(torch.ones(4, 3).to_sparse())


class Dnn(nn.Module):

    def __init__(self):
        super().__init__()
        self.fc1, self.bn, self.fc2 = nn.Linear(10, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)

    def forward(self, x):
        return self.fc2(F.relu(self.bn(self.fc1(x))))


class Cnn(nn.Module):

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, momentum=None)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)) + x)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("make, shape", [(Dnn, (10,)), (Cnn, (3, 8, 8))])
def test_update_bn(make, shape):
    torch.manual_seed(2)
    theirs = make()
    mine = ours.convert(copy.deepcopy(theirs))
    batches = [torch.randn(6, *shape) for _ in range(4)]
    torch.optim.swa_utils.update_bn(batches, theirs), torch.optim.swa_utils.update_bn(batches, mine)
    assert_twins(mine, theirs)
    assert mine.bn.momentum == theirs.bn.momentum if make is Dnn else mine.bn2.momentum is None


@pytest.mark.parametrize("activation", ["identity", "relu", "leaky_relu", "gelu", "silu"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_gradcheck(activation, training, format):
    torch.manual_seed(3)
    a = ours.BatchNorm2d(3, activation=activation, slope=0.1, dtype=torch.float64).train(training)
    make = lambda: torch.randn(4, 3, 2, 3, dtype=torch.float64).contiguous(memory_format=format).requires_grad_()
    with torch.no_grad():
        a.weight.uniform_(0.5, 1.5), a.bias.normal_()

    def run(x, residual, weight, bias):
        mean, var = a.running_mean.clone(), a.running_var.clone()
        return ours.batch_norm(x, mean, var, weight, bias, training, activation=activation, slope=0.1, residual=residual)

    assert torch.autograd.gradcheck(run, (make(), make(), a.weight, a.bias))
    assert torch.autograd.gradcheck(lambda x: run(x, None, a.weight.detach(), None), (make(),))


@pytest.mark.parametrize("wanted", [(True, False, False, False), (False, True, False, False), (False, False, True, False),
                                    (False, False, False, True), (False, True, True, True), (True, False, False, True)])
def test_only_some_gradients_are_wanted(wanted):
    torch.manual_seed(4)
    tensors = [torch.randn(5, 3, 4), torch.randn(3), torch.randn(3), torch.randn(5, 3, 4)]
    mine, theirs = ([t.clone().requires_grad_(w) for t, w in zip(tensors, wanted)] for _ in range(2))
    dy = torch.randn(5, 3, 4)
    ours.batch_norm(mine[0], None, None, mine[1], mine[2], True, activation="relu", residual=mine[3]).backward(dy)
    F.relu(F.batch_norm(theirs[0], None, None, theirs[1], theirs[2], True) + theirs[3]).backward(dy)
    for a, b in zip(mine, theirs):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or error(a.grad, b.grad) < FP32


def test_a_gradient_that_was_expanded():
    a, b = twins("2d", 3)
    x = torch.randn(4, 3, 5, 5)
    grads = []
    for module in (a, b):
        z = x.clone().requires_grad_()
        (module(z) * torch.ones(1)).sum().backward()
        y = module(z)
        y.sum().backward()  # dy is one value shown many times
        grads.append(module.bias.grad.clone())
    assert error(*grads) < FP32


def test_the_gradient_of_the_gradient_says_what_to_do():
    a = ours.BatchNorm1d(3)
    x = torch.randn(5, 3, requires_grad=True)
    g, = torch.autograd.grad(a(x).pow(3).sum(), x, create_graph=True)
    b = nn.BatchNorm1d(3)
    assert error(g, torch.autograd.grad(b(x).pow(3).sum(), x)[0]) < FP32
    with pytest.raises(RuntimeError, match="no gradient of the gradient.*revert"):
        g.pow(2).sum().backward()


def test_a_change_of_x_between_forward_and_backward_is_seen():
    a = ours.BatchNorm1d(3)
    x = torch.randn(5, 3, requires_grad=True) * 1
    y = a(x)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_the_gradient_of_a_frozen_norm_outlives_its_statistics():
    a, b = twins("1d", 3)
    a.eval(), b.eval()
    x = torch.randn(5, 3)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = a(mine)
    a.train()(torch.randn(9, 3))  # moves them
    y.backward(x)
    b(theirs).backward(x)
    assert error(mine.grad, theirs.grad) < FP32


def test_an_empty_batch():
    a, b = twins("2d", 3)
    for module in (a, b):
        x = torch.zeros(0, 3, 4, 4, requires_grad=True)
        y = module(x)
        y.sum().backward()
        assert y.shape == x.shape and x.grad.shape == x.shape
        assert torch.equal(module.weight.grad, torch.zeros(3)) and torch.equal(module.bias.grad, torch.zeros(3))
    assert_twins(a, b)


def test_autocast():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    mine = ours.convert(copy.deepcopy(model))
    x = torch.randn(4, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = mine(x), model(x)
    assert y.dtype is torch.bfloat16
    y.float().sum().backward()
    assert error(y, expected) < 8e-3
    assert mine[1].weight.grad.dtype is torch.float32


def test_nothing_is_recorded_without_gradients():
    a = ours.BatchNorm1d(3)
    with torch.no_grad():
        assert a(torch.randn(4, 3)).grad_fn is None
    with torch.inference_mode():
        assert a(torch.randn(4, 3)).shape == (4, 3)
    a.requires_grad_(False)
    assert not a(torch.randn(4, 3)).requires_grad


def test_activation_and_residual_are_one_pass():
    torch.manual_seed(5)
    a = ours.BatchNorm2d(4, activation="relu")
    b = nn.BatchNorm2d(4)
    x, residual, dy = (torch.randn(3, 4, 5, 5) for _ in range(3))
    r1, r2 = residual.clone().requires_grad_(), residual.clone().requires_grad_()
    y, expected = a(x, residual=r1), F.relu(b(x) + r2)
    assert error(y, expected) < FP32
    y.backward(dy), expected.backward(dy)
    assert error(r1.grad, r2.grad) < FP32 and error(a.weight.grad, b.weight.grad) < FP32
    assert "activation='relu'" in repr(a) and "activation" not in repr(ours.BatchNorm2d(4))
    with pytest.raises(evenkeel.UsageError, match="residual has the shape"):
        a(x, residual=residual[:2])
    with pytest.raises(evenkeel.UsageError, match="did you mean"):
        ours.BatchNorm2d(4, activation="rleu")


def test_a_batch_that_is_not_finite():
    x = torch.tensor([[1.0, float("nan")], [2.0, 3.0]])
    a, b = ours.BatchNorm1d(2), nn.BatchNorm1d(2)
    a(x), b(x)
    assert torch.equal(torch.isnan(a.running_mean), torch.isnan(b.running_mean))
    guarded = ours.BatchNorm1d(2, on_nonfinite="skip")
    guarded(x)
    assert torch.equal(guarded.running_mean, torch.zeros(2)) and guarded.num_batches_tracked == 0
    with pytest.raises(evenkeel.Error, match="not finite"):
        ours.BatchNorm1d(2, on_nonfinite="stop")(x)


@pytest.mark.parametrize("rank", PAIRS)
def test_state_dicts_go_both_ways(rank):
    a, b = (cls(3) for cls in PAIRS[rank])
    x = torch.randn(4, 3, *SPACE[rank])
    a(x)
    b.load_state_dict(a.state_dict(), strict=True)
    b(x)
    a.load_state_dict(b.state_dict(), strict=True)
    a.eval(), b.eval()
    assert error(a(x), b(x)) < 1e-6
    assert isinstance(a, PAIRS[rank][1])
    file = io.BytesIO()
    torch.save(a, file)
    file.seek(0)
    assert torch.equal(torch.load(file)(x), a(x))
    assert torch.equal(copy.deepcopy(a)(x), pickle.loads(pickle.dumps(a))(x))
    old = {key: value for key, value in b.state_dict().items() if key != "num_batches_tracked"}  # as PyTorch 0.4 wrote it
    a.load_state_dict(old)


class Block(nn.Module):

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.down = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.down(x))


def resnet():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), Block(8, 8), Block(8, 16, 2),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_a_converted_network_is_the_same_network(format):
    torch.manual_seed(6)
    theirs = resnet().to(memory_format=format)
    mine = ours.convert(copy.deepcopy(theirs))
    assert list(mine.state_dict()) == list(theirs.state_dict())
    x = torch.randn(8, 3, 16, 16).contiguous(memory_format=format)
    labels = torch.arange(8) % 5
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (mine, theirs)]
    for _ in range(3):
        losses = []
        for model, optimizer in zip((mine, theirs), optimizers):
            optimizer.zero_grad()
            losses.append(F.cross_entropy(model(x), labels))
            losses[-1].backward()
            optimizer.step()
        assert abs(losses[0].item() - losses[1].item()) < 1e-5
    # Three steps of rounding in fp32, with other orders of summation.
    assert_twins(mine, theirs, 1e-4)
    mine.load_state_dict(theirs.state_dict())
    mine.eval(), theirs.eval()
    assert error(mine(x), theirs(x)) < 1e-6


def test_convert_shares_tensors_and_keeps_everything_else():
    model = resnet()
    model[3].bn1.eval()
    calls = []
    model[1].register_forward_hook(lambda module, inputs, output: calls.append(type(module)))
    mine = ours.convert(model)
    assert type(model[1]) is nn.BatchNorm2d and type(mine[1]) is ours.BatchNorm2d and mine is not model
    for (name, a), (other, b) in zip(mine.named_parameters(), model.named_parameters()):
        assert name == other and a is b
    assert mine[1].running_mean is model[1].running_mean
    assert mine[3].training and not mine[3].bn1.training
    mine(torch.randn(2, 3, 8, 8))
    assert calls == [ours.BatchNorm2d] and model[1].num_batches_tracked == 1
    back = ours.revert(mine)
    assert type(back[1]) is nn.BatchNorm2d and type(mine[1]) is ours.BatchNorm2d and back[1].weight is model[1].weight


def test_convert_in_place_changes_no_identity():
    model = resnet()
    norm = model[1]
    assert ours.convert(model, inplace=True) is model and model[1] is norm and type(norm) is ours.BatchNorm2d
    assert ours.convert(norm) is not norm
    assert ours.revert(model, inplace=True) is model and type(norm) is nn.BatchNorm2d
    assert type(ours.convert(nn.BatchNorm3d(2))) is ours.BatchNorm3d


def test_convert_leaves_what_it_does_not_know():

    class Special(nn.BatchNorm2d):
        pass

    model = nn.Sequential(nn.BatchNorm2d(3), nn.SyncBatchNorm(3), nn.LazyBatchNorm2d(), Special(3), nn.InstanceNorm2d(3))
    with pytest.warns(UserWarning, match=r"left 3 norms.*1 \(SyncBatchNorm\), 2 \(LazyBatchNorm2d\), 3 \(Special\)"):
        mine = ours.convert(model, inplace=True)
    assert [type(m) for m in mine] == [ours.BatchNorm2d, nn.SyncBatchNorm, nn.LazyBatchNorm2d, Special, nn.InstanceNorm2d]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.convert(resnet())


def test_revert_refuses_a_norm_with_an_activation():
    with pytest.raises(evenkeel.UsageError, match="has the activation relu"):
        ours.revert(nn.Sequential(ours.BatchNorm1d(3), ours.BatchNorm1d(3, activation="relu")))


def test_the_same_bits_for_any_number_of_threads():
    a = ours.BatchNorm2d(16)
    x, dy = torch.randn(16, 16, 20, 20), torch.randn(16, 16, 20, 20)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(step(a, x, dy))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(p, q) for p, q in zip(results[0], other))


def test_parametrized_weights():
    a = ours.BatchNorm1d(3)

    class Double(nn.Module):

        def forward(self, weight):
            return 2 * weight

    torch.nn.utils.parametrize.register_parametrization(a, "weight", Double())
    x = torch.randn(5, 3)
    y = a(x)
    assert error(y, 2 * F.batch_norm(x, None, None, training=True)) < FP32
    y.sum().backward()
    assert a.parametrizations.weight.original.grad is not None


def test_evenkeel_batch_norm_takes_tensors():
    x = torch.randn(4, 3, 5).to(torch.bfloat16)
    y = evenkeel.batch_norm(x, training=True)
    assert y.dtype is torch.bfloat16 and error(y, F.batch_norm(x.double(), None, None, training=True)) < 4e-3
    weight = nn.Parameter(torch.ones(3))
    with pytest.raises(evenkeel.UsageError, match="gamma requires grad"):
        evenkeel.batch_norm(x, weight, training=True)
    with torch.no_grad():
        assert torch.equal(evenkeel.batch_norm(x, weight, training=True), y)
    y, saved = evenkeel.batch_norm_forward(x.float(), weight.detach())
    assert isinstance(evenkeel.batch_norm_backward(x.float(), saved).dgamma, torch.Tensor)
    assert isinstance(evenkeel.moments(x).mean, torch.Tensor)


def test_a_functional_call_takes_the_tensors_that_it_is_given():
    from torch.nn.utils.stateless import functional_call
    a, b = twins("1d", 3)
    others, x = {key: value * 2 for key, value in b.state_dict().items()}, torch.randn(6, 3)
    mine, theirs = ({key: value.clone() for key, value in others.items()} for _ in range(2))
    for mode in (True, False):
        a.train(mode), b.train(mode)
        assert error(functional_call(a, mine, (x,)), functional_call(b, theirs, (x,))) < FP32
    assert all(error(mine[key], theirs[key]) < FP32 for key in theirs)
    assert_twins(a, b)  # whose own tensors are as they were
