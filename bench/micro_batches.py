#!/usr/bin/env python3
"""Micro-batches and spilling on Fashion-MNIST: time, peak memory, and whether the losses are the same to the last digit.

  bench/micro_batches.py [--program build/release/evenkeel] [--model cnn-gap] [--spill /tmp] [--images 24576] [--rounds 3]

Every row is a run of `evenkeel train` over so many images; rows of one batch size take turns. Time: of the median step, in the best round.
"""
import argparse
import json
import pathlib
import subprocess
import tempfile

# (batch, micro-batch, memory, spilled?)
ROWS = [(128, None, None, False), (128, 128, None, False), (128, 32, None, False), (128, 8, None, False),
        (4096, None, None, False), (4096, 8, None, False), (4096, None, "1G", True), (4096, None, "500M", True),
        (4096, None, "60M", True), (4096, 8, "60M", True)]


def run(options, row, folder):
    batch, micro_batch, memory, spilled = row
    words = [options.program, "train", "--model", options.model, "--batch-size", batch, "--record-layers", 0, "--max-steps",
             max(1, options.images // batch), "--out", folder, "--json", "--quiet"]
    words += ["--micro-batch", micro_batch] if micro_batch else []
    words += ["--memory", memory] if memory else []
    words += ["--spill", options.spill] if spilled else []
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=True)
    records = [json.loads(line) for line in (pathlib.Path(folder) / "log.jsonl").read_text().splitlines()]
    steps = [record for record in records if "learning_rate" in record]
    rates = sorted(step["images_per_s"] for step in steps)
    return json.loads(done.stdout)["peak_memory_bytes"], 1e6 / rates[len(rates) // 2], [step["loss"] for step in steps]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="build/release/evenkeel")
    parser.add_argument("--model", default="cnn-gap")
    parser.add_argument("--spill", default="/tmp")
    parser.add_argument("--images", type=int, default=24576)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    results: dict = {row: [] for row in ROWS}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.rounds):
            for i, row in enumerate(ROWS):
                results[row].append(run(options, row, f"{folder}/{turn}-{i}"))
    print("| batch | `--micro-batch` | `--memory` | `--spill` | us an image | peak memory | losses |")
    print("|---:|---:|---:|---|---:|---:|---|")
    first = {}
    for row in ROWS:
        batch, micro_batch, memory, spilled = row
        losses = {tuple(result[2]) for result in results[row]}
        first.setdefault(batch, losses)
        same = len(losses) == 1 and losses == first[batch]
        print(f"| {batch} | {micro_batch or '-'} | {memory or '-'} | {'yes' if spilled else '-'} | "
              f"{min(result[1] for result in results[row]):.1f} | {max(result[0] for result in results[row]) / 2**20:.0f} MiB | "
              f"{'the same' if same else 'OTHERS'} |")


if __name__ == "__main__":
    main()
