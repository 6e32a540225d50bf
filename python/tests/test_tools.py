"""evenkeel.inspect, fold, recalibrate, diff, convert and explain: on files, and on state dicts."""
import gzip
import os
import pathlib
import subprocess
import warnings

import evenkeel
import numpy as np
import pytest

DATA = pathlib.Path(os.environ.get("EVENKEEL_TEST_DATA", pathlib.Path(__file__).parents[3] / "shared/data"))
STATED = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def shared(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


def cifar(name):
    """(x uint8 [N, 3, 32, 32], y [N]) of a CIFAR binary file."""
    rows = np.frombuffer(gzip.decompress(shared(f"cifar10/{name}").read_bytes()), np.uint8).reshape(-1, 3073)
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].astype(np.int64)


def resnet20():
    return evenkeel.Network.load(shared("models/resnet20_cifar10.safetensors"), "resnet20").state_dict()


@pytest.fixture(scope="module")
def small():
    """A state dict of a small trained network, and its data."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 5)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] > 0).astype(np.int64)
    network = evenkeel.Network("mlp")
    network.fit(x, y, epochs=4, batch_size=40, learning_rate=1e-2)
    return network, x, y


# --- inspect ---


def test_inspect_a_state_dict_has_table_and_values(small):
    state = small[0].state_dict()
    report = evenkeel.inspect(state)
    assert report.format == "PyTorch state dict"
    assert [norm.name for norm in report.norms] == ["bn1", "bn2"]
    assert report["bn1"].channels == 512
    np.testing.assert_array_equal(report["bn1"].running_var, state["bn1.running_var"].astype(np.float64))
    assert "bn1" in str(report) and "512" in str(report)
    assert report.to_dict()["norms"][0]["name"] == "bn1"


def test_inspect_finds_what_is_broken(small):
    state = small[0].state_dict()
    state["bn2.running_var"] = state["bn2.running_var"].copy()
    state["bn2.running_var"][3] = -1
    report = evenkeel.inspect(state)
    errors = [finding for finding in report.findings if finding.severity == "error"]
    assert [(e.norm, e.channels) for e in errors] == [("bn2", 1)]
    assert evenkeel.explain(errors[0].code)["remedy"] == errors[0].remedy


def test_inspect_takes_torch_tensors(small):
    torch = pytest.importorskip("torch")
    state = {name: torch.nn.Parameter(torch.from_numpy(value.copy()), requires_grad=False) if value.dtype == np.float32 else
             torch.from_numpy(value.copy()) for name, value in small[0].state_dict().items()}
    watched = {name: value.requires_grad_() if value.is_floating_point() else value for name, value in state.items()}
    np.testing.assert_array_equal(evenkeel.inspect(watched)["bn1"].gamma, state["bn1.weight"].detach().double().numpy())


def test_inspect_a_detector_counts_its_channels():
    report = evenkeel.inspect(shared("models/version-RFB-320.onnx"))
    assert (len(report.norms), report.totals["channels"], report.totals["variance_at_or_below_eps"]) == (35, 2404, 44)


def test_inspect_refuses_a_pickle_with_the_recipe():
    with pytest.raises(evenkeel.FormatError, match="never read here.*safetensors"):
        evenkeel.inspect(shared("models/resnet20-12fca82f.th"))


def test_errors_are_builtin_exceptions_and_name_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="no-such-file"):
        evenkeel.inspect(tmp_path / "no-such-file.onnx")
    with pytest.raises(evenkeel.UsageError, match="did you mean 'architecture'"):
        evenkeel.inspect({}, architectur="resnet20")
    with pytest.raises(evenkeel.UsageError, match="bn.weight is of type str"):
        evenkeel.inspect({"bn.weight": "text"})


def test_explain_lists_all_or_suggests():
    assert len(evenkeel.explain()) > 10
    with pytest.raises(evenkeel.UsageError, match="EK101"):
        evenkeel.explain("EK10l")


# --- fold ---


def test_fold_a_state_dict_gives_the_same_network_in_numpy(small):
    """The folded tensors, run by hand, give the logits of the network."""
    network, x, _ = small
    folded = evenkeel.fold(network.state_dict(), architecture="mlp", input=(5,), classes=2)
    assert sorted(folded) == ["fc1.bias", "fc1.weight", "fc2.bias", "fc2.weight", "fc3.bias", "fc3.weight"]
    assert folded.report.proof["worst"] < 1e-4 and len(folded.report.folded) == 2
    other = evenkeel.Network("mlp", input_shape=(5,), classes=2)
    other.load_state_dict(network.state_dict(), mean=0, std=1)  # takes x as it is
    h = x
    for layer in ("fc1", "fc2"):
        h = np.maximum(h @ folded[f"{layer}.weight"].T + folded[f"{layer}.bias"], 0)
    expected = other.logits(x)
    # float32 products of 512 terms in another order: 1e-5 of the largest value.
    assert np.abs(h @ folded["fc3.weight"].T + folded["fc3.bias"] - expected).max() < 1e-5 * np.abs(expected).max()


def test_fold_a_state_dict_of_convolutions():
    folded = evenkeel.fold(resnet20(), architecture="resnet20")
    assert not any("bn" in name for name in folded) and folded["conv1.bias"].shape == (16,)
    assert len(folded.report.folded) == 19 and folded.report.proof["worst"] < 1e-4


def test_fold_a_file_writes_it(tmp_path):
    report = evenkeel.fold(shared("models/resnet20_cifar10_bn.onnx"), tmp_path / "folded.onnx")
    assert len(report.folded) == 19 and report.left == []
    assert evenkeel.inspect(tmp_path / "folded.onnx").norms == []
    assert "19 of 19 norms folded" in str(report)


def test_fold_writes_nothing_where_the_proof_fails(tmp_path):
    with pytest.raises(evenkeel.Error, match="nothing was written"):
        evenkeel.fold(shared("models/resnet20_cifar10_bn.onnx"), tmp_path / "folded.onnx", tolerance=0)
    assert list(tmp_path.iterdir()) == []


# --- recalibrate ---


def test_recalibrate_a_state_dict_meets_the_known_figures():
    """resnet20 under contrast: 0.6625 with the stored statistics, 0.8790 with those of 2,000 training images (README of the data). The
    estimate there is a plain average of batches; population is another one, a few images of 2,000 apart."""
    state = resnet20()
    x, y = cifar("train_4000.bin.gz")
    done = evenkeel.recalibrate(state, (x[:2000], y[:2000]), test=cifar("test_2000.bin.gz"), architecture="resnet20",
                                corrupt="contrast=0.3", running_statistics="mean_of_batches", batch_size=250, order="file", **STATED)
    assert done.report.before["accuracy"] == pytest.approx(0.6625, abs=1e-9)
    # The order of the batches' sums differs from PyTorch's: one image of 2,000 may fall to the other side.
    assert done.report.after["accuracy"] == pytest.approx(0.8790, abs=6e-4)
    assert list(done) == list(state) or set(done) == set(state)
    changed = {name for name in state if not np.array_equal(state[name], done[name])}
    assert changed and all(".running_" in name or name.endswith("num_batches_tracked") for name in changed)


def test_recalibrate_keeps_the_names_and_needs_no_labels(small):
    network, x, _ = small
    state = {"module." + name: value for name, value in network.state_dict().items()}
    done = evenkeel.recalibrate(state, x, architecture="mlp", input=(5,), classes=2)
    assert set(done) == set(state)
    # The first norm sees x @ W.T: its statistics are those of the data, to float32.
    h = x.astype(np.float64) @ state["module.fc1.weight"].T.astype(np.float64)
    np.testing.assert_allclose(done["module.bn1.running_mean"], h.mean(0), atol=1e-5)
    np.testing.assert_allclose(done["module.bn1.running_var"], h.var(0, ddof=1), rtol=1e-4)
    assert done.report.before is None


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_recalibrate_keeps_the_names_in_any_order(small, prefix):
    network, x, _ = small
    state = network.state_dict()
    order = sorted(state, key=lambda name: name[::-1], reverse=True)
    assert order[0] != next(iter(state))
    given = {prefix + name: state[name] for name in order}
    done = evenkeel.recalibrate(given, x, architecture="mlp", input=(5,), classes=2)
    assert list(done) == list(given)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_tensors_come_back_as_tensors_of_their_types(small, dtype):
    torch = pytest.importorskip("torch")
    network, x, _ = small
    state = {name: torch.from_numpy(value) for name, value in network.state_dict().items()}
    state = {name: value.to(getattr(torch, dtype)) * (1 + 2 ** -40) if value.is_floating_point() else value for name, value in state.items()}
    done = evenkeel.recalibrate(state, 3 * x, architecture="mlp", input=(5,), classes=2)
    assert list(done) == list(state)
    for name, value in done.items():
        assert isinstance(value, torch.Tensor) and value.dtype is state[name].dtype, name
        statistics = ".running_" in name or "tracked" in name
        assert statistics or (torch.equal(value, state[name]) and value is not state[name]), name
    assert not torch.equal(done["bn1.running_var"], state["bn1.running_var"])
    folded = evenkeel.fold({"module." + name: value for name, value in state.items()}, architecture="mlp", input=(5,), classes=2)
    assert {value.dtype for value in folded.values()} == {torch.float32}
    arrays = {name: value.double().numpy() for name, value in state.items() if value.is_floating_point()}
    done = evenkeel.recalibrate(arrays, x, architecture="mlp", input=(5,), classes=2)
    assert {value.dtype for value in done.values()} == {np.dtype("float64")}
    assert all(np.array_equal(done[name], arrays[name]) for name in arrays if ".running_" not in name)


def test_statistics_that_the_type_cannot_hold_are_an_error(small):
    torch = pytest.importorskip("torch")
    network, x, _ = small
    state = {name: torch.from_numpy(value) for name, value in network.state_dict().items()}
    state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    with pytest.raises(evenkeel.Error, match="running_var' would get the value .*, which torch.float16 cannot hold"):
        evenkeel.recalibrate(state, 3000 * x, architecture="mlp", input=(5,), classes=2)


def test_recalibrate_of_names_that_end_alike():
    x = np.random.default_rng(0).random((8, 3, 32, 32), np.float32)
    state = evenkeel.Network("resnet20", input_shape=(3, 32, 32), classes=10).state_dict()
    given = dict(reversed(list(state.items())))
    assert next(name for name in given if name.endswith("conv1.weight")) != "conv1.weight"
    done = evenkeel.recalibrate(given, x, architecture="resnet20", input=(3, 32, 32), classes=10)
    assert list(done) == list(given)


def test_recalibrate_a_file_writes_only_when_asked(small, tmp_path):
    network, x, y = small
    path = tmp_path / "model.safetensors"
    network.save(path)
    report = evenkeel.recalibrate(path, (x, y))
    assert report.after["accuracy"] >= 0.5 and sorted(tmp_path.iterdir()) == [path]
    evenkeel.recalibrate(path, (x, y), tmp_path / "new.safetensors")
    back = tmp_path / "back.safetensors"
    evenkeel.recalibrate(tmp_path / "new.safetensors", out=back, undo=True)
    assert evenkeel.diff(path, back).norms[0]["effect"] == 0


def test_recalibrate_warns_when_it_gets_worse(small):
    network, x, y = small
    state = network.state_dict()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        evenkeel.recalibrate(state, 100 * x + 50, test=(x, y), architecture="mlp", input=(5,), classes=2)
    assert any("judged worse" in str(warning.message) for warning in caught)


# --- diff, convert ---


def test_the_state_dict_of_a_norm_alone():
    alone = {"weight": np.ones(3), "bias": np.zeros(3), "running_mean": np.zeros(3), "running_var": np.ones(3), "num_batches_tracked": np.array(7)}
    report = evenkeel.inspect(alone)
    assert [norm.name for norm in report.norms] == ["norm"] and report["norm"].num_batches_tracked == 7
    other = dict(alone, weight=2 * np.ones(3))
    assert evenkeel.diff(alone, other).norms[0]["gamma"]["relative"] == pytest.approx(1)


@pytest.mark.parametrize("code", [5, "", True])
def test_explain_takes_codes(code):
    with pytest.raises(evenkeel.UsageError, match="expected the code of a finding, such as 'EK101'"):
        evenkeel.explain(code)


def test_diff_of_state_dicts_and_files(small, tmp_path):
    network = small[0]
    path = tmp_path / "model.safetensors"
    network.save(path)
    state = network.state_dict()
    assert [norm["effect"] for norm in evenkeel.diff(state, path).norms] == [0, 0]
    state["bn1.weight"] = state["bn1.weight"] * 2
    report = evenkeel.diff(path, state)
    assert report.norms[0]["name"] == "bn1" and report.norms[0]["gamma"]["relative"] == pytest.approx(1, rel=1e-6)
    assert "1 of 2 norms differ" in str(report)


def test_convert_and_diff_of_outputs(small, tmp_path):
    path = tmp_path / "model.safetensors"
    small[0].save(path)
    done = evenkeel.convert(path, tmp_path / "model.onnx")
    assert done["to"] == "an ONNX model"
    # The same weights by two paths: rounding only.
    assert evenkeel.diff(path, tmp_path / "model.onnx", random=16).outputs[0]["relative"] < 1e-5


def test_reports_are_those_of_the_program(tmp_path):
    program = os.environ.get("EVENKEEL_PROGRAM")
    if not program:
        pytest.skip("EVENKEEL_PROGRAM is not set")
    path = shared("models/resnet20_cifar10_bn.onnx")
    text = subprocess.run([program, "inspect", "--verbose", "--color", "never", path], capture_output=True, text=True, check=True).stdout
    assert str(evenkeel.inspect(path)) == text
