"""evenkeel.Network: fit, evaluate, predict, save and load, on arrays and on data sets by name."""
import copy
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading
import time

import evenkeel
import numpy as np
import pytest

DATA = pathlib.Path(os.environ.get("EVENKEEL_TEST_DATA", pathlib.Path(__file__).parents[3] / "shared/data"))


def table(n=300, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0)


def images(n=64, seed=0):
    """Bright above or bright below: uint8 [n, 8, 8] and 0 or 1."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    x = rng.integers(0, 100, (n, 8, 8))
    x[y == 0, :4] += 150
    x[y == 1, 4:] += 150
    return x.astype(np.uint8), y


@pytest.fixture(scope="module")
def trained():
    network = evenkeel.Network("mlp")
    network.fit(*table(), epochs=5, batch_size=30, learning_rate=1e-2)
    return network


# --- making ---


def test_a_network_with_shape_has_initial_values():
    network = evenkeel.Network("resnet20", input_shape=(3, 32, 32), classes=10)
    state = network.state_dict()
    assert state["conv1.weight"].shape == (16, 3, 3, 3) and (state["bn1.running_var"] == 1).all()
    assert network.input_shape == (3, 32, 32) and network.classes == 10
    assert "resnet20" in repr(network) and "initial values" in repr(network) and "layer1.0.conv1.weight" in network.summary()
    same, other = (evenkeel.Network("resnet20", input_shape=(3, 32, 32), classes=10, seed=seed).state_dict() for seed in (1, 2))
    assert np.array_equal(state["conv1.weight"], same["conv1.weight"]) and not np.array_equal(state["conv1.weight"], other["conv1.weight"])


def test_a_network_from_toml(tmp_path):
    (tmp_path / "net.toml").write_text('[[layer]]\ntype = "linear"\nout = 7\n\n[[layer]]\ntype = "linear"\n')
    network = evenkeel.Network(tmp_path / "net.toml", input_shape=(6,), classes=3)
    assert network.state_dict()["fc1.weight"].shape == (7, 6)


def test_mistakes_of_making_are_named():
    with pytest.raises(evenkeel.UsageError, match="resnet20"):
        evenkeel.Network("resnet2O", input_shape=(3, 32, 32), classes=10)
    with pytest.raises(evenkeel.UsageError, match="input_shape and classes go together"):
        evenkeel.Network("mlp", classes=3)
    with pytest.raises(evenkeel.UsageError, match="no shape yet"):
        evenkeel.Network("mlp").state_dict()


@pytest.mark.parametrize("arguments, message", [
    (dict(architecture="mlpp"), "unknown model 'mlpp'; did you mean 'mlp'"),
    (dict(architecture="a.onnx"), r"use Network.load\("),
    (dict(architecture="a.safetensors"), r"use Network.load\("),
    (dict(input_shape=(-3,), classes=2), r"input_shape: found \(-3,\), expected"),
    (dict(input_shape=6, classes=2), "input_shape: found 6, expected"),
    (dict(input_shape=(6,), classes=-1), "classes: found -1, expected"),
    (dict(architecture="cnn", input_shape=(6,), classes=2), "needs images.*use model mlp"),
    (dict(seed=-1), "seed: found -1, expected"),
])
def test_making_is_refused_at_once(arguments, message):
    with pytest.raises(evenkeel.UsageError, match=message):
        evenkeel.Network(**(dict(architecture="mlp") | arguments))


# --- fit ---


def test_fit_learns_and_says_how():
    x, y = table()
    seen = []
    network = evenkeel.Network("mlp")
    history = network.fit(x, y, validation=table(90, 1), epochs=5, batch_size=30, learning_rate=1e-2, on_epoch=seen.append)
    assert len(history) == 5 and history.steps == 50 and history.run is None
    assert [record["epoch"] for record in seen] == [1, 2, 3, 4, 5]
    assert history.loss[-1] < history.loss[0] and history.validation_accuracy[-1] > 0.85
    assert network.input_shape == (6,) and network.classes == 3


def test_fit_is_the_same_for_any_threads_and_layout():
    x, y = table()
    states = []
    for data, threads in ((x, 1), (np.asfortranarray(x.astype(np.float64)), 2), (np.repeat(x, 2, axis=0)[::2], 2)):
        network = evenkeel.Network("mlp")
        network.fit(data, y.astype(np.int16), epochs=1, batch_size=50, threads=threads)
        states.append(network.state_dict())
    for state in states[1:]:
        assert all(np.array_equal(state[name], states[0][name]) for name in state)


@pytest.mark.parametrize("shape", [(64, 8, 8), (64, 1, 8, 8)])
def test_fit_on_images_of_bytes_and_of_floats(shape):
    x, y = images()
    answers = []
    for data in (x.reshape(shape), (x / np.float32(255)).reshape(shape).astype(np.float32)):
        network = evenkeel.Network("cnn-gap")
        network.fit(data, y, epochs=6, batch_size=16, learning_rate=1e-2)
        assert network.input_shape == (1, 8, 8)
        answers.append(network.evaluate(data, y)["accuracy"])
    assert min(answers) > 0.9


def test_fit_takes_torch_tensors():
    torch = pytest.importorskip("torch")
    x, y = table(80)
    network = evenkeel.Network("mlp")
    network.fit(torch.from_numpy(x).requires_grad_(), torch.from_numpy(y), epochs=1, batch_size=40)
    assert network.predict(torch.from_numpy(x)).shape == (80,)


def test_fit_goes_on_from_what_there_is(trained):
    x, y = table()
    network = evenkeel.Network("mlp", input_shape=(6,), classes=3)
    network.load_state_dict(trained.state_dict())
    history = network.fit(x, y, epochs=1, batch_size=30, learning_rate=1e-4, schedule="constant")
    fresh = evenkeel.Network("mlp").fit(x, y, epochs=1, batch_size=30, learning_rate=1e-4, schedule="constant")
    assert history.loss[0] < 0.7 * fresh.loss[0]


def test_fit_takes_the_options_of_the_program():
    x, y = table()
    network = evenkeel.Network("mlp")
    network.fit(x, y, epochs=2, batch_size=50, optimizer="nesterov", momentum=0.8, schedule="cosine", warmup_epochs=0.5,
                running_statistics="population", freeze_affine=["bn1"], bias_corrected=False)
    assert (network.state_dict()["bn1.weight"] == 1).all()
    assert "population" in network.summary()


def test_fit_writes_a_run_folder(tmp_path):
    x, y = table(60)
    history = evenkeel.Network("mlp").fit(x, y, epochs=1, batch_size=30, out=tmp_path / "run")
    assert history.run == str(tmp_path / "run") and (tmp_path / "run" / "log.jsonl").exists()
    assert evenkeel.Network.load(tmp_path / "run").evaluate(x, y)["examples"] == 60


@pytest.mark.parametrize("change, message", [
    (dict(lerning_rate=1), "did you mean 'learning_rate'"),
    (dict(epochs=0), "epochs: found '0'"),
    (dict(optimizer="adamv"), "did you mean 'adam"),
    (dict(y=np.zeros(299, np.int64)), "300 examples and y holds 299 labels"),
    (dict(y=np.zeros(300)), "y"),
    (dict(y=np.full(300, -2)), "y"),
    (dict(y=np.zeros(300, np.int64)), "class"),
    (dict(x=np.full((300, 6), np.nan, np.float32)), "x"),
    (dict(x=np.zeros((300, 6), np.complex64)), "x"),
    (dict(x=np.zeros((2, 2, 2, 2, 2), np.float32)), "x"),
    (dict(validation=(np.zeros((9, 5), np.float32), np.zeros(9, np.int64))), "validation x: found examples of"),
    (dict(validation=np.zeros((9, 6))), "validation: expected the examples and their labels"),
])
def test_mistakes_of_fit_are_one_sentence(change, message):
    x, y = table()
    arguments = dict(x=x, y=y, epochs=1) | change
    with pytest.raises(ValueError, match=message) as raised:
        evenkeel.Network("mlp").fit(arguments.pop("x"), arguments.pop("y"), **arguments)
    assert "--" not in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("change, message", [
    (dict(y=np.zeros(300)), r"y: found floats.*; give y.astype\('int64'\)"),
    (dict(y=np.eye(3)[np.zeros(300, int)].astype(int)), r"y: found the shape \[300, 3\].*give y.argmax\(1\)"),
    (dict(y=np.full(300, -2)), "label -2 at index 0"),
    (dict(y=np.full(300, 2 ** 63 + 5, np.uint64)), "label 9223372036854775807 at index 0"),
    (dict(x=np.full((300, 6), np.nan, np.float32)), "x"),
    (dict(x=[[1.0, 2.0], [3.0]]), "found lists that make no array"),
    (dict(on_epoch=5), "on_epoch: found 5, expected a function"),
    (dict(threads=100000), r"threads is 100000; expected 0 \(all cores\) to 1024"),
])
def test_mistakes_with_arrays_are_of_the_call(change, message):
    x, y = table()
    arguments = dict(x=x, y=y, epochs=1) | change
    with pytest.raises(evenkeel.UsageError, match=message) as raised:
        evenkeel.Network("mlp").fit(arguments.pop("x"), arguments.pop("y"), **arguments)
    assert "save" not in str(raised.value)


def test_labels_and_examples_of_other_types():
    x, y = table(60)
    whole = np.round(8 * x) / 8  # exact in 16 bits
    expected = evenkeel.Network("mlp")
    expected.fit(whole, (y > 0).astype(int), epochs=1, batch_size=30)
    given = [(whole, y > 0), (whole.tolist(), (y > 0).tolist()), (whole.astype(np.float16), y > 0)]
    try:
        import torch
        given.append((torch.from_numpy(whole).bfloat16(), torch.from_numpy(y > 0)))
    except ImportError:
        pass
    for examples, labels in given:
        network = evenkeel.Network("mlp")
        network.fit(examples, labels, epochs=1, batch_size=30)
        assert np.array_equal(network.predict_proba(whole), expected.predict_proba(whole))
    assert np.array_equal(expected.predict(whole > 0), expected.predict((whole > 0).astype(np.float32)))


def test_a_folder_with_a_run_is_refused_in_python_words(tmp_path):
    x, y = table(60)
    evenkeel.Network("mlp").fit(x, y, epochs=1, batch_size=30, out=tmp_path / "run")
    with pytest.raises(evenkeel.UsageError, match=r"already holds a run.*Network.load\(folder\)") as raised:
        evenkeel.Network("mlp").fit(x, y, epochs=1, batch_size=30, out=tmp_path / "run")
    assert "resume" not in str(raised.value)


def test_data_must_fit_the_network(trained):
    with pytest.raises(evenkeel.UsageError, match=r"x: found examples of \[5\], but the network takes \[6\]"):
        trained.predict(np.zeros((3, 5), np.float32))
    with pytest.raises(evenkeel.UsageError, match="y: found the label 7 at 1"):
        trained.evaluate(np.zeros((2, 6), np.float32), np.array([0, 7]))


def test_data_by_name_must_fit_the_network(tmp_path):
    x, y = table(40)
    rows = "\n".join(",".join(map(str, [*row, label])) for row, label in zip(x, y))
    (tmp_path / "table.csv").write_text(rows + "\n")
    with pytest.raises(evenkeel.UsageError, match=r"found examples of \[6\], but the network takes \[5\]"):
        evenkeel.Network("mlp", input_shape=(5,), classes=3).fit(tmp_path / "table.csv", epochs=1)
    with pytest.raises(evenkeel.UsageError, match="found 3 classes, but the network has 4"):
        evenkeel.Network("mlp", input_shape=(6,), classes=4).fit(tmp_path / "table.csv", epochs=1)
    evenkeel.Network("mlp", input_shape=(6,), classes=3).fit(tmp_path / "table.csv", epochs=1)


def test_channels_last_is_named():
    network = evenkeel.Network("resnet20", input_shape=(3, 32, 32), classes=10)
    with pytest.raises(evenkeel.UsageError, match=r"x: the shape \[4, 32, 32, 3\] looks like channels last.*transpose") as raised:
        network.predict(np.zeros((4, 32, 32, 3), np.uint8))
    assert "--" not in str(raised.value)


def test_what_a_callback_raises_ends_the_run():
    def stop(record):
        if record["epoch"] == 2:
            raise RuntimeError("enough")

    network = evenkeel.Network("mlp")
    with pytest.raises(RuntimeError, match="enough"):
        network.fit(*table(), epochs=1000, batch_size=30, on_epoch=stop)
    assert network.evaluate(*table())["accuracy"] > 0.4  # it has the values of the epoch in which it ended


def test_values_that_are_not_finite_leave_the_network_as_it_was(trained):
    before = trained.state_dict()
    with pytest.raises(evenkeel.Error, match="as it was"):
        trained.fit(*table(), epochs=2, optimizer="sgd", learning_rate=1e30, schedule="constant")
    assert all(np.array_equal(before[name], value) for name, value in trained.state_dict().items())


def test_ctrl_c_ends_after_a_step_and_leaves_a_network():
    script = """
