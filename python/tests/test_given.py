"""What networks and tools are given: options of examples in memory, checkpoints, mean and std of any kind, files that are not there."""
import copy
import errno
import io
import pickle
import warnings

import evenkeel
import numpy as np
import pytest

WRAPPED = ["module.", "state_dict.", "model.module.", "_orig_mod.module.", "state_dict.model."]


@pytest.fixture(scope="module")
def state():
    return evenkeel.Network("cnn", input_shape=(3, 16, 16), classes=4).state_dict()


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(3).integers(0, 256, (24, 3, 16, 16), np.uint8)


STATED = dict(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
SHAPE = dict(architecture="cnn", input=(3, 16, 16), classes=4)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, state):
    network = evenkeel.Network("cnn", input_shape=(3, 16, 16), classes=4)
    network.load_state_dict(state, **STATED)
    path = tmp_path_factory.mktemp("given") / "cnn.onnx"
    network.save(path)
    return path


# --- the preprocessing of examples in memory ---


@pytest.mark.filterwarnings("ignore")
def test_tools_take_mean_and_std_with_examples_in_memory(state, pixels, exported):
    labels = np.arange(len(pixels)) % 4
    found = [evenkeel.inspect(state, (pixels, labels), **SHAPE, **stated).data for stated in (STATED, {})]
    assert found[0] != found[1]
    assert evenkeel.diff(state, state, data=pixels, **SHAPE, **STATED).outputs[0]["relative"] == 0
    assert evenkeel.fold(exported, data=pixels, **STATED).proof["worst"] < 1e-4
    with pytest.raises(evenkeel.UsageError, match="mean says how the examples of data become inputs"):
        evenkeel.inspect(state, **SHAPE, **STATED)


def as_tensor(values):
    return pytest.importorskip("torch").tensor(values, dtype=pytest.importorskip("torch").float64)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [list, np.array, lambda v: np.array(v).reshape(1, 3, 1, 1), lambda v: list(map(np.float64, v)), as_tensor,
                                  lambda v: ",".join(map(str, v))])
def test_mean_and_std_of_any_kind(state, pixels, kind):
    stated = {name: kind(values) for name, values in STATED.items()}
    expected = evenkeel.recalibrate(state, pixels, **SHAPE, **STATED)
    done = evenkeel.recalibrate(state, pixels, **SHAPE, **stated)
    assert all(np.array_equal(done[name], expected[name]) for name in state)
    networks = [evenkeel.Network("cnn", input_shape=(3, 16, 16), classes=4) for _ in range(2)]
    for network, given in zip(networks, (STATED, stated)):
        network.load_state_dict(state, **given)
    assert np.array_equal(networks[0].logits(pixels), networks[1].logits(pixels))


@pytest.mark.parametrize("mean", ["a", True, None.__class__, [], [[1], [2, 3]], float("nan"), np.array(["x"]), object()])
def test_what_is_no_mean_gets_one_sentence(state, pixels, mean, tmp_path):
    network = evenkeel.Network("cnn", input_shape=(3, 16, 16), classes=4)
    for call in (lambda: network.load_state_dict(state, mean=mean), lambda: evenkeel.Network.load(tmp_path, "cnn", mean=mean),
                 lambda: evenkeel.inspect(state, pixels, mean=mean, **SHAPE), lambda: network.evaluate(pixels, np.zeros(24, int), mean=mean)):
        with pytest.raises(evenkeel.UsageError, match="mean: found .* expected a finite number, or one for each channel"):
            call()


# --- state dicts ---


