#!/usr/bin/env python3
"""Ranks on the cores of one machine, against threads of one process; what the synchronized norm costs, and what --deterministic does.

  bench/scaling.py [--program build/release/evenkeel] [--models cnn,cnn-gap,resnet20] [--ranks 2] [--batch 128] [--steps 40] [--rounds 5]
                   [--two-hosts]

Every row is `evenkeel train` on Fashion-MNIST; rows of one network take turns, --rounds times, and what is compared stands in one table.
Time: of the median step of a run without its first quarter, the median over the rounds. Ranks have one thread each, on as many cores as
there are ranks; the process that they are held against has as many threads. --two-hosts: also over scripts/two_hosts (root). The waiting time
and the bytes of a step are rank 0's, from its log. --json: everything, for scripts/scaling_model --check.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent


def median(values):  # not that of the module `statistics`: bench/statistics.py would be taken for it
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def launchers(options):
    """Of every row: its name, what stands before `train`, what behind it."""
    ranks = options.ranks
    mpirun = ["mpirun", *(["--allow-run-as-root"] if os.geteuid() == 0 else []), "--bind-to", "none", "-n", ranks, options.program]
    rows = {"threads": ([options.program], ["--threads", ranks]),
            "one thread": ([options.program], ["--threads", 1]),
            "ranks": (mpirun, ["--threads", 1]),
            "ranks, local": (mpirun, ["--threads", 1, "--norm-sync", "local"]),
            "ranks, deterministic": (mpirun, ["--threads", 1, "--deterministic"]),
            "threads, deterministic": ([options.program], ["--threads", ranks, "--deterministic"])}
    if options.two_hosts:
        hosts = [ROOT / "scripts/two_hosts", "--program", options.program, "run"]
        rows["two hosts"] = (hosts, ["--threads", 1])
        rows["two hosts, local"] = (hosts, ["--threads", 1, "--norm-sync", "local"])
        rows["two hosts, deterministic"] = (hosts, ["--threads", 1, "--deterministic"])
    return rows


def run(options, model, row, folder):
    """Medians over the steps of one run: seconds, and of ranks those in which rank 0 waited, and its bytes."""
    before, behind = row
    words = [*before, "train", "--model", model, "--batch-size", options.batch, "--max-steps", options.steps, "--record-layers", 0,
             "--out", folder, "--quiet", "--no-report", *behind]
    done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, words))}\nexit code {done.returncode}\n{done.stdout}")
    records = [json.loads(line) for line in (pathlib.Path(folder) / "log.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "step"][options.steps // 4:]
    result = {"step_s": median(step["examples"] / step["images_per_s"] for step in steps)}
    for name in ("comm_wait_s", "comm_bytes"):
        values = [step[name] for step in steps if step.get(name) is not None]
        result[name] = median(values) if values else None
    return result


def measure(options):
    """Of every network and row: the median of every figure over the rounds."""
    results = {}
    rows = launchers(options)
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models.split(","):
            found = {name: [] for name in rows}
            for turn in range(options.rounds):
                for i, (name, row) in enumerate(rows.items()):
                    found[name].append(run(options, model, row, f"{folder}/{model}-{turn}-{i}"))
            results[model] = {name: {key: None if runs[0][key] is None else median(one[key] for one in runs)
                                     for key in runs[0]} | {"all_step_s": [one["step_s"] for one in runs]}
                              for name, runs in found.items()}
    return results


def number(value, form):
    return "-" if value is None else format(value, form)


def print_table(options, results):
    print(f"Batch {options.batch}, {options.ranks} ranks of one thread, medians of {options.rounds} rounds of {options.steps} steps.\n")
    print(f"| network | row | ms a step | over {options.ranks} threads | least to most | waiting | KiB |")
    print("|---|---|---:|---:|---|---:|---:|")
    for model, rows in results.items():
        threads = rows["threads"]
        for name, row in rows.items():
            ratios = sorted(a / b for a, b in zip(row["all_step_s"], threads["all_step_s"]))
            wait = None if row["comm_wait_s"] is None else row["comm_wait_s"] / row["step_s"]
            print(f"| `{model}` | {name} | {1e3 * row['step_s']:.2f} | {median(ratios):.2f} | {ratios[0]:.2f} to {ratios[-1]:.2f} | "
                  f"{number(wait, '.1%')} | "
                  f"{number(row['comm_bytes'] and row['comm_bytes'] / 1024, '.0f')} |")
    print("\nThe synchronized norm: a step with --norm-sync global over one with local, round by round.\n")
    print("| network | one host |" + (" two hosts |" if options.two_hosts else ""))
    print("|---|---:|" + ("---:|" if options.two_hosts else ""))
    for model, rows in results.items():
        line = f"| `{model}` |"
        for name in ["ranks"] + (["two hosts"] if options.two_hosts else []):
            pairs = zip(rows[name]["all_step_s"], rows[f"{name}, local"]["all_step_s"])
            line += f" {median(a / b for a, b in pairs):.3f} |"
        print(line)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=str(ROOT / "build/release/evenkeel"))
    parser.add_argument("--models", default="cnn,cnn-gap,resnet20")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--two-hosts", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = measure(options)
    if options.json:
        print(json.dumps({"batch": options.batch, "ranks": options.ranks, "models": results}, indent=1))
    else:
        print_table(options, results)


if __name__ == "__main__":
    main()