import evenkeel, numpy as np, sys
x = np.random.default_rng(0).normal(size=(4000, 6)).astype(np.float32)
y = (x[:, 0] > 0).astype(int)
network = evenkeel.Network("mlp")
try:
    network.fit(x, y, epochs=100000, batch_size=100, on_epoch=lambda r: print("epoch", flush=True) if r["epoch"] == 1 else None)
except KeyboardInterrupt:
    print("stopped", network.evaluate(x, y)["accuracy"] > 0.8, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "epoch\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[0] == "stopped True\n"
        assert process.returncode == 0


def test_ctrl_c_ends_what_runs_a_network_over_data(tmp_path):
    network = evenkeel.Network("cnn")
    rng = np.random.default_rng(0)
    x, y = rng.random((20000, 1, 28, 28), dtype=np.float32), rng.integers(0, 10, 20000)
    network.fit(x[:64], y[:64], epochs=1, batch_size=32)
    network.save(tmp_path / "cnn.safetensors")
    network.save(tmp_path / "cnn.onnx")
    for work in (lambda: network.predict(x), lambda: network.evaluate(x, y),
                 lambda: evenkeel.recalibrate(tmp_path / "cnn.safetensors", (x, y)),
                 lambda: evenkeel.recalibrate(tmp_path / "cnn.onnx", (x, y))):
        seen, ended = [], threading.Event()

        def handler(number, frame):
            seen.append(ended.is_set())
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGINT, handler)
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        try:
            with pytest.raises(KeyboardInterrupt):
                timer.start()
                work()
                ended.set()
                time.sleep(30)  # the signal then comes here, and is seen to be late
        finally:
            signal.signal(signal.SIGINT, before)
        assert seen == [False]
        assert network.predict(x[:3]).shape == (3,)  # nothing is held any more