def test_the_standardization_of_a_state_dict_is_given_beside_it(state, pixels, exported):
    network = evenkeel.Network("cnn", input_shape=(3, 16, 16), classes=4)
    with pytest.warns(UserWarning, match="no standardization.*give the mean and std"):
        network.load_state_dict(state)
    bare = network.logits(pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network.load_state_dict(state, **STATED)
        stated = network.logits(pixels)
        network.load_state_dict(state)  # keeps what it has
        np.testing.assert_array_equal(network.logits(pixels), stated)
        network.load_state_dict(state, mean=0, std=1)
        np.testing.assert_array_equal(network.logits(pixels), bare)
    x = (pixels / np.float32(255) - np.array(STATED["mean"], "f4").reshape(3, 1, 1)) / np.array(STATED["std"], "f4").reshape(3, 1, 1)
    # The same inputs by another way: (x - mean) * (1 / std) in fp32, and sums of some hundred terms.
    np.testing.assert_allclose(network.logits(x.astype("f4")), stated, atol=1e-5 * np.abs(stated).max())
    with pytest.raises(evenkeel.UsageError, match="std: found 2 numbers, expected one for each of 3 channels"):
        network.load_state_dict(state, std=[1, 2])


@pytest.mark.parametrize("given, message", [
    (dict(strict=False), "strict is False; expected True"), (dict(state=None), "state: found None, expected a state dict"),
    (dict(state=[1, 2]), "state: found a list, expected a state dict"), (dict(state="x.pt"), "state: found 'x.pt', expected a state dict")
])
def test_what_is_no_state_dict_is_refused(state, given, message):
    network = evenkeel.Network("cnn", input_shape=(3, 16, 16), classes=4)
    with pytest.raises(evenkeel.UsageError, match=message):
        network.load_state_dict(**{"state": state, **given})


@pytest.mark.parametrize("wrap, way", [
    (lambda s: {"epoch": 3, "state_dict": s}, r"\['state_dict'\]"), (lambda s: {"model": s}, r"\['model'\]"),
    (lambda s: {"optimizer": {"state": {}, "param_groups": []}, "ema": {"x": s}, "epoch": 1}, r"\['ema'\]\['x'\]"),
])
def test_a_checkpoint_is_named(state, pixels, wrap, way):
    checkpoint = wrap(state)
    network = evenkeel.Network("cnn", input_shape=(3, 16, 16), classes=4)
    for call in (lambda: evenkeel.inspect(checkpoint), lambda: evenkeel.diff(state, checkpoint), lambda: evenkeel.fold(checkpoint, **SHAPE),
                 lambda: evenkeel.recalibrate(checkpoint, pixels, **SHAPE), lambda: network.load_state_dict(checkpoint)):
        with pytest.raises(evenkeel.UsageError, match="found a checkpoint.*give checkpoint" + way):
            call()


def test_a_module_in_a_checkpoint_is_asked_for_its_state_dict():
    torch = pytest.importorskip("torch")
    with pytest.raises(evenkeel.UsageError, match=r"give checkpoint\['model'\].state_dict\(\)"):
        evenkeel.inspect({"model": torch.nn.BatchNorm1d(3), "epoch": 1})


def test_convert_asks_for_a_file(state, tmp_path):
    with pytest.raises(evenkeel.UsageError, match="found a state dict, expected the path of a model file"):
        evenkeel.convert(state, tmp_path / "x.onnx")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("prefix", WRAPPED)
def test_wrappers_of_names_are_one_list(state, pixels, prefix):
    wrapped = {prefix + name: value for name, value in state.items()}
    done = evenkeel.recalibrate(wrapped, pixels, **SHAPE)
    assert list(done) == list(wrapped)
    plain, report = evenkeel.inspect(state), evenkeel.inspect(wrapped)
    assert list(report) == list(plain)
    found = evenkeel.diff(wrapped, state)
    assert (found.only_in_a, found.only_in_b, len(found.norms)) == ([], [], len(plain)) and "order" not in str(found)


def test_words_that_stand_in_front_of_some_names_only_stay(state):
    names = ["model.bn", "head.bn"]
    values = {f"{name}.{what}": np.ones(3) for name in names for what in ("running_mean", "running_var")}
    assert list(evenkeel.inspect(values)) == names


def test_a_recalibrated_state_dict_is_pickled_without_us(state, pixels):
    torch = pytest.importorskip("torch")
    given = {name: torch.from_numpy(value) for name, value in state.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = evenkeel.recalibrate(given, pixels, **SHAPE)
    file = io.BytesIO()
    torch.save(done, file)
    assert b"evenkeel" not in file.getvalue() and b"evenkeel" not in pickle.dumps(done)
    file.seek(0)
    again = torch.load(file, weights_only=True)
    assert list(again) == list(done) and all(torch.equal(again[name], done[name]) for name in done)
    for copied in (copy.copy(done), copy.deepcopy(done)):
        assert type(copied) is type(done) and copied.report is done.report and list(copied) == list(done)


# --- reports ---


def test_a_report_is_asked_like_a_dict(state):
    report = evenkeel.inspect({"module." + name: value for name, value in state.items()})
    names = [norm.name for norm in report.norms]
    assert list(report) == names and len(report) == len(names) and [report[name] for name in report] == report.norms
    assert names[0] in report and "module." + names[0] in report and "none" not in report and 5 not in report
    assert report["module." + names[0]] is report[names[0]]
    with pytest.raises(KeyError, match=f"no norm 'none'; there are {names[0]}, "):
        report["none"]
    assert evenkeel.inspect({"fc.weight": np.ones((2, 2), "f4")})  # of no norms, and true


# --- warnings, files ---


def test_evaluate_fit_and_load_warn(state, pixels, tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.random((64, 1, 8, 8)).astype("f4"), np.arange(64) % 2
    network = evenkeel.Network("mlp")
    with pytest.warns(UserWarning, match="^rmsprop_alpha has no effect: optimizer is adamw"):
        history = network.fit(x, y, epochs=1, batch_size=16, rmsprop_alpha=0.5)
    assert any("rmsprop_alpha has no effect" in note for note in history.notes)
    other = evenkeel.Network("cnn", input_shape=(3, 16, 16), classes=4)
    other.load_state_dict(state, **STATED)
    with pytest.warns(UserWarning, match="^mean 123 is subtracted from pixels / 255") as caught:
        other.evaluate(pixels, np.zeros(24, int), mean=123, std=60)
    assert caught[0].filename == __file__
    other.save(tmp_path / "other.safetensors")
    evenkeel.convert(tmp_path / "other.safetensors", tmp_path / "training.onnx", training=True)
    with pytest.warns(UserWarning, match="in training mode") as caught:
        evenkeel.Network.load(tmp_path / "training.onnx")
    assert caught[0].filename == __file__


def test_a_file_that_is_not_there_is_a_file_not_found_error(tmp_path):
    path = str(tmp_path / "none.safetensors")
    calls = [lambda: evenkeel.Network.load(path), lambda: evenkeel.inspect(path), lambda: evenkeel.fold(path), lambda: evenkeel.diff(path, path),
             lambda: evenkeel.recalibrate(path), lambda: evenkeel.convert(path, tmp_path / "x.onnx")]
    for call in calls:
        with pytest.raises(FileNotFoundError, match="there is no file") as caught:
            call()
        error = caught.value
        assert (error.errno, error.filename) == (errno.ENOENT, path) and isinstance(error, evenkeel.UsageError)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
    with pytest.raises(evenkeel.UsageError, match="has no option 'architectur'") as caught:
        evenkeel.inspect(path, architectur="mlp")
    assert not isinstance(caught.value, FileNotFoundError)
