#!/usr/bin/env python3
"""`evenkeel convert` to ONNX against ONNX Runtime (onnxruntime-node), and to a state dict against PyTorch.

  tests/onnx_export_test.py [PROGRAM] [TEST...]      PROGRAM: build/release/evenkeel, or what EVENKEEL_PROGRAM or EVENKEEL says

What an oracle is missing for is skipped by name. ONNX Runtime is looked for in EVENKEEL_ONNXRUNTIME (a folder that holds node_modules),
in build/onnxruntime (where `./test onnxruntime` puts it), and in this folder's parents' node_modules.
"""
import base64
import json
import math
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import command_line  # noqa: E402
from command_line import CLASSES, ROOT, SIDE, CommandLine, npy, pictures, safetensors  # noqa: E402

DEBIAN_PYTHON = "/usr/bin/python3"  # the one that sees Debian's torch and onnx

HEAD = 'name = "net"\n[[layer]]\ntype = "conv"\nout = 8\npadding = 1\n'
END = '[[layer]]\ntype = "global_avg_pool"\n[[layer]]\ntype = "linear"\n'


def conv(out=8, **keys):
    return "[[layer]]\ntype = \"conv\"\n" + "".join(f"{k} = {v}\n" for k, v in {"out": out, "padding": 1, **keys}.items())