def test_other_threads_go_on_and_are_kept_out():
    network = evenkeel.Network("mlp")
    ticks, refused, done = [], [], threading.Event()

    def work():
        while not done.is_set():
            ticks.append(1)
            assert network.classes in (None, 3) and "mlp" in repr(network)
            try:
                network.predict(table()[0])
            except evenkeel.UsageError as error:
                refused.append(str(error))
            time.sleep(0.002)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        network.fit(*table(2000), epochs=5, batch_size=50)
    finally:
        done.set()
        thread.join()
    assert len(ticks) > 3 and any("another thread" in message for message in refused)


def test_threads_wait_for_each_other(trained):
    x, y = table(2000)
    expected, loss, wrong = trained.predict_proba(x), trained.evaluate(x, y)["loss"], []

    def ask(what):
        try:
            for _ in range(6):
                what()
        except Exception as error:
            wrong.append(error)

    def same():
        assert np.array_equal(trained.predict_proba(x, threads=1), expected)

    def evaluate():
        assert trained.evaluate(x, y, mean=3.0, std=2.0)["loss"] != loss

    work = [same, same, evaluate, lambda: repr(trained), trained.summary, trained.state_dict]
    threads = [threading.Thread(target=ask, args=(what,)) for what in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_inside_on_epoch(tmp_path):
    network, said = evenkeel.Network("mlp"), []

    def look(record):
        said.append(repr(network))
        for ask in (network.state_dict, lambda: network.save(tmp_path / "n.onnx"), lambda: network.predict(table()[0]),
                    lambda: network.fit(*table(), epochs=1), lambda: pickle.dumps(network)):
            with pytest.raises(evenkeel.UsageError, match="inside on_epoch.*out="):
                ask()

    network.fit(*table(), epochs=2, batch_size=50, on_epoch=look)
    assert said == ["<evenkeel.Network mlp: in training>"] * 2 and "in training" not in repr(network)
    network.fit(*table(), epochs=1, batch_size=50, on_epoch=lambda record: said.append(repr(network)))
    assert said[-1].endswith("parameters, in training>")


def test_an_array_that_asks_the_network_does_not_wait_for_itself(trained):
    class Asking:
        def __dlpack_device__(self):
            return 1, 0

        def __dlpack__(self, **_):
            return trained.state_dict()

    with pytest.raises(evenkeel.UsageError, match="at work in this thread"):
        trained.predict(Asking())


def test_fit_on_fashion_mnist_by_name():
    if not pathlib.Path("/usr/share/datasets/fashion-mnist").exists() and not list(pathlib.Path("/usr/share").glob("**/t10k-images-idx3-ubyte*")):
        pytest.skip("the package dataset-fashion-mnist is not installed")
    network = evenkeel.Network("mlp")
    history = network.fit("fashion-mnist", epochs=1, max_steps=60, overfit=4000)
    assert network.input_shape == (1, 28, 28) and "Sneaker" in network.class_names and history.test_accuracy[-1] > 0.6
    assert network.evaluate("fashion-mnist", corrupt="contrast=0.3")["examples"] == 10000


# --- answers ---


def test_answers_agree_with_each_other(trained):
    x, y = table()
    p, logits = trained.predict_proba(x), trained.logits(x)
    assert p.shape == (300, 3) and p.dtype == np.float32
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(e / e.sum(axis=1, keepdims=True), p, atol=1e-6)  # two programs, float32
    assert (trained.predict(x) == p.argmax(axis=1)).all()
    assert (trained.predict(x) == y).mean() == pytest.approx(trained.evaluate(x, y)["accuracy"], abs=1e-12)
    assert np.array_equal(trained.predict_proba(x[:1]), p[:1])
    assert trained.evaluate(x, y, statistics="batch")["loss"] != trained.evaluate(x, y)["loss"]


def test_the_network_is_that_of_pytorch(trained):
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(value) for name, value in trained.state_dict().items()}
    network = evenkeel.Network("mlp", input_shape=(6,), classes=3)
    network.load_state_dict(state, mean=0, std=1)
    x = torch.from_numpy(table()[0])
    F = torch.nn.functional
    h = x
    for i in (1, 2):
        h = F.linear(h, state[f"fc{i}.weight"])
        h = F.relu(F.batch_norm(h, state[f"bn{i}.running_mean"], state[f"bn{i}.running_var"], state[f"bn{i}.weight"], state[f"bn{i}.bias"]))
    expected = F.linear(h, state["fc3.weight"], state["fc3.bias"]).numpy()
    # float32 products of 512 terms in another order.
    assert np.abs(network.logits(x) - expected).max() < 1e-5 * np.abs(expected).max()


