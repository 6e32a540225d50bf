#!/usr/bin/env python3
"""The tools against the file system, and inference of folded networks against ONNX Runtime and libtorch: ratios of one run.

    bench/tools.py                                  # both parts, a markdown table; minutes
    bench/tools.py --models ../shared/data/models --rounds 20 --json
    bench/tools.py --parts latency --batches 1

Files: `evenkeel inspect` and `evenkeel fold --verify 0` of a generated ONNX file of 100 MB, as processes, against one that reads the file and
writes it (flushed to the disk or not). All of it is in the page cache.

Latency: every contender is a process of its own that is told when to run, in turn, with a pause between two, so that one works while the others
sleep. The figure is the median over all rounds. ONNX Runtime is node's onnxruntime-node (from EVENKEEL_ONNXRUNTIME, build/onnxruntime, where
`./test onnxruntime` puts it, or a node_modules above); libtorch is /usr/bin/python3's torch, with the norms folded by torch.nn.utils.fusion,
in the faster of its two layouts. What is not there is left out, and named.
"""
import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PYTHON = "/usr/bin/python3"  # the one that sees Debian's torch

CASES = [("resnet20_cifar10_bn.onnx", [3, 32, 32], True), ("version-RFB-320.onnx", [3, 240, 320], False),
         ("version-slim-320.onnx", [3, 240, 320], False)]
AIM_ONNXRUNTIME, AIM_TORCH, AIM_FILES = 1.15, 1.0, 3.0

ONNXRUNTIME = """
const [module, path, batch, threads, shape] = process.argv.slice(1);
const ort = require(module);
(async () => {
  const session = await ort.InferenceSession.create(path, {intraOpNumThreads: +threads, interOpNumThreads: 1, logSeverityLevel: 3});
  const dims = [+batch, ...JSON.parse(shape)];
  const x = new Float32Array(dims.reduce((a, b) => a * b));
  for (let i = 0; i < x.length; ++i) x[i] = (i * 37 % 101) / 101;
  const feeds = {[session.inputNames[0]]: new ort.Tensor('float32', x, dims)};
  let outputs = await session.run(feeds);
  console.log('ready');
  for await (const line of require('readline').createInterface({input: process.stdin})) {
    if (line === 'show') {
      const all = {};
      for (const name in outputs) all[name] = Array.from(outputs[name].data.slice(0, 20));
      console.log(JSON.stringify(all));
      continue;
    }
    const times = [];
    for (let i = +line; i > 0; --i) {
      const begin = process.hrtime.bigint();
      outputs = await session.run(feeds);
      times.push(Number(process.hrtime.bigint() - begin) / 1e6);
    }
    console.log(JSON.stringify(times));
  }
})().catch(error => { console.error(String(error)); process.exit(1); });
"""

TORCH = """
import json, struct, sys, time
import numpy, torch
from torch.nn.utils.fusion import fuse_conv_bn_eval
folder, path, batch, threads, layout = sys.argv[1:]
sys.path.insert(0, folder)
from torch_models import make_model
torch.set_num_threads(int(threads))
with open(path, 'rb') as file:
    header = json.loads(file.read(struct.unpack('<Q', file.read(8))[0]))
    data = file.read()
state = {name.replace('module.', ''): torch.from_numpy(numpy.frombuffer(data[slice(*entry['data_offsets'])], '<f4').copy()).reshape(entry['shape'])
         for name, entry in header.items() if name != '__metadata__' and entry['dtype'] == 'F32'}
model = make_model('resnet20')
missing = [name for name in model.load_state_dict(state, strict=False)[0] if 'num_batches' not in name]
assert not missing, missing
model.eval()
for module in [model, *model.modules()]:
    for i in ('1', '2'):
        if isinstance(getattr(module, 'bn' + i, None), torch.nn.BatchNorm2d):
            setattr(module, 'conv' + i, fuse_conv_bn_eval(getattr(module, 'conv' + i), getattr(module, 'bn' + i)))
            setattr(module, 'bn' + i, torch.nn.Identity())
dims = [int(batch), 3, 32, 32]
n = int(numpy.prod(dims))
x = torch.tensor((numpy.arange(n) * 37 % 101 / 101).astype('float32')).reshape(dims)
if layout == 'last':
    model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
with torch.inference_mode():
    y = model(x)
    print('ready', flush=True)
    for line in sys.stdin:
        if line.strip() == 'show':
            print(json.dumps({'logits': y.flatten()[:20].tolist()}), flush=True)
            continue
        times = []
        for _ in range(int(line)):
            begin = time.perf_counter()
            y = model(x)
            times.append(1e3 * (time.perf_counter() - begin))
        print(json.dumps(times), flush=True)
"""


