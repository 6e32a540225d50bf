#!/usr/bin/env python3
"""Test accuracy and loss by the estimate of the test-time statistics and the batch size: the table of docs/statistics.md.

    bench/statistics.py                      # cnn on Fashion-MNIST, one epoch for each batch size and estimate: minutes
    bench/statistics.py --model cnn-gap --batch-sizes 32,128 --json

Trains with Adam at a constant 1e-3. The estimate changes nothing in training, so that all rows of a batch size have the same weights:
this is checked. `batch` normalizes the test set by batches of the training's size, `1 at a time` evaluates one example after the other.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

IN_TRAINING = ["ema", "cumulative", "mean_of_batches"]
AFTERWARDS = ["population_one_pass", "population"]


def evenkeel(program, *words):
    done = subprocess.run([program, *map(str, words), "--json", "--quiet"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"statistics: {' '.join(map(str, words))}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def figures(program, model, *words):
    result = evenkeel(program, "eval", model, *words)
    return {"accuracy": result["accuracy"], "loss": result["loss"]}


def weights(path):
    """The learned tensors of a model file: everything but the running statistics."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + length])
    return {name: data[8 + length + entry["data_offsets"][0]:8 + length + entry["data_offsets"][1]]
            for name, entry in header.items() if name != "__metadata__" and "running_" not in name and "num_batches" not in name}


def rows_of(options, size, folder):
    """{row: figures} for one batch size."""
    rows, model, first = {}, None, None
    some = ("--overfit", options.examples) if options.examples else ()
    drawn = ("--examples", options.examples) if options.examples else ()
    for estimate in IN_TRAINING:
        out = folder / f"{size}-{estimate}"
        evenkeel(options.program, "train", "--data", options.data, "--model", options.model, "--epochs", options.epochs,
                 "--optimizer", "adam", "--learning-rate", "1e-3", "--schedule", "constant", "--batch-size", size, "--seed",
                 options.seed, "--running-statistics", estimate, "--out", out, *some)
        model = out / "model.safetensors"
        if first is None:
            first = weights(model)
        elif weights(model) != first:
            sys.exit(f"statistics: the weights depend on the estimate at batch size {size}")
        rows[estimate] = figures(options.program, model)
    for estimate in AFTERWARDS:
        made = folder / f"{size}-{estimate}.safetensors"
        evenkeel(options.program, "recalibrate", model, "--running-statistics", estimate, "--batch-size", size, "--out", made, *drawn)
        rows[estimate] = figures(options.program, made)
    rows["1 at a time"] = figures(options.program, made, "--batch-size", 1)
    rows["batch"] = figures(options.program, model, "--statistics", "batch", "--batch-size", size)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=os.environ.get("EVENKEEL_PROGRAM", "build/release/evenkeel"))
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--epochs", default=1, type=int)
    parser.add_argument("--examples", default=0, type=int, help="train on so many only (0: all)")
    parser.add_argument("--seed", default=1, type=int)
    parser.add_argument("--batch-sizes", default="2,4,8,32,128,1024")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sizes = [int(word) for word in options.batch_sizes.split(",")]
    with tempfile.TemporaryDirectory(prefix="evenkeel-statistics-") as folder:
        table = {size: rows_of(options, size, pathlib.Path(folder)) for size in sizes}
    if options.json:
        print(json.dumps({"results": [{"batch_size": size, "statistics": row, **figure}
                                      for size, rows in table.items() for row, figure in rows.items()]}))
        return
    print("| statistics |" + "".join(f" batch {size} |" for size in sizes))
    print("|---|" + "---|" * len(sizes))
    for row in table[sizes[0]]:
        cells = [f" {100 * table[size][row]['accuracy']:.2f} %, {table[size][row]['loss']:.3f} |" for size in sizes]
        print(f"| {row} |" + "".join(cells))


if __name__ == "__main__":
    main()
