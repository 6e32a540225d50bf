"""evenkeel.torch.convert and revert with what cannot be copied or is no model, and the names of arguments that PyTorch's programs use."""
import warnings

import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.nn import functional as F

import evenkeel
import evenkeel.torch as ours


class Mine(ours.BatchNorm2d):
    pass


def test_a_model_that_cannot_be_copied_is_changed_in_place():
    model = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4))
    model(torch.randn(2, 3, 2, 2))
    for change in (ours.convert, ours.revert):
        with pytest.raises(evenkeel.UsageError, match="cannot be copied.*give inplace=True"):
            change(model)
    assert ours.convert(model, inplace=True) is model and type(model[1]) is ours.BatchNorm2d
    assert type(ours.revert(model, inplace=True)[1]) is nn.BatchNorm2d


@pytest.mark.parametrize("change", [ours.convert, ours.revert])
@pytest.mark.parametrize("model, message", [(None, "model is of type NoneType; expected a torch.nn.Module$"), ("resnet18", "model is of type str"),
                                            ({"bn.weight": 1}, "model is of type dict.*a state dict has no norms")])
def test_what_is_no_model_is_refused(change, model, message):
    with pytest.raises(evenkeel.UsageError, match=message):
        change(model)


def test_revert_refuses_classes_derived_from_ours_and_changes_nothing():
    model = nn.Sequential(ours.BatchNorm2d(4), Mine(4, activation="relu"))
    for inplace in (False, True):
        with pytest.raises(evenkeel.UsageError, match="^1 is a Mine, a class that derives from evenkeel's norms"):
            ours.revert(model, inplace=inplace)
    assert type(model[0]) is ours.BatchNorm2d
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert type(ours.convert(model)[1]) is Mine  # ours already


def test_convert_names_what_it_leaves():
    scripted = torch.jit.script(nn.Sequential(nn.BatchNorm2d(4)))
    with pytest.warns(UserWarning, match=r"left 1 norms as they are: 0.0 \(RecursiveScriptModule\)"):
        ours.convert(nn.Sequential(scripted))
    with pytest.warns(UserWarning, match=r"left 1 norms as they are: 1 \(eps is 0"):
        model = ours.convert(nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4, eps=0)))
    assert [type(module) for module in model] == [ours.BatchNorm2d, nn.BatchNorm2d]


@pytest.mark.parametrize("eps", [0, -1e-5, float("nan"), float("inf"), "a", None])
def test_an_eps_that_cannot_be_is_refused_where_it_is_given(eps):
    with pytest.raises(evenkeel.UsageError, match="eps is .*; expected a number"):
        ours.BatchNorm2d(4, eps=eps)


def test_x_has_pytorchs_name_too():
    x, norm = torch.randn(6, 4), ours.BatchNorm1d(4).eval()
    assert torch.equal(norm(input=x), norm(x)) and torch.equal(norm(x=x), norm(x))
    arguments = dict(weight=norm.weight, bias=norm.bias, training=True)
    assert torch.equal(ours.batch_norm(input=x, **arguments), ours.batch_norm(x, **arguments))
    assert F.batch_norm(input=x, running_mean=None, running_var=None, **arguments).shape == (6, 4)  # as PyTorch has it
    for call in (lambda: norm(x, input=x), lambda: ours.batch_norm(x, input=x, training=True)):
        with pytest.raises(evenkeel.UsageError, match="x and input are both given"):
            call()
    for call in (lambda: norm(), lambda: ours.batch_norm(training=True)):
        with pytest.raises(evenkeel.UsageError, match="x is of type NoneType; expected a tensor"):
            call()
    traced, scripted = torch.jit.trace(norm, x), torch.jit.script(norm)
    assert torch.allclose(scripted(input=x), norm(x)) and torch.allclose(traced(x), norm(x))


def test_a_norm_without_running_statistics_is_not_advised_to_evaluate():
    x = torch.randn(1, 4)
    for training in (True, False):
        norm = ours.BatchNorm1d(4, track_running_stats=False).train(training)
        with pytest.raises(evenkeel.UsageError, match="where the norm has no running statistics: take more examples") as caught:
            norm(x)
        assert "eval()" not in str(caught.value)
    with pytest.raises(evenkeel.UsageError, match=r"or call model.eval\(\)"):
        ours.BatchNorm1d(4)(x)