def test_known_accuracy_of_resnet20():
    if not (DATA / "models").exists():
        pytest.skip(f"{DATA} has no models")
    test_set = DATA / "cifar10/test_2000.bin.gz"
    stated = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    own = evenkeel.Network.load(DATA / "models/resnet20_cifar10.safetensors", "resnet20", **stated)
    foreign = evenkeel.Network.load(DATA / "models/resnet20_cifar10_bn.onnx")
    assert own.evaluate(test_set)["accuracy"] == pytest.approx(0.9180, abs=1e-9)
    assert foreign.evaluate(test_set, **stated)["accuracy"] == pytest.approx(0.9180, abs=1e-9)


@pytest.mark.parametrize("threads", [-1, 1025, 100000, 2 ** 40, 2 ** 70])
def test_threads_that_cannot_be_are_refused(trained, threads):
    x, y = table()
    said = r"threads is .*; expected 0 \(all cores\) to 1024"
    for ask in (trained.predict, trained.predict_proba, trained.logits, lambda x, threads: trained.evaluate(x, y, threads=threads),
                lambda x, threads: evenkeel.inspect(trained.state_dict(), x, architecture="mlp", input=(6,), classes=3, threads=threads)):
        with pytest.raises(evenkeel.UsageError, match=said):
            ask(x, threads=threads)


