#!/usr/bin/env python3
"""PyTorch's `cnn` and `resnet20` (tests/torch_models.py) with evenkeel's batch norms beside the same networks with its own: forward and backward.

  PYTHONPATH=build/release/python /usr/bin/python3 bench/torch_modules.py [--batch 128] [--rounds 60] [--threads 1 2] [--json FILE]

Both networks take turns within one run, step by step, and which of them begins changes with every round, so that whatever else the
machine does meets both alike. Printed: median time of forward and backward of each, median of the ratios of neighbours (ours /
PyTorch's; below 1 is faster) with its quartiles, and the same for single norms: of a table, where the cost of a call counts, and of the
network's first image.
"""
import argparse
import json
import pathlib
import platform
import sys
import time

# In the place of bench/, whose statistics.py would stand for Python's own.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent / "tests")

import statistics

import torch
from torch import nn
from torch.nn import functional as F

import evenkeel
import evenkeel.torch
from torch_models import make_model

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def network_steps(name, batch, format):
    """Forward and backward of the whole network: (ours, PyTorch's), from equal weights on equal images."""
    torch.manual_seed(1)
    theirs = make_model(name).to(memory_format=FORMATS[format])
    mine = make_model(name).to(memory_format=FORMATS[format])
    mine.load_state_dict(theirs.state_dict())
    evenkeel.torch.convert(mine, inplace=True)
    shape = (3, 32, 32) if name == "resnet20" else (1, 28, 28)
    x = torch.randn(batch, *shape).contiguous(memory_format=FORMATS[format])
    labels = torch.arange(batch) % 10

    def step_of(model):

        def step():
            model.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(x), labels)
            loss.backward()
            return loss.item()

        return step

    mine_step, their_step = step_of(mine), step_of(theirs)
    losses = mine_step(), their_step()
    if abs(losses[0] - losses[1]) > 1e-4:
        sys.exit(f"torch_modules: the networks do not agree: losses {losses}")
    return mine_step, their_step


def norm_steps(shape, format, repeats):
    """Forward and backward of one norm, `repeats` times a step."""
    torch.manual_seed(1)
    names = {2: "BatchNorm1d", 4: "BatchNorm2d"}[len(shape)]
    x, dy = torch.randn(shape), torch.randn(shape)
    if len(shape) == 4:
        x, dy = (t.contiguous(memory_format=FORMATS[format]) for t in (x, dy))
    x.requires_grad_()

    def step_of(module):

        def step():
            for _ in range(repeats):
                x.grad = None
                module(x).backward(dy)

        return step

    return step_of(getattr(evenkeel.torch, names)(shape[1])), step_of(getattr(nn, names)(shape[1]))


def seconds_of(step):
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def measure(ours, theirs, rounds, repeats=1):
    """Times in milliseconds, and the ratios of neighbours: median and quartiles."""
    for _ in range(3):
        ours(), theirs()
    mine, other = [], []
    for i in range(rounds):
        if i % 2 == 0:
            mine.append(seconds_of(ours))
            other.append(seconds_of(theirs))
        else:
            other.append(seconds_of(theirs))
            mine.append(seconds_of(ours))
    quartiles = statistics.quantiles([a / b for a, b in zip(mine, other)], n=4)
    in_ms = lambda times: 1e3 * statistics.median(times) / repeats
    return {"ours_ms": in_ms(mine), "torch_ms": in_ms(other), "ratio": quartiles[1], "low": quartiles[0], "high": quartiles[2]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", help="writes the results there, too")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds is too small for a median; expected at least 2")
    print(f"PyTorch {torch.__version__}, evenkeel {evenkeel.__version__}, {platform.machine()}, {options.rounds} rounds, batch {options.batch}")
    print(f"{'':26}{'threads':>8}{'ours ms':>10}{'PyTorch ms':>12}{'ratio':>8}   quartiles")
    results = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        cases = [(f"{network} {name}", *network_steps(network, options.batch, name), options.rounds if network == "cnn" else options.rounds // 3 + 2, 1)
                 for network in ("cnn", "resnet20") for name in FORMATS]
        cases += [(f"norm [128, 32, 28, 28] {name}", *norm_steps((128, 32, 28, 28), name, 1), options.rounds, 1) for name in FORMATS]
        cases.append(("norm [64, 128]", *norm_steps((64, 128), "nchw", 100), options.rounds, 100))
        for name, ours, theirs, rounds, repeats in cases:
            row = {"case": name, "threads": threads, **measure(ours, theirs, rounds, repeats)}
            results.append(row)
            print(f"{name:30}{threads:4}{row['ours_ms']:10.3f}{row['torch_ms']:12.3f}{row['ratio']:8.3f}   {row['low']:.3f} to {row['high']:.3f}",
                  flush=True)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
