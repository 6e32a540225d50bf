#!/usr/bin/python3
"""Trains `mlp` or `cnn` on Fashion-MNIST in PyTorch with the settings of `evenkeel train`; prints the test accuracy.

    /usr/bin/python3 tests/torch_accuracy.py --model mlp --seed 1
    /usr/bin/python3 tests/torch_accuracy.py --model cnn --seed 1 --decay-weights-only

Needs Debian's python3-torch, python3-numpy and dataset-fashion-mnist, and for its speed libopenblas0-openmp.

Settings. Both: batch 128, the last smaller batch kept, a new order every epoch, pixels / 255 standardized with the mean and
the standard deviation (population) of the whole training set, cross-entropy, no augmentation.
  mlp  10 epochs, Adam, learning rate 1e-3, betas 0.9 0.999, eps 1e-8.
  cnn  3 epochs, AdamW, weight decay 1e-2, one-cycle to 3e-3 over all 3 * 469 steps (starts at max / 25, rises for 30 % of
       the steps, falls to max / 25e4, both by cosine).

Two of PyTorch's defaults differ from evenkeel's and are options here; the comparison uses --decay-weights-only and leaves
--cycle-momentum off:
  AdamW decays every parameter; with --decay-weights-only the weights of conv and linear layers alone.
  OneCycleLR moves beta1 between 0.85 and 0.95 too; here it does only with --cycle-momentum.
"""

import argparse
import gzip
import json
import os
import platform
import shlex
import struct
import subprocess
import sys
import time

import numpy
import torch
from torch.nn import functional as F

from torch_models import make_model

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"  # where Debian's package puts it


def read_idx(path):
    with gzip.open(path, "rb") as file:
        data = file.read()
    dimensions = data[3]
    shape = struct.unpack(f">{dimensions}I", data[4:4 + 4 * dimensions])
    return numpy.frombuffer(data, numpy.uint8, offset=4 + 4 * dimensions).reshape(shape)


def load(folder):
    """(train_x, train_y, test_x, test_y); x is [N, 1, 28, 28] fp32, standardized."""
    images = {part: read_idx(f"{folder}/{part}-images-idx3-ubyte.gz") for part in ("train", "t10k")}
    labels = {part: read_idx(f"{folder}/{part}-labels-idx1-ubyte.gz") for part in ("train", "t10k")}
    pixels = images["train"].astype(numpy.float64) / 255
    mean, std = pixels.mean(), pixels.std()

    def to_x(part):
        x = ((images[part].astype(numpy.float64) / 255 - mean) / std).astype(numpy.float32)
        return torch.from_numpy(x).unsqueeze(1).contiguous()

    def to_y(part):
        return torch.from_numpy(labels[part].astype(numpy.int64))

    return to_x("train"), to_y("train"), to_x("t10k"), to_y("t10k")


def parameter_groups(model, weight_decay, weights_only):
    if not weights_only:
        return [{"params": list(model.parameters()), "weight_decay": weight_decay}]
    decayed, kept = [], []
    for parameter in model.parameters():
        (decayed if parameter.dim() > 1 else kept).append(parameter)  # gamma, beta and biases have one dimension
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def evaluate(model, x, y, batch=1000):
    model.eval()
    right, loss = 0, 0.0
    with torch.no_grad():
        for i in range(0, len(x), batch):
            logits = model(x[i:i + batch])
            loss += F.cross_entropy(logits, y[i:i + batch], reduction="sum").item()
            right += (logits.argmax(1) == y[i:i + batch]).sum().item()
    return right / len(x), loss / len(x)


def train(options, data):
    train_x, train_y, test_x, test_y = data
    torch.manual_seed(options.seed)
    model = make_model(options.model)
    epochs = options.epochs or {"mlp": 10, "cnn": 3}[options.model]
    batch = 128
    steps_per_epoch = -(-len(train_x) // batch)
    scheduler = None
    if options.model == "mlp":
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    else:
        optimizer = torch.optim.AdamW(parameter_groups(model, 1e-2, options.decay_weights_only), lr=3e-3)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=3e-3, total_steps=epochs * steps_per_epoch, cycle_momentum=options.cycle_momentum)
    for epoch in range(epochs):
        model.train()
        start, loss_sum = time.monotonic(), 0.0
        order = torch.randperm(len(train_x))
        for i in range(0, len(train_x), batch):
            chosen = order[i:i + batch]
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(train_x[chosen]), train_y[chosen])
            loss.backward()
            optimizer.step()
            if scheduler:
                scheduler.step()
            loss_sum += loss.item() * len(chosen)
        seconds = time.monotonic() - start
        accuracy, test_loss = evaluate(model, test_x, test_y)
        print(f"{options.model} seed {options.seed} epoch {epoch + 1}/{epochs}: train loss {loss_sum / len(train_x):.5f}, "
              f"test loss {test_loss:.5f}, test accuracy {accuracy:.4f}, {seconds:.0f} s", file=sys.stderr, flush=True)
    return {"train_loss": round(loss_sum / len(train_x), 6), "test_loss": round(test_loss, 6), "test_accuracy": accuracy}


def versions():
    found = {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}
    for package in ("python3-torch", "libopenblas0-openmp", "dataset-fashion-mnist"):
        answer = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True, check=False)
        found["Debian " + package] = answer.stdout.strip() or "not installed"
    return found


def append(path, record):
    """Adds the run to the JSON file (an object with "versions" and "runs"), replacing one of the same command line."""
    whole = {"versions": {}, "runs": []}
    if os.path.exists(path):
        with open(path) as file:
            whole = json.load(file)
    whole["versions"] = versions()
    whole["runs"] = [r for r in whole["runs"] if r["command"] != record["command"]] + [record]
    with open(path + ".tmp", "w") as file:
        json.dump(whole, file, indent=1)
        file.write("\n")
    os.replace(path + ".tmp", path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["mlp", "cnn"], required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, help="default: 10 for mlp, 3 for cnn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--decay-weights-only", action="store_true", help="as evenkeel does: no decay of gamma, beta, biases")
    parser.add_argument("--cycle-momentum", action="store_true", help="OneCycleLR's default: beta1 moves too")
    parser.add_argument("--data", default=FASHION_MNIST, help="folder of the four IDX files")
    parser.add_argument("--json", metavar="FILE", help="also add the run to this JSON file")
    options = parser.parse_args()
    if options.model == "mlp" and (options.decay_weights_only or options.cycle_momentum):
        parser.error("--decay-weights-only and --cycle-momentum belong to cnn: mlp has no decay and a constant learning rate")
    torch.set_num_threads(options.threads)  # Debian's build starts with one

    result = train(options, load(options.data))
    flags = ["--model", options.model, "--seed", str(options.seed)]
    flags += ["--epochs", str(options.epochs)] if options.epochs else []
    flags += ["--threads", str(options.threads)] if options.threads != 2 else []
    flags += [flag for flag, on in (("--decay-weights-only", options.decay_weights_only),
                                    ("--cycle-momentum", options.cycle_momentum)) if on]
    command = "/usr/bin/python3 tests/torch_accuracy.py " + shlex.join(flags)
    if options.json:
        append(options.json, {"model": options.model, "seed": options.seed, **result, "command": command})
    print(f"{options.model} seed {options.seed}: test accuracy {result['test_accuracy']:.4f}")


if __name__ == "__main__":
    main()