def test_no_threads_and_huge_batches(trained):
    x, y = table()
    expected = trained.predict_proba(x)
    for batch_size in (2 ** 62, 2 ** 63 - 1, 300, 7):
        assert np.array_equal(trained.predict_proba(x, batch_size=batch_size, threads=0), expected)
        assert trained.logits(x, batch_size=batch_size).shape == (300, 3)
    assert trained.evaluate(x, y, threads=0)["examples"] == 300
    with pytest.raises(evenkeel.UsageError, match="batch_size: found 0"):
        trained.predict(x, batch_size=0)


def test_what_evaluate_is_told_holds_for_that_call(trained, tmp_path):
    x, y = table()
    trained.save(tmp_path / "n.safetensors")
    trained.save(tmp_path / "n.onnx")
    for name in ("n.safetensors", "n.onnx"):
        network = evenkeel.Network.load(tmp_path / name)
        before, loss = network.predict_proba(x), network.evaluate(x, y)["loss"]
        assert network.evaluate(x, y, mean=5.0, std=2.0)["loss"] != loss
        assert np.array_equal(network.predict_proba(x), before)
        with pytest.raises(evenkeel.Error):  # contrast is for images
            network.evaluate(x, y, mean=5.0, std=2.0, corrupt="contrast=0.3")
        assert np.array_equal(network.predict_proba(x), before)


