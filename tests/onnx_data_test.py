#!/usr/bin/env python3
"""ONNX models on data: eval, predict, inspect --data, recalibrate with its ways back, against known figures.

  tests/onnx_data_test.py [PROGRAM] [TEST...]      PROGRAM: build/release/evenkeel, or what EVENKEEL_PROGRAM or EVENKEEL says
"""
import json
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import unittest
import zlib

SHARED = pathlib.Path(os.environ.get("EVENKEEL_TEST_DATA", "../shared/data")).resolve()
MODEL = SHARED / "models" / "resnet20_cifar10_bn.onnx"
TRAIN, TEST = SHARED / "cifar10" / "train_4000.bin.gz", SHARED / "cifar10" / "test_2000.bin.gz"
DETECTOR = SHARED / "models" / "version-slim-320.onnx"
STATED = ["--mean", ".485,.456,.406", "--std", ".229,.224,.225"]
PLAIN_AVERAGE = ["--examples", 2000, "--order", "file", "--batch-size", 250, "--running-statistics", "mean_of_batches"]


def png_ramp():
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    rows = b"".join(b"\0" + bytes((x * 8, y * 8, 128)[c] for x in range(32) for c in range(3)) for y in range(32))
    header = struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def write_npy(path, kind, shape, body):
    header = repr({"descr": kind, "fortran_order": False, "shape": shape}).ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + body)


