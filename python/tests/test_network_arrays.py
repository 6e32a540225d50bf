"""evenkeel.Network on arrays: weights of the examples, a share of them for validation, options that are for files."""
import evenkeel
import numpy as np
import pytest


def table(n=300, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0)


@pytest.fixture(scope="module")
def trained():
    network = evenkeel.Network("mlp")
    network.fit(*table(), epochs=1)
    return network


def test_a_share_of_the_arrays_is_their_validation_set(tmp_path):
    x, y = table(80)
    history = evenkeel.Network("mlp").fit(x, y, validation=0.25, epochs=2, keep="best-loss", threads=1)
    assert history.best_epoch in (1, 2) and None not in history.validation_loss
    np.savez(tmp_path / "t.npz", x_train=x, y_train=y, x_test=x, y_test=y)  # the same examples by name: the same split
    named = evenkeel.Network("mlp").fit(tmp_path / "t.npz", validation=0.25, epochs=2, keep="best-loss", threads=1)
    assert named.validation_loss == history.validation_loss and named.loss == history.loss
    with pytest.raises(evenkeel.UsageError, match="validation"):
        evenkeel.Network("mlp").fit(x, y, validation=1.5, epochs=1)
    with pytest.raises(evenkeel.UsageError, match="validation_split.*validation=0.1"):
        evenkeel.Network("mlp").fit(x, y, validation_split=0.1, epochs=1)


def test_weights_of_arrays_are_those_of_a_column(tmp_path):
    x, y = table(60)
    w = np.random.default_rng(1).uniform(0.5, 3, 60).astype(np.float32)
    w[::7] = 0
    rows = "".join(f"{','.join(str(float(v)) for v in x[i])},{w[i]},{y[i]}\n" for i in range(60))
    (tmp_path / "t.csv").write_text("a,b,c,d,e,f,w,kind\n" + rows)
    network = evenkeel.Network("mlp")
    network.fit(tmp_path / "t.csv", weight="w", epochs=1, batch_size=8)
    # whole_file: what evaluate() reads of a table that is not the one trained on
    (tmp_path / "again.csv").write_text("a,b,c,d,e,f,w,kind\n" + rows)
    named = network.evaluate(tmp_path / "again.csv", weight="w")
    given = network.evaluate(x, y, weight=w)
    assert given == named and given["examples"] == (w > 0).sum() and given["loss"] != network.evaluate(x, y)["loss"]

    def trained_with(weight, x=x, y=y):
        network = evenkeel.Network("mlp", seed=3)
        network.fit(x, y, weight=weight, validation=(x[:9], y[:9]), epochs=2, batch_size=8)
        return network.state_dict()

    def same(a, b):
        return all(np.array_equal(a[name], b[name]) for name in a)
    weighted = trained_with(w)
    assert same(weighted, trained_with(list(w))) and not same(weighted, trained_with(None))
    broken = x.copy()
    broken[::7] = np.nan  # examples of weight 0 are not looked at
    network = evenkeel.Network("mlp", seed=3)
    network.fit(broken, y, weight=w, epochs=2, batch_size=8)
    assert np.isfinite(network.state_dict()["fc1.weight"]).all()
    import torch
    assert same(weighted, trained_with(torch.from_numpy(w), torch.from_numpy(x), torch.from_numpy(y)))


@pytest.mark.parametrize("weight, message", [
    ("nonsense", "weight: found 'nonsense', the name of a column"),
    (np.ones(5), r"weight: found float64 \[5\], expected \[60\]"),
    (np.ones((60, 1)), r"\[60, 1\]"),
    (np.full(60, -1), "found -1.0 at 0, expected a finite number, not negative"),
    (np.full(60, np.nan), "found nan at 0"),
    (np.full(60, 1e300), "at 0"),
    (np.zeros(60), "all 60 weights are 0"),
    (np.full(60, 1e-6), "the weights are 1e-06 on average.*running_variance"),
])
def test_weights_that_are_none_are_refused(weight, message):
    x, y = table(60)
    with pytest.raises(evenkeel.UsageError, match=message):
        evenkeel.Network("mlp").fit(x, y, weight=weight, epochs=1, batch_size=8)


def test_options_of_reading_files_are_refused_with_arrays(trained):
    x, y = table(60)
    for name, value in (("label", "kind"), ("resize", (8, 8)), ("layout", "nhwc")):
        with pytest.raises(evenkeel.UsageError, match=rf"fit\(\): {name} is for data sets by name"):
            evenkeel.Network("mlp").fit(x, y, epochs=1, **{name: value})
    for name, value in (("label", "kind"), ("resize", (8, 8)), ("layout", "nhwc"), ("split", "train"), ("validation", 0.5)):
        with pytest.raises(evenkeel.UsageError, match=rf"evaluate\(\): {name} is for data sets by name"):
            trained.evaluate(x, y, **{name: value})
    with pytest.raises(evenkeel.UsageError, match="sample_weight.*give weight"):
        trained.evaluate(x, y, sample_weight=np.ones(60))


def test_an_empty_name_is_no_folder():
    x, y = table(60)
    with pytest.raises(evenkeel.UsageError, match="out: found '', expected the folder of the run, or None"):
        evenkeel.Network("mlp").fit(x, y, epochs=1, out="")