# --- files ---


def test_save_and_load(trained, tmp_path):
    x, _ = table()
    for name in ("model.safetensors", "model.onnx"):
        trained.save(tmp_path / name)
        again = evenkeel.Network.load(tmp_path / name)
        np.testing.assert_allclose(again.predict_proba(x), trained.predict_proba(x), atol=1e-6)  # the ONNX one: another program
    assert "ONNX" in repr(again) or again.classes == 3
    with pytest.raises(evenkeel.UsageError, match=r"ONNX model; give them to evaluate\(\)"):
        evenkeel.Network.load(tmp_path / "model.onnx", mean=0.5)
    with pytest.raises(evenkeel.UsageError, match="not trained here.*Network.load"):
        again.fit(*table())
    with pytest.raises(evenkeel.UsageError, match=r"ends in \.safetensors or \.onnx"):
        trained.save(tmp_path / "model.pt")


def test_copies_and_pickles(trained, tmp_path):
    x, _ = table()
    trained.save(tmp_path / "n.onnx")
    for network in (trained, evenkeel.Network.load(tmp_path / "n.onnx"), evenkeel.Network("mlp", input_shape=(6,), classes=3)):
        for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert repr(other) == repr(network) and other.summary() == network.summary() and other.class_names == network.class_names
            assert np.array_equal(other.predict_proba(x), network.predict_proba(x))
    made_later = copy.deepcopy(evenkeel.Network("mlp"))
    made_later.fit(*table(), epochs=1)
    assert made_later.classes == 3


