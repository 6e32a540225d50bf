#!/usr/bin/env python3
"""Weights without an architecture (state dicts of PyTorch), and `evenkeel convert`, as a user meets them.

  tests/state_dict_test.py [PROGRAM] [TEST...]      PROGRAM: build/release/evenkeel, or what EVENKEEL_PROGRAM or EVENKEEL says
"""
import json
import os
import pathlib
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import command_line  # noqa: E402
from command_line import ROOT, CommandLine, safetensors  # noqa: E402

DATA = pathlib.Path(os.environ.get("EVENKEEL_TEST_DATA") or ROOT / "../shared/data")


def write_safetensors(path, tensors, metadata=None):
    header, body = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, (kind, shape, data) in tensors.items():
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + body)


class StateDicts(CommandLine):
    def weights(self):
        """The trained model as PyTorch's DataParallel would save it, and the options that make it a model again."""
        tensors, metadata = safetensors(self.trained())
        scale = json.loads(metadata["standardization"])
        path = self.folder / "weights.safetensors"
        write_safetensors(path, {f"module.{name}": t for name, t in tensors.items() if not name.endswith("num_batches_tracked")},
                          {"format": "pt"})
        return path, ["--architecture", self.toml, "--input", "1x8x8"], ["--mean", scale["mean"][0], "--std", scale["std"][0]]

    def test_a_state_dict_behaves_as_the_model_it_came_from(self):
        path, architecture, scale = self.weights()
        ours = self.json_of("eval", self.trained(), "--data", self.data)
        theirs = self.json_of("eval", path, *architecture, *scale, "--data", self.data)
        self.assertEqual(ours["accuracy"], theirs["accuracy"])
        self.assertAlmostEqual(ours["loss"], theirs["loss"], delta=1e-6)
        made = self.folder / "made.safetensors"
        self.succeed("convert", path, *architecture, *scale, "-o", made)
        self.assertAlmostEqual(self.json_of("eval", made, "--data", self.data)["loss"], ours["loss"], delta=1e-6)
        again = self.folder / "again.safetensors"
        self.succeed("recalibrate", path, *architecture, *scale, "--data", self.data, "--out", again)
        self.assertEqual(safetensors(again)[0]["conv1.weight"], safetensors(self.trained())[0]["conv1.weight"])
        self.assertIn("bn1", self.succeed("inspect", path, *architecture).stdout)

    def test_a_folded_state_dict_begins_with_the_standardization_that_was_stated(self):
        path, architecture, scale = self.weights()
        mean, std = scale[1], scale[3]
        converted = self.folder / "converted.onnx"
        self.succeed("convert", path, *architecture, *scale, "-o", converted)
        of_bytes = ["--scale", 1, "--mean", float(mean) * 255, "--std", float(std) * 255]
        half = ["--scale", 127.5, "--mean", float(mean) * 2, "--std", float(std) * 2]
        for name, stated, data in (("data", scale, ["--data", self.data]), ("random", scale, []), ("scaled", ["--scale", 255, *scale], []),
                                   ("half", half, []), ("half, data", half, ["--data", self.data]),
                                   ("bytes", of_bytes, ["--data", self.data])):
            with self.subTest(name):
                folded = self.folder / "folded.onnx"
                result = self.json_of("fold", path, *architecture, *stated, *data, "-o", folded)
                self.assertLess(result["proof"]["worst"], 1e-5)
                ours, theirs = (self.json_of("eval", model, "--data", self.data) for model in (self.trained(), folded))
                self.assertEqual(ours["accuracy"], theirs["accuracy"])
                self.assertAlmostEqual(ours["loss"], theirs["loss"], delta=1e-5)  # a fold moves roundings about
                unit = b"pixels from 0 to 255" if name == "bytes" else b"pixels / 255, channels first"
                self.assertIn(unit, folded.read_bytes())
                if name != "bytes":
                    self.assertTrue(self.json_of("diff", converted, folded, "--random", 4, "--tolerance", "1e-5")["within_tolerance"])
        self.refuse(2, "fold", path, *architecture, "--mean", "1,2", "--dry-run", says="--mean: found 2 numbers")

    def test_what_is_missing_is_said_with_the_option_that_gives_it(self):
        path, architecture, scale = self.weights()
        self.refuse(2, "eval", path, "--data", self.data, says=("without their architecture", "--architecture FILE.toml"))
        self.refuse(2, "eval", self.trained(), *architecture, "--data", self.data, says="has its architecture in it")
        self.refuse(2, "eval", path, "--architecture", "resnet21", "--data", self.data, says="did you mean 'resnet20'")
        done = self.refuse(3, "eval", path, "--architecture", "resnet20", "--data", self.data, says="keys are missing")
        self.assertIn("'layer3.2.bn2.running_var' [64]", done.stderr)
        self.refuse(2, "predict", path, *architecture[:2], "--classes", 0, "x.npy", says="--classes")

    def test_convert_never_overwrites_what_it_reads_and_leaves_nothing_behind(self):
        path, architecture, _ = self.weights()
        before = path.read_bytes()
        self.refuse(2, "convert", path, *architecture, "-o", path, says="would take the place of")
        self.refuse(2, "convert", path, "-o", self.folder / "x.onnx", says="--architecture")
        self.refuse(2, "convert", path, *architecture, "-o", self.folder / "x.pt", says=".onnx or .safetensors")
        self.refuse(2, "convert", path, says="--out")
        self.refuse(4, "convert", path, *architecture, "-o", self.folder / "no/x.onnx", says="no/x.onnx")
        self.assertEqual(path.read_bytes(), before)
        self.assertEqual([p.name for p in self.folder.iterdir()], [path.name])
        result = self.json_of("convert", path, *architecture, "-o", self.folder / "x.onnx")
        self.assertEqual((result["architecture"], result["to"]), ("tiny", "an ONNX model"))
        self.json_of("convert", self.folder / "x.onnx", "-o", self.folder / "y.safetensors")
        tensors = safetensors(self.folder / "y.safetensors")[0]
        self.assertEqual(tensors["bn1.running_var"], safetensors(self.trained())[0]["bn1.running_var"])

    def test_half_precision_weights_load(self):
        tensors, _ = safetensors(self.trained())
        half = {}
        for name, (kind, shape, data) in tensors.items():
            if kind == "F32":
                kind, data = "F16", struct.pack(f"<{len(data) // 4}e", *struct.unpack(f"<{len(data) // 4}f", data))
            half[name] = (kind, shape, data)
        path = self.folder / "half.safetensors"
        write_safetensors(path, half)
        _, architecture, scale = self.weights()
        ours = self.json_of("eval", self.trained(), "--data", self.data)
        theirs = self.json_of("eval", path, *architecture, *scale, "--data", self.data)
        self.assertAlmostEqual(ours["loss"], theirs["loss"], delta=1e-2)

    def test_a_published_network_has_its_accuracy_by_one_command(self):
        weights, images = DATA / "models/resnet20_cifar10.safetensors", DATA / "cifar10/test_2000.bin.gz"
        if not weights.exists() or not images.exists():
            self.skipTest(f"{DATA} is not there")
        result = self.json_of("eval", weights, "--architecture", "resnet20", "--mean", "0.485,0.456,0.406", "--std",
                              "0.229,0.224,0.225", "--data", images)
        self.assertAlmostEqual(result["accuracy"], 0.9180, delta=1e-9)
        self.refuse(2, "eval", weights, "--data", images, says="give --architecture resnet20: its keys")


if __name__ == "__main__":
    command_line.main()