def median(values):  # (The module of that name is hidden by bench/statistics.py.)
    values = sorted(values)
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2


def complain(message):
    sys.exit(f"tools: {message}")


def onnxruntime():
    folders = [os.environ.get("EVENKEEL_ONNXRUNTIME"), ROOT / "build/onnxruntime", *ROOT.parents, ROOT,
               pathlib.Path(tempfile.gettempdir()) / "ort"]
    for folder in filter(None, folders):
        module = pathlib.Path(folder) / "node_modules/onnxruntime-node"
        if module.is_dir() and shutil.which("node"):
            return module
    return None


def has_torch():
    return os.path.exists(PYTHON) and subprocess.run([PYTHON, "-c", "import torch"], capture_output=True).returncode == 0


class Worker:
    """A contender: a process that says "ready", and then answers a line with a line."""

    def __init__(self, name, command):
        self.name, self.times = name, []
        self.process = subprocess.Popen([str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline().strip() != "ready":
            complain(f"{name} does not run: {' '.join(str(word) for word in command[:4])} ...")

    def ask(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def median(self):
        return median(self.times)

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def agree(a, b):
    return all(len(a[name]) == len(b[name]) and all(abs(x - y) <= 1e-4 * (1 + abs(x)) for x, y in zip(a[name], b[name])) for name in a)


def workers_for(options, model, shape, batch):
    """Of one case; the first is ours."""
    found = [Worker("evenkeel", [options.bench, "run", model, batch, options.threads])]
    if options.onnxruntime:
        found.append(Worker("onnxruntime", ["node", "-e", ONNXRUNTIME, options.onnxruntime, model, batch, options.threads, json.dumps(shape)]))
    weights = model.parent / "resnet20_cifar10.safetensors"
    if options.torch and model.name.startswith("resnet20") and weights.exists():
        for layout in ("first", "last"):
            found.append(Worker(f"torch {layout}", [PYTHON, "-c", TORCH, ROOT / "tests", weights, batch, options.threads, layout]))
    return found


def latency_of(options, model, shape, batch):
    workers = workers_for(options, model, shape, batch)
    shown = [worker.ask("show") for worker in workers]
    for worker, values in zip(workers[1:], shown[1:]):
        if not agree(shown[0], values):
            complain(f"{model.name}: {worker.name} gives other values than evenkeel: {values} and {shown[0]}")
    for worker in workers:  # as many runs as fit a slice; at least 3
        worker.runs = max(3, int(options.slice_ms / median(worker.ask(5))))
        time.sleep(0.05)
    for turn in range(options.rounds):
        for worker in workers[turn % len(workers):] + workers[:turn % len(workers)]:
            worker.ask(1)  # its own data into the caches, its threads awake
            worker.times += worker.ask(worker.runs)
            time.sleep(0.03)  # until threads that spin while they wait have gone to sleep
    row = {"model": model.name, "batch": batch, **{f"{worker.name} ms".replace(" ", "_"): worker.median() for worker in workers}}
    row["over_onnxruntime"] = ratio(workers, "onnxruntime")
    row["over_torch"] = ratio(workers, "torch")
    for worker in workers:
        worker.end()
    return row


def ratio(workers, name):
    others = [worker.median() for worker in workers if worker.name.startswith(name)]
    return workers[0].median() / min(others) if others else None


def latency(options):
    rows = []
    for name, shape, batched in CASES:
        if not (options.models / name).exists():
            print(f"tools: {options.models / name} is not there: left out", file=sys.stderr)
            continue
        for batch in options.batches if batched else options.batches[:1]:
            rows.append(latency_of(options, options.models / name, shape, batch if batched else 1))
    return rows


def timed(command):
    begin = time.perf_counter()
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        complain(f"{' '.join(str(word) for word in command)}: {done.stderr.strip()}")
    return time.perf_counter() - begin


def files(options, folder):
    model, out = folder / "model.onnx", folder / "out.onnx"
    timed([options.bench, "make", model, options.megabytes])
    commands = {"copy": [options.bench, "copy", model, out], "copy_flushed": [options.bench, "copy", model, out, "--flush"],
                "inspect": [options.program, "inspect", model, "--quiet"],
                "fold": [options.program, "fold", model, "-o", out, "--verify", "0", "--quiet"]}
    times = {name: [] for name in commands}
    for turn in range(options.rounds + 1):
        for name, command in commands.items():
            out.unlink(missing_ok=True)
            took = timed(command)
            if name != "inspect" and not out.exists():
                complain(f"{name} has written nothing")
            if turn > 0:
                times[name].append(took)
    result = {"megabytes": model.stat().st_size / 1e6, **{f"{name}_s": median(t) for name, t in times.items()}}
    for name in ("inspect", "fold"):
        result[f"{name}_over_copy"] = result[f"{name}_s"] / result["copy_s"]
        result[f"{name}_over_copy_flushed"] = result[f"{name}_s"] / result["copy_flushed_s"]
    return result


def cell(value, digits=3):
    return "-" if value is None else f"{value:.{digits}g}"


def tables(result):
    if "files" in result:
        f = result["files"]
        print(f"A file of {f['megabytes']:.0f} MB; reading and writing it: {f['copy_s']:.3f} s, flushed to the disk: {f['copy_flushed_s']:.3f} s\n")
        print(f"| command | s | over reading and writing (aim: {AIM_FILES}) | flushed |\n|---|---|---|---|")
        for name, title in (("inspect", "inspect"), ("fold", "fold --verify 0")):
            print(f"| `{title}` | {f[name + '_s']:.3f} | {f[name + '_over_copy']:.2f} | {f[name + '_over_copy_flushed']:.2f} |")
        print()
    if "latency" in result:
        print(f"Milliseconds of a run, {result['threads']} threads\n")
        print(f"| model | batch | evenkeel | ONNX Runtime | libtorch, channels first | channels last | over ONNX Runtime (aim: {AIM_ONNXRUNTIME}) "
              f"| over libtorch (aim: {AIM_TORCH:.0f}) |\n|---|---|---|---|---|---|---|---|")
        for row in result["latency"]:
            print(f"| {row['model']} | {row['batch']} | {cell(row['evenkeel_ms'])} | {cell(row.get('onnxruntime_ms'))} "
                  f"| {cell(row.get('torch_first_ms'))} | {cell(row.get('torch_last_ms'))} | {cell(row['over_onnxruntime'])} "
                  f"| {cell(row['over_torch'])} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "build/release/evenkeel")
    parser.add_argument("--bench", type=pathlib.Path, help="bench/tools of the same build (default: beside the program)")
    parser.add_argument("--models", type=pathlib.Path, default=pathlib.Path(os.environ.get("EVENKEEL_TEST_DATA", ROOT / "../shared/data")) / "models")
    parser.add_argument("--parts", default="files,latency")
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--slice-ms", type=float, default=150)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.bench = options.bench or options.program.parent / "bench/tools"
    options.batches = [int(b) for b in options.batches.split(",")]
    parts = options.parts.split(",")
    for path in (options.program, options.bench):
        if not path.exists():
            complain(f"{path} is not there; build it, or name it by --program and --bench")
    result = {"threads": options.threads, "absent": []}
    if "files" in parts:
        with tempfile.TemporaryDirectory() as folder:
            result["files"] = files(options, pathlib.Path(folder))
    if "latency" in parts:
        options.onnxruntime, options.torch = onnxruntime(), has_torch()
        result["absent"] = [name for name, there in (("onnxruntime-node", options.onnxruntime), ("torch", options.torch)) if not there]
        for name in result["absent"]:
            print(f"tools: {name} is not here: left out", file=sys.stderr)
        result["latency"] = latency(options)
    if options.json:
        print(json.dumps(result))
    else:
        tables(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