def test_state_dict_goes_there_and_back(trained):
    other = evenkeel.Network("mlp", input_shape=(6,), classes=3)
    state = trained.state_dict()
    other.load_state_dict({"module." + name: value.astype(np.float64) if value.dtype == np.float32 else value for name, value in state.items()})
    assert all(np.array_equal(state[name], value) for name, value in other.state_dict().items())
    broken = dict(state)
    broken["fc1.wieght"] = broken.pop("fc1.weight")
    with pytest.raises(evenkeel.FormatError, match="fc1.weight"):
        other.load_state_dict(broken)


def test_load_names_what_is_missing(trained, tmp_path):
    with pytest.raises(evenkeel.UsageError, match="no-such"):
        evenkeel.Network.load(tmp_path / "no-such.safetensors")
    if (DATA / "models").exists():
        with pytest.raises(evenkeel.UsageError, match="architecture resnet20"):
            evenkeel.Network.load(DATA / "models/resnet20_cifar10.safetensors")


def test_the_best_epoch_is_kept_and_patience_ends_the_run():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 6)).astype(np.float32), rng.integers(0, 3, 300)  # nothing to learn: validation soon gets worse
    network = evenkeel.Network("mlp")
    history = network.fit(x[:200], y[:200], validation=(x[200:], y[200:]), epochs=40, batch_size=50, schedule="constant", patience=3,
                          keep="best-loss")
    assert history.stopped_early and len(history) == history.best_epoch + 3 < 40
    least = min(history.validation_loss)
    assert history.validation_loss.index(least) + 1 == history.best_epoch
    assert network.evaluate(x[200:], y[200:])["loss"] == pytest.approx(least, rel=1e-6)
    early = evenkeel.Network("mlp").fit(x[:200], y[:200], validation=(x[200:], y[200:]), epochs=40, patience=3, min_delta=1e9)
    assert early.best_epoch == 1 and len(early) == 4  # nothing is better by that much
    plain = evenkeel.Network("mlp").fit(x, y, epochs=1)
    assert plain.best_epoch is None and not plain.stopped_early
    with pytest.raises(evenkeel.UsageError, match="patience judges the epochs by a validation set"):
        evenkeel.Network("mlp").fit(x, y, epochs=1, patience=2)
    with pytest.raises(evenkeel.UsageError, match="keep"):
        evenkeel.Network("mlp").fit(x, y, validation=(x, y), epochs=1, keep="best")


def test_what_is_no_path_is_said_so():
    for call in (lambda: evenkeel.Network(5), lambda: evenkeel.Network.load(5), lambda: evenkeel.Network.load("a", 5),
                 lambda: evenkeel.inspect(5)):
        with pytest.raises(evenkeel.UsageError, match="found 5 of type int, expected a path or a name"):
            call()
    with pytest.raises(evenkeel.UsageError, match=r"found a Network, expected a path or a state dict: give model.state_dict\(\)"):
        evenkeel.fold(evenkeel.Network("mlp"))


def test_commands_in_messages_stay_as_they_are(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32), np.arange(40) % 2
    evenkeel.Network("mlp").fit(x, y, epochs=1, out=tmp_path / "run")
    checkpoint = next((tmp_path / "run").glob("checkpoint-*.safetensors"))
    with pytest.raises(evenkeel.FormatError, match="from which `evenkeel train --resume` goes on"):
        evenkeel.Network.load(checkpoint)