NETS = {
    "plain": HEAD + '[[layer]]\ntype = "max_pool"\n[[layer]]\ntype = "flatten"\n[[layer]]\ntype = "dropout"\n[[layer]]\ntype = "linear"\n',
    "windows": HEAD + conv(stride=2, kernel=5, padding=2, groups=4) + conv(dilation=2, padding=2, bias="true") +
               '[[layer]]\ntype = "avg_pool"\nkernel = 3\nstride = 1\npadding = 1\n'
               '[[layer]]\ntype = "avg_pool"\nkernel = 2\nstride = 1\npadding = 1\ncount_include_pad = false\n'
               '[[layer]]\ntype = "max_pool"\nkernel = 3\nstride = 2\npadding = 1\n' + END,
    "residual": HEAD + '[[layer]]\ntype = "residual"\n[[layer.body]]\ntype = "conv"\nout = 8\npadding = 1\n[[layer.body]]\ntype = "conv"\n'
                       'out = 8\npadding = 1\n'
                       '[[layer]]\ntype = "residual"\nshortcut = "pad"\n[[layer.body]]\ntype = "conv"\nout = 13\npadding = 1\nstride = 2\n'
                       '[[layer]]\ntype = "residual"\nshortcut = "projection"\n[[layer.body]]\ntype = "conv"\nout = 16\npadding = 1\n'
                       'stride = 2\n' + END,
    "after": 'placement = "after"\n' + HEAD + conv() + END,
    "names": HEAD.replace('type = "conv"', 'type = "conv"\nname = "logits"') + conv(name='"input"') + END,
    "alone": HEAD + '[[layer]]\ntype = "norm"\n[[layer]]\ntype = "activation"\nactivation = "tanh"\n' + END,
}
ACTIVATIONS = ("leaky_relu", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu", "identity")
NORMS = {"group": ["--norm", "group", "--norm-groups", "4"], "layer": ["--norm", "layer"], "instance": ["--norm", "instance"],
         "renorm": ["--norm", "renorm"], "none": ["--norm", "none"], "corrected": ["--bias-corrected"]}

RUNNER = """
const ort = require(process.argv[1]);
const asked = JSON.parse(require('fs').readFileSync(0, 'utf8'));
(async () => {
  const session = await ort.InferenceSession.create(asked.model, {logSeverityLevel: 3});
  const bytes = Buffer.from(asked.input, 'base64');
  const floats = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
  const outputs = await session.run({input: new ort.Tensor('float32', floats, asked.dims)});
  const answer = {};
  for (const name in outputs) {
    const data = outputs[name].data;
    answer[name] = [outputs[name].dims.map(Number), Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString('base64')];
  }
  console.log(JSON.stringify(answer));
})().catch(error => { console.error(String(error)); process.exit(1); });
"""


def onnxruntime():
    """The folder of the module, or None."""
    folders = [os.environ.get("EVENKEEL_ONNXRUNTIME"), ROOT / "build/onnxruntime", *ROOT.parents, ROOT,
               pathlib.Path(tempfile.gettempdir()) / "ort"]
    for folder in filter(None, folders):
        module = pathlib.Path(folder) / "node_modules/onnxruntime-node"
        if module.is_dir():
            return module
    return None


def has_module(name):
    return os.path.exists(DEBIAN_PYTHON) and subprocess.run(
        [DEBIAN_PYTHON, "-c", f"import {name}"], capture_output=True).returncode == 0


def softmax(row):
    powers = [math.exp(x - max(row)) for x in row]
    return [p / sum(powers) for p in powers]


class OnnxExport(CommandLine):
    def floats(self, count=40):
        """Pictures as the exported network takes them, and as a file for `predict`."""
        images, _ = pictures(count, 7)
        data = b"".join(images)
        (self.folder / "x.npy").write_bytes(npy((count, 1, SIDE, SIDE), "|u1", data))
        return [struct.unpack("<f", struct.pack("<f", b / 255))[0] for b in data], [count, 1, SIDE, SIDE]

    def in_onnxruntime(self, model, values, dims):
        module = onnxruntime()
        if module is None or shutil.which("node") is None:
            self.skipTest("onnxruntime-node is not there; `./test onnxruntime` installs it")
        asked = {"model": str(model), "dims": dims, "input": base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()}
        done = subprocess.run(["node", "-e", RUNNER, str(module)], input=json.dumps(asked), capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        outputs = {}
        for name, (shape, data) in json.loads(done.stdout).items():
            data = base64.b64decode(data)
            outputs[name] = (shape, struct.unpack(f"<{len(data) // 4}f", data))
        return outputs

    def checked(self, model):
        """onnx's own checker, with shape inference, where it is installed."""
        if type(self).onnx is None:
            type(self).onnx = has_module("onnx")
        if self.onnx:
            done = subprocess.run([DEBIAN_PYTHON, "-c", "import onnx, sys; onnx.checker.check_model(onnx.load(sys.argv[1]), full_check=True)",
                                   str(model)], capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)

    onnx = None

    def network(self, toml, *options, steps=6, name="run"):
        path = self.folder / f"{name}.toml"
        path.write_text(toml)
        out = self.folder / name
        self.succeed("train", "--data", self.data, "--model", path, "--batch-size", 16, "--max-steps", steps, "--out", out, *options)
        return out / "model.safetensors"

    def assert_same_answers(self, model, *options, exported="net.onnx"):
        exported = self.folder / exported
        self.succeed("convert", model, "-o", exported, *options)
        self.checked(exported)
        values, dims = self.floats()
        logits_shape, logits = self.in_onnxruntime(exported, values, dims)["logits"]
        self.assertEqual(logits_shape, [dims[0], CLASSES])
        ours = self.json_of("predict", model, "x.npy", "--top", CLASSES)["predictions"]
        for i, prediction in enumerate(ours):
            row = logits[i * CLASSES:(i + 1) * CLASSES]
            by_class = {p["class"]: p["probability"] for p in prediction["top"]}
            theirs = softmax(row)
            for c in range(CLASSES):
                self.assertAlmostEqual(theirs[c], by_class[str(c)], delta=1e-5)
                # Logits are known but for a constant, where the probabilities have digits enough.
                if by_class[str(c)] > 1e-3 and by_class["0"] > 1e-3:
                    self.assertAlmostEqual(row[c] - row[0], math.log(by_class[str(c)] / by_class["0"]), delta=1e-4)

    def test_every_layer_answers_alike(self):
        for name, toml in NETS.items():
            with self.subTest(name):
                self.assert_same_answers(self.network(toml, name=name))

    def test_every_activation_answers_alike(self):
        for activation in ACTIVATIONS:
            with self.subTest(activation):
                self.assert_same_answers(self.network(NETS["residual"], "--activation", activation, name=activation))

    def test_every_norm_answers_alike(self):
        for name, options in NORMS.items():
            with self.subTest(name):
                # Groups of 4 divide 12 channels, not 13.
                self.assert_same_answers(self.network(NETS["residual"].replace("out = 13", "out = 12"), *options, name=name))
        # Of features without space, too.
        toml = '[[layer]]\ntype = "flatten"\n[[layer]]\ntype = "linear"\nout = 12\n[[layer]]\ntype = "linear"\n'
        for name in ("group", "layer", "corrected"):
            with self.subTest(f"{name} of a linear layer"):
                self.assert_same_answers(self.network(toml, *NORMS[name], name=f"{name}-linear"))
        self.assert_same_answers(self.network("affine = false\n" + NETS["plain"], name="without-affine"))

    def test_the_models_of_the_zoo_answer_alike(self):
        for name in ("mlp", "cnn", "resnet20", "resnet18"):
            with self.subTest(name):
                out = self.folder / name
                self.succeed("train", "--data", self.data, "--model", name, "--batch-size", 16, "--max-steps", 2, "--out", out)
                self.assert_same_answers(out / "model.safetensors", exported=f"{name}.onnx")

    def test_training_mode_updates_the_running_statistics_by_the_formula_of_the_program(self):
        model = self.network(NETS["plain"], "--new-batch-weight", "0.25", "--running-variance", "biased")
        exported = self.folder / "train.onnx"
        self.succeed("convert", model, "--training", "-o", exported)
        self.checked(exported)
        values, dims = self.floats(24)
        outputs = self.in_onnxruntime(exported, values, dims)
        tensors, metadata = safetensors(model)
        numbers = {name: struct.unpack(f"<{len(data) // 4}f", data) for name, (kind, _, data) in tensors.items() if kind == "F32"}
        scale = json.loads(metadata["standardization"])
        mean, std = scale["mean"][0], scale["std"][0]
        x = [(v - mean) / std for v in values]

        def pixel(image, row, column):
            inside = 0 <= row < SIDE and 0 <= column < SIDE
            return x[(image * SIDE + row) * SIDE + column] if inside else 0.0

        weight = numbers["conv1.weight"]
        for channel in range(8):
            kernel = weight[channel * 9:(channel + 1) * 9]
            made = [sum(kernel[3 * i + j] * pixel(n, row + i - 1, column + j - 1) for i in range(3) for j in range(3))
                    for n in range(dims[0]) for row in range(SIDE) for column in range(SIDE)]
            of_batch = sum(made) / len(made)
            variance = sum((v - of_batch) ** 2 for v in made) / len(made)
            for part, batch in (("running_mean", of_batch), ("running_var", variance)):
                old = numbers[f"bn1.{part}"][channel]
                expected = 0.75 * old + 0.25 * batch
                self.assertAlmostEqual(outputs[f"bn1.{part}.next"][1][channel], expected, delta=1e-5 * max(1, abs(expected)))

    def test_what_onnx_cannot_say_in_training_is_refused_by_name(self):
        for name, options in {"renorm": NORMS["renorm"], "corrected": NORMS["corrected"], "ghost": ["--ghost-batch", 8]}.items():
            with self.subTest(name):
                model = self.network(NETS["plain"], *options, name=name)
                self.refuse(5, "convert", model, "--training", "-o", self.folder / "no.onnx", says=("norm 'bn1'", "training mode"))
        self.assertFalse((self.folder / "no.onnx").exists())

    def test_the_standardization_may_be_left_to_the_caller(self):
        model = self.network(NETS["plain"])
        scale = json.loads(safetensors(model)[1]["standardization"])
        outputs = []
        for name, options in (("with", []), ("without", ["--no-standardization"])):
            exported = self.folder / f"{name}.onnx"
            self.succeed("convert", model, "-o", exported, *options)
            values, dims = self.floats()
            if options:
                values = [(v - scale["mean"][0]) / scale["std"][0] for v in values]
            outputs.append(self.in_onnxruntime(exported, values, dims)["logits"][1])
        for a, b in zip(*outputs):
            self.assertAlmostEqual(a, b, delta=1e-5 * max(1, abs(a)))

    def test_a_state_dict_loads_into_pytorch_strictly_and_answers_alike(self):
        if not has_module("torch"):
            self.skipTest("PyTorch is not there")
        model = self.network(NETS["plain"])
        self.succeed("convert", model, "-o", self.folder / "plain.safetensors")
        self.assertEqual(safetensors(self.folder / "plain.safetensors")[1], {"format": "pt"})
        values, dims = self.floats()
        scale = json.loads(safetensors(model)[1]["standardization"])
        (self.folder / "asked.json").write_text(json.dumps(
            {"files": [str(model), str(self.folder / "plain.safetensors")], "dims": dims,
             "x": [(v - scale["mean"][0]) / scale["std"][0] for v in values]}))
        done = subprocess.run([DEBIAN_PYTHON, "-c", IN_TORCH, str(self.folder / "asked.json")], capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        ours = self.json_of("predict", model, "x.npy", "--top", CLASSES)["predictions"]
        for rows in json.loads(done.stdout):
            for row, prediction in zip(rows, ours):
                for p in prediction["top"]:
                    self.assertAlmostEqual(row[p["class_index"] if "class_index" in p else int(p["class"])], p["probability"], delta=1e-5)

    def test_a_pickle_is_refused_with_a_line_that_converts_it(self):
        """By zip and by the format before it. The package safetensors is none of Debian's: a stand-in writes what it would."""
        if not has_module("torch"):
            self.skipTest("PyTorch is not there")
        package = self.folder / "site/safetensors"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "torch.py").write_text(SAVE_FILE)
        weights = "{'module.fc.weight': torch.arange(6.).reshape(2, 3).T, 'module.fc.bias': torch.ones(3)}"
        for old, value in ((False, "{'state_dict': %s, 'epoch': 3}" % weights), (True, weights)):
            name = "old.th" if old else "new.pt"
            subprocess.run([DEBIAN_PYTHON, "-c", f"import torch; torch.save({value}, '{name}', _use_new_zipfile_serialization={not old})"],
                           cwd=self.folder, check=True)
            for command in (["convert", name, "-o", "x.safetensors"], ["eval", name], ["inspect", name]):
                message = self.refuse(3, *command, says=("pickle", "python3 -c \"")).stderr
            line = message[message.index("python3 -c \""):].strip()
            done = subprocess.run(line.replace("python3", DEBIAN_PYTHON, 1), shell=True, cwd=self.folder, capture_output=True, text=True,
                                  env={**os.environ, "PYTHONPATH": str(package.parent)})
            self.assertEqual(done.returncode, 0, f"{line}\n{done.stderr}")
            tensors, _ = safetensors(self.folder / f"{name[:3]}.safetensors")
            self.assertEqual(tensors["module.fc.weight"], ("F32", (3, 2), struct.pack("<6f", 0, 3, 1, 4, 2, 5)))


SAVE_FILE = """
import json, struct
def save_file(tensors, path):
    header, body = {}, b''
    for name, t in tensors.items():
        assert t.is_contiguous()
        data = t.numpy().tobytes()
        header[name] = {'dtype': 'F32', 'shape': list(t.shape), 'data_offsets': [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    open(path, 'wb').write(struct.pack('<Q', len(text)) + text + body)
"""

IN_TORCH = """
import json, struct, sys
import torch
from torch import nn

def load(path):
    data = open(path, 'rb').read()
    length = struct.unpack('<Q', data[:8])[0]
    header = json.loads(data[8:8 + length])
    header.pop('__metadata__', None)
    types = {'F32': torch.float32, 'I64': torch.int64}
    body = bytearray(data[8 + length:])
    state = {}
    for name, t in header.items():
        begin, end = t['data_offsets']
        state[name] = torch.frombuffer(body, dtype=types[t['dtype']], count=(end - begin) // (4 if t['dtype'] == 'F32' else 8),
                                       offset=begin).reshape(t['shape']).clone()
    return state

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.fc1 = nn.Linear(8 * 16, 3)

    def forward(self, x):
        return self.fc1(torch.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 2).flatten(1))

asked = json.load(open(sys.argv[1]))
x = torch.tensor(asked['x'], dtype=torch.float32).reshape(asked['dims'])
answers = []
for path in asked['files']:
    net = Net()
    net.load_state_dict(load(path), strict=True)
    net.eval()
    answers.append(torch.softmax(net(x), 1).tolist())
print(json.dumps(answers))
"""


if __name__ == "__main__":
    command_line.main()
