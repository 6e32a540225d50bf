#!/usr/bin/env python3
"""What batch norm does for a small network, what its running statistics are, and what happens when they are wrong. A notebook as a script:
editors that know cells (# %%) run it piece by piece.

  PYTHONPATH=build/release/python python3 examples/python/fashion_mnist.py [--examples 12000] [--epochs 2] [--out examples/python/images]

Needs NumPy, Matplotlib and the Fashion-MNIST of Debian's package dataset-fashion-mnist. Well under a minute on two cores.
"""
# %% [markdown]
# ## Data and settings
# %%
import argparse
import gzip
import pathlib

import evenkeel
import matplotlib
import numpy as np

matplotlib.use("Agg")  # pictures go into files
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist", help="folder of the four files of Fashion-MNIST")
parser.add_argument("--examples", type=int, default=12000, help="of the training set")
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "images", help="folder for the pictures")
asked = parser.parse_args()
asked.out.mkdir(parents=True, exist_ok=True)
plt.rcParams.update({"figure.dpi": 80, "savefig.bbox": "tight", "axes.spines.top": False, "axes.spines.right": False})


def idx(name, header):
    """The bytes of an IDX file, behind its header."""
    return np.frombuffer(gzip.decompress((pathlib.Path(asked.data) / name).read_bytes()), np.uint8, offset=header)


x = idx("train-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)[:asked.examples]
y = idx("train-labels-idx1-ubyte.gz", 8)[:asked.examples]
x_test = idx("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)[:max(1000, asked.examples // 4)]
y_test = idx("t10k-labels-idx1-ubyte.gz", 8)[:len(x_test)]
print(f"{len(x)} images to train on, {len(x_test)} to test")

# %% [markdown]
# ## With the norm and without
# The same network from the same seed, at three learning rates, a hundred times apart. With the norm all of them work; without it one is too
# slow, one learns, and one blows up.
# %%
rates = [0.03, 0.3, 3.0]
accuracy = {}
trained = None
for norm in ("batch", "none"):
    for rate in rates:
        network = evenkeel.Network("lenet")
        try:
            history = network.fit(x, y, test=(x_test, y_test), epochs=asked.epochs, optimizer="sgd", learning_rate=rate,
                                  schedule="constant", norm=norm)
            accuracy[norm, rate] = history.test_accuracy[-1]
        except evenkeel.UsageError:
            raise
        except evenkeel.Error as error:  # a value that is not finite: that, too, is a result
            print(f"  {error}")
            accuracy[norm, rate] = 1 / 10
        print(f"norm {norm:<6} rate {rate:<5} test accuracy {accuracy[norm, rate]:.3f}")
        if norm == "batch" and rate == 0.3:
            trained = network

figure, axes = plt.subplots(figsize=(5, 3))
for norm, words, style in (("batch", "with batch norm", "o-"), ("none", "without", "s--")):
    axes.plot(range(len(rates)), [accuracy[norm, rate] for rate in rates], style, label=words)
axes.set(xticks=range(len(rates)), xticklabels=rates, xlabel="learning rate of SGD", ylabel="test accuracy", ylim=(0, 1))
axes.legend(frameon=False, loc="lower left")
figure.savefig(asked.out / "learning_rates.png")

# %% [markdown]
# ## What the norms remember
# In use, a norm does not look at its batch: it takes the mean and variance that training left it. They stand in the state dict.
# %%
report = evenkeel.inspect(trained.state_dict())
print(report)
figure, axes = plt.subplots(1, len(report.norms), figsize=(2.6 * len(report.norms), 2.6))
for norm, panel in zip(report.norms, np.atleast_1d(axes)):
    panel.scatter(norm.running_mean, np.sqrt(norm.running_var), s=12)
    panel.set(title=norm.name, xlabel="running mean")
np.atleast_1d(axes)[0].set_ylabel("running deviation")
figure.savefig(asked.out / "running_statistics.png")

# %% [markdown]
# ## Broken and repaired
# The camera changes: contrast falls to a third. The stored statistics no longer fit what comes in. New ones from 2,000 images of the new
# kind, without their labels, repair most of it; the weights stay as they are.
# %%
dim = lambda images: np.clip((images.astype(np.float32) - 128) * 0.3 + 128, 0, 255).astype(np.uint8)
figures = {"as trained": trained.evaluate(x_test, y_test)["accuracy"], "low contrast": trained.evaluate(dim(x_test), y_test)["accuracy"]}

model = asked.out / "model.safetensors"
trained.save(model)
repaired_file = asked.out / "repaired.safetensors"
recalibrated = evenkeel.recalibrate(model, dim(x[:2000]), repaired_file, test=(dim(x_test), y_test))
print(recalibrated)
repaired = evenkeel.Network.load(repaired_file)
figures["low contrast,\nrecalibrated"] = repaired.evaluate(dim(x_test), y_test)["accuracy"]
for words, value in figures.items():
    print(f"{' '.join(words.split()):<28} {value:.3f}")

figure, axes = plt.subplots(figsize=(5, 3))
bars = axes.bar(list(figures), list(figures.values()), color=["C0", "C3", "C2"], width=0.6)
axes.bar_label(bars, fmt="%.3f")
axes.set(ylabel="test accuracy", ylim=(0, 1))
figure.savefig(asked.out / "recalibrated.png")

# %% [markdown]
# ## Folded
# With its statistics fixed a norm is a scale and a shift, which the layer in front of it can take in: the same function without norms. fold()
# runs both networks on the same inputs before it writes anything.
# %%
folded = evenkeel.fold(repaired_file, asked.out / "folded.onnx", data=(dim(x_test), y_test))
print(folded)
fast = evenkeel.Network.load(asked.out / "folded.onnx")
difference = np.abs(fast.predict_proba(dim(x_test)) - repaired.predict_proba(dim(x_test))).max()
print(f"probabilities differ by at most {difference:.1e}")
assert evenkeel.inspect(asked.out / "folded.onnx").norms == [] and difference < 1e-4

figure, axes = plt.subplots(2, 6, figsize=(7, 2.6))
answers = fast.predict(dim(x_test[:6]))
for column in range(6):
    for row, image in enumerate((x_test[column], dim(x_test)[column])):
        axes[row, column].imshow(image, cmap="gray", vmin=0, vmax=255)
        axes[row, column].axis("off")
    axes[1, column].set_title(f"{answers[column]} ({y_test[column]})", fontsize=9)
figure.savefig(asked.out / "answers.png")

for file in (model, repaired_file, asked.out / "folded.onnx"):
    file.unlink()