class OnnxOnData(unittest.TestCase):
    program = os.environ.get("EVENKEEL_PROGRAM") or os.environ.get("EVENKEEL") or "build/release/evenkeel"

    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = pathlib.Path(scratch.name)

    def run_it(self, *words, code=0):
        done = subprocess.run([self.program, *map(str, words)], capture_output=True, text=True)
        self.assertEqual(done.returncode, code, f"evenkeel {' '.join(map(str, words))}\n{done.stderr}")
        return done

    def json_of(self, *words):
        return json.loads(self.run_it(*words, "--json").stdout)

    def recalibrated(self, name, *more):
        out = self.folder / name
        return out, self.json_of("recalibrate", MODEL, "--data", TRAIN, *PLAIN_AVERAGE, *STATED, "-o", out, *more)

    def changes(self, a, b):
        norms = self.json_of("diff", a, b)["norms"]
        self.assertEqual(len(norms), 19)
        return [abs(value) for norm in norms for value in norm.values() if isinstance(value, float)]

    def test_eval_gives_the_published_accuracy(self):
        both = self.json_of("eval", MODEL, "--data", TEST, *STATED, "--statistics", "both")
        self.assertAlmostEqual(both["accuracy"], 0.9180, delta=0.0006)
        self.assertEqual(len(both["norms"]), 19)

    def test_examples_of_another_shape_are_refused(self):
        done = self.run_it("eval", MODEL, "--data", SHARED / "mnist", code=2)
        self.assertIn("[1, 28, 28]", done.stderr)
        self.assertIn("[3, 32, 32]", done.stderr)

    # The table of ../shared/data/README.md: PyTorch's figures, within half a point.
    def check_row(self, corrupt, before, after):
        found = self.recalibrated("out.onnx", "--corrupt", corrupt, "--test", TEST)[1]
        self.assertAlmostEqual(found["before"]["accuracy"], before, delta=0.005)
        self.assertAlmostEqual(found["after"]["accuracy"], after, delta=0.005)

    def test_recalibrate_as_is(self):
        self.check_row("none", 0.9180, 0.8880)

    def test_recalibrate_contrast(self):
        self.check_row("contrast=0.3", 0.6625, 0.8790)

    def test_recalibrate_brightness(self):
        self.check_row("brightness=0.3", 0.8595, 0.8485)

    def test_recalibrate_blur(self):
        self.check_row("blur3", 0.5925, 0.8285)

    # The noise is another stream than PyTorch's: the mean of three seeds, within two points.
    def test_recalibrate_noise(self):
        rows = [self.recalibrated("out.onnx", "--corrupt", "noise=0.1", "--seed", seed, "--test", TEST)[1] for seed in (1, 2, 3)]
        for name, expected in (("before", 0.2335), ("after", 0.5800)):
            mean = sum(row[name]["accuracy"] for row in rows) / len(rows)
            self.assertAlmostEqual(mean, expected, delta=0.02, msg=name)

    def test_a_worse_result_and_another_preprocessing_are_said(self):
        words = ["recalibrate", MODEL, "--data", TRAIN, *PLAIN_AVERAGE, *STATED, "--dry-run"]
        self.assertIn("judged worse", self.run_it(*words, "--test", TEST).stderr)
        self.assertIn("preprocessing looks different", self.run_it(*words, "--corrupt", "contrast=0.3").stderr)
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_undo_brings_the_old_statistics_back(self):
        faded, undone = self.recalibrated("faded.onnx", "--corrupt", "contrast=0.3")[0], self.folder / "undone.onnx"
        self.assertGreater(max(self.changes(MODEL, faded)), 0.1)
        self.run_it("recalibrate", faded, "--undo", "-o", undone)
        self.assertEqual(max(self.changes(MODEL, undone)), 0)
        self.assertIn("from before", self.run_it("recalibrate", undone, "--undo", "-o", self.folder / "x.onnx", code=2).stderr)
        self.assertFalse((self.folder / "x.onnx").exists())

    def test_a_blend_lies_between(self):
        half = self.recalibrated("half.onnx", "--corrupt", "contrast=0.3", "--blend", 0.5, "--test", TEST)[1]
        self.assertGreater(half["after"]["accuracy"], 0.67)
        self.assertLess(half["after"]["accuracy"], 0.879)

    def test_without_a_file_to_write_nothing_is_written(self):
        copy = self.folder / "copy.onnx"
        copy.write_bytes(MODEL.read_bytes())
        self.assertIn("--out", self.run_it("recalibrate", copy, "--data", TRAIN, *STATED, code=2).stderr)
        self.assertEqual(copy.read_bytes(), MODEL.read_bytes())
        self.assertEqual([path.name for path in self.folder.iterdir()], ["copy.onnx"])

    def test_exact_statistics_do_not_depend_on_the_batches(self):
        files = []
        for batch in (50, 200):
            files.append(self.folder / f"exact{batch}.onnx")
            found = self.json_of("recalibrate", MODEL, "--data", TRAIN, "--examples", 200, "--order", "file", "--batch-size", batch, *STATED,
                                 "-o", files[-1])
            self.assertEqual(found["passes"], 19)
        self.assertLess(max(self.changes(*files)), 1e-4)

    def test_predict_names_the_classes(self):
        (self.folder / "ramp.png").write_bytes(png_ramp())
        names = "plane car bird cat deer dog frog horse ship truck".split()
        (self.folder / "names").write_text("\n".join(names) + "\n")
        found = self.json_of("predict", MODEL, self.folder / "ramp.png", *STATED, "--labels", self.folder / "names", "--top", 3)
        self.assertEqual(len(found["predictions"]), 1)
        self.assertEqual(len(found["predictions"][0]["top"]), 3)
        self.assertIn(found["predictions"][0]["class"], names)

    def test_inspect_on_data_finds_what_faded_pictures_do(self):
        found = self.json_of("inspect", MODEL, "--data", TEST, *STATED, "--corrupt", "contrast=0.3")
        codes = {finding["code"] for finding in found["findings"]}
        self.assertIn("EK119", codes)
        self.assertIn("EK121", codes)

    def test_recalibrate_writes_what_was_stated_of_arrays_and_pictures(self):
        """Each file is read without a word about its inputs, as the model that it was made from is with them."""
        count, shape = 20, (20, 3, 32, 32)
        pixels = random.Random(0).randbytes(count * 3 * 32 * 32)
        write_npy(self.folder / "y.npy", "<i8", (count,), struct.pack(f"<{count}q", *(i % 10 for i in range(count))))
        of_bytes = ["--scale", 1, "--mean", "123.675,116.28,103.53", "--std", "58.395,57.12,57.375"]  # 255 times those of STATED
        for name, floats, stated, unit in (("unit", lambda v: v / 255, STATED, "pixels / 255, channels first"),
                                           ("scaled", float, ["--scale", 255, *STATED], "pixels from 0 to 255"),
                                           ("wide", lambda v: v / 64 - 2, ["--scale", 2, *STATED], "features"),
                                           ("bytes", None, STATED, "pixels / 255, channels first"),
                                           ("means of bytes", None, of_bytes, "pixels / 255, channels first")):
            with self.subTest(name):
                if floats:
                    write_npy(self.folder / "x.npy", "<f4", shape, struct.pack(f"<{len(pixels)}f", *map(floats, pixels)))
                else:
                    write_npy(self.folder / "x.npy", "|u1", shape, pixels)
                data, out = f"{self.folder / 'x.npy'},{self.folder / 'y.npy'}", self.folder / "out.onnx"
                told = self.json_of("recalibrate", MODEL, "--data", data, *stated, "-o", out)["after"]
                self.assertIn(f"{unit}, then (x - mean) / std".encode(), out.read_bytes())
                read, again = self.json_of("eval", out, "--data", data), self.json_of("eval", out, "--data", data, *stated)
                # (x / S - mean) / std is computed as (x - S mean) / (S std): roundings of float32, that 20 layers carry on.
                self.assertAlmostEqual(read["loss"], told["loss"], delta=1e-4)
                self.assertAlmostEqual(read["loss"], again["loss"], delta=1e-4)
                self.assertNotEqual(self.json_of("eval", MODEL, "--data", data)["loss"], self.json_of("eval", MODEL, "--data", data, *stated)["loss"])

    def test_a_detector_has_norms_but_no_classes(self):
        pictures = ["--data", TEST, "--resize", "240x320", "--scale", 1, "--mean", 127, "--std", 128]
        found = self.json_of("recalibrate", DETECTOR, *pictures, "--examples", 4, "-o", self.folder / "slim.onnx")
        self.assertIsNone(found["before"])
        self.assertEqual(len(found["norms"]), 25)
        self.assertIn("one row of scores", self.run_it("eval", DETECTOR, *pictures, code=2).stderr)
        words = ["--examples", 4, "--running-statistics", "cumulative", "-o", self.folder / "y.onnx"]
        self.assertIn("at a time", self.run_it("recalibrate", DETECTOR, *pictures, *words, code=5).stderr)


if __name__ == "__main__":
    missing = [path for path in (MODEL, TRAIN, TEST, DETECTOR) if not path.exists()]
    if missing:
        print(f"skipped: {missing[0]} is not here")
        sys.exit(77)
    if len(sys.argv) > 1 and pathlib.Path(sys.argv[1]).is_file():
        OnnxOnData.program = str(pathlib.Path(sys.argv.pop(1)).resolve())
    unittest.main()
