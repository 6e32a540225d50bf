#!/usr/bin/env python3
"""inspect, explain, diff and fold, as a user meets them.

  tests/tools_test.py [PROGRAM] [TEST...]      PROGRAM: build/release/evenkeel, or what EVENKEEL_PROGRAM or EVENKEEL says
"""
import csv
import io
import json
import os
import pathlib
import struct
import sys
import unittest
import xml.etree.ElementTree

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import cli_test  # noqa: E402
from cli_test import CommandLine, safetensors  # noqa: E402

SHARED = pathlib.Path(os.environ.get("EVENKEEL_TEST_DATA", cli_test.ROOT.parent / "shared/data"))


def bare_with_floats(path, out, tensor, values):
    """A copy of a safetensors file without metadata, a bare state dict, in which the first values of an F32 tensor are others."""
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    del header["__metadata__"]
    data[8:8 + length] = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    begin = 8 + length + header[tensor]["data_offsets"][0]
    data[begin:begin + 4 * len(values)] = struct.pack(f"<{len(values)}f", *values)
    out.write_bytes(data)
    return out


class Tools(CommandLine):
    """Its tools, not its tests (load_tests)."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        CommandLine.model = None  # where trained() keeps it

    def real(self, name):
        path = SHARED / "models" / name
        if not path.exists():
            self.skipTest(f"no {path}")
        return path

    def weak(self):
        """The weights of the trained model, with a channel of variance 0 and another of negative variance."""
        return bare_with_floats(self.trained(), self.folder / "weak.safetensors", "bn1.running_var", [0.0, -1.0])

    # --- inspect ---
    def test_inspect_tells_what_stands_around_a_norm_and_counts_its_channels(self):
        result = self.json_of("inspect", self.trained())
        norm = result["norms"][0]
        self.assertTrue(norm["fed_by"][0].startswith("Conv"), norm["fed_by"])
        self.assertTrue(norm["feeds"][0].startswith("Relu"), norm["feeds"])
        self.assertEqual(result["totals"]["channels"], norm["channels"])
        self.assertIn("new batch 0.1", norm["conventions"])

    def test_findings_have_a_code_a_reason_and_a_remedy_and_decide_about_the_exit_code(self):
        weak = self.weak()
        result = self.json_of("inspect", weak)
        found = {finding["code"]: finding for finding in result["findings"]}
        self.assertEqual((found["EK104"]["severity"], found["EK105"]["severity"]), ("warning", "error"))
        self.assertEqual((found["EK105"]["norm"], found["EK105"]["channels"]), ("bn1", 1))
        self.assertEqual((result["totals"]["variance_zero"], result["totals"]["variance_negative"]), (1, 1))
        text = self.succeed("inspect", weak).stdout
        line = next(line for line in text.splitlines() if "EK105" in line)
        self.assertTrue(line.startswith("error") and "bn1" in line and "recalibrate" in line, line)
        for fail_on, model, code in (("error", weak, 1), ("warning", weak, 1), ("error", self.trained(), 0)):
            self.assertEqual(self.run_program("inspect", model, "--fail-on", fail_on).returncode, code)

    def test_inspect_as_csv_has_a_row_for_every_norm(self):
        rows = list(csv.DictReader(io.StringIO(self.succeed("inspect", self.weak(), "--csv").stdout)))
        self.assertEqual([row["name"] for row in rows], ["bn1"])
        self.assertEqual(float(rows[0]["var_min"]), -1)
        self.assertIn("EK105", rows[0]["findings"].split())

    def test_inspect_draws_a_page_that_stands_alone(self):
        page = self.folder / "norms.html"
        self.succeed("inspect", self.weak(), "--html", page)
        text = page.read_text()
        self.assertEqual(text.count("<svg"), 5)
        self.assertNotIn("<script", text)
        self.assertNotIn("http", text)
        for part in text.split("<svg")[1:]:
            xml.etree.ElementTree.fromstring("<svg" + part.split("</svg>")[0] + "</svg>")

    def test_inspect_on_data_measures_the_distance_and_suspects_the_preprocessing(self):
        fits = self.json_of("inspect", self.trained(), "--data", self.data)
        self.assertEqual(fits["data"]["examples"], 48)
        self.assertEqual(set(fits["data"]["accuracy"]), {"stored", "batch"})
        inverted = self.json_of("inspect", self.trained(), "--data", self.data, "--corrupt", "invert")
        self.assertGreater(inverted["data"]["norms"][0]["mean_shift"], 3 * fits["data"]["norms"][0]["mean_shift"])
        self.assertIn("EK119", [finding["code"] for finding in inverted["findings"]])
        self.assertIn("deviations", self.succeed("inspect", self.trained(), "--data", self.data, "--corrupt", "invert").stdout)

    def test_an_onnx_model_on_data_is_judged_as_the_model_that_it_was_made_from(self):
        exported = self.folder / "model.onnx"
        self.succeed("convert", self.trained(), "--out", exported)
        words = ("--data", self.data, "--corrupt", "invert", "--batch-size", 48)
        own, onnx = (self.json_of("inspect", model, *words)["data"] for model in (self.trained(), exported))
        self.assertEqual(own["accuracy"], onnx["accuracy"])
        self.assertAlmostEqual(own["norms"][0]["mean_shift"], onnx["norms"][0]["mean_shift"], places=4)

    def test_weights_without_an_architecture_are_inspected_but_not_run(self):
        self.refuse(5, "inspect", self.real("resnet20_cifar10.safetensors"), "--data", self.data, says="--architecture")

    def test_the_weak_channels_of_the_face_detectors_are_counted(self):
        for name, weak, tiny in (("version-RFB-320.onnx", 44, 0), ("version-slim-320.onnx", 263, 27)):
            totals = self.json_of("inspect", self.real(name))["totals"]
            self.assertEqual(totals["variance_at_or_below_eps"], weak)
            if tiny:
                self.assertEqual(totals["variance_below_1e-10"], tiny)

    # --- explain ---
    def test_explain_tells_about_one_code_and_lists_all(self):
        self.assertIn("beta does its work", self.succeed("explain", "ek101").stdout.replace("\n", " "))
        listed = self.succeed("explain").stdout.splitlines()
        codes = [line.split()[0] for line in listed]
        self.assertEqual(codes, sorted(set(codes)))
        self.assertEqual([f["code"] for f in self.json_of("explain")["findings"]], codes)
        self.refuse(2, "explain", "EK999", says="EK999")

    # --- fold ---
    def test_fold_writes_what_it_has_proved_and_its_record(self):
        out = self.folder / "folded.onnx"
        result = self.json_of("fold", self.trained(), "--out", out)
        self.assertEqual([(f["norm"], f["pattern"]) for f in result["folded"]], [("bn1", "conv -> norm")])
        self.assertEqual(result["left"], [])
        self.assertGreater(result["proof"]["outputs"][0]["largest"], 0)
        self.assertLess(result["proof"]["worst"], 1e-5)
        self.assertEqual(len(result["proof"]["layers"]), 1)
        self.assertIn(b"evenkeel.fold", out.read_bytes())
        self.assertEqual(self.json_of("inspect", out)["norms"], [])
        self.assertIn("1 of 1 norms folded", self.succeed("fold", self.trained(), "--dry-run").stdout)

    def test_fold_can_be_proved_on_data(self):
        result = self.json_of("fold", self.trained(), "--dry-run", "--data", self.data, "--verify", 20)
        self.assertEqual(result["proof"]["inputs"], 20)
        self.assertLess(result["proof"]["worst"], 1e-5)

    def test_fold_writes_nothing_beyond_the_tolerance_or_when_dry(self):
        out = self.folder / "folded.onnx"
        done = self.run_program("fold", self.trained(), "--out", out, "--tolerance", 0)
        self.assertEqual(done.returncode, 1)
        self.assertIn("nothing was written", done.stderr)
        self.succeed("fold", self.trained(), "--out", out, "--dry-run")
        self.assertFalse(out.exists())
        self.refuse(2, "fold", self.trained(), says="--out")
        self.assertIsNone(self.json_of("fold", self.trained(), "--out", out, "--verify", 0)["proof"])
        self.assertTrue(out.exists())

    def test_a_model_in_training_mode_is_folded_only_when_told(self):
        exported = self.folder / "training.onnx"
        self.succeed("convert", self.trained(), "--out", exported, "--training")
        left = self.json_of("fold", exported, "--dry-run", "--verify", 0)["left"]
        self.assertIn("training mode", left[0]["reason"])
        self.assertIn("EK112", [finding["code"] for finding in self.json_of("inspect", exported)["findings"]])

    def test_files_that_cannot_be_folded_are_refused(self):
        self.refuse(3, "fold", self.real("pretrainedResnet.h5"), "--dry-run", says="ONNX")
        self.refuse(2, "fold", self.folder / "gone.onnx", "--dry-run", says="gone")

    def test_all_norms_of_the_real_models_are_folded(self):
        for name, norms in (("version-RFB-320", 35), ("version-slim-320", 25), ("resnet20_cifar10_bn", 19)):
            out = self.folder / f"{name}.onnx"
            result = self.json_of("fold", self.real(f"{name}.onnx"), "--out", out, "--verify", 2)
            self.assertEqual((len(result["folded"]), len(result["left"])), (norms, 0))
            self.assertLess(result["proof"]["worst"], 1e-5)
            if "version" in name:  # the authors' own folded file: the same scores
                theirs = self.json_of("diff", out, self.real(f"{name}_simplified.onnx"), "--random", 2)["outputs"]
                self.assertLess(next(o["max_abs"] for o in theirs if o["name"] == "scores"), 1e-5)

    # --- diff ---
    def test_diff_ranks_what_recalibration_changed(self):
        other = self.folder / "other.safetensors"
        self.succeed("recalibrate", self.trained(), "--corrupt", "invert", "--out", other, "--quiet")
        result = self.json_of("diff", self.trained(), other)
        norm = result["norms"][0]
        self.assertGreater(norm["effect"], 0.1)
        self.assertEqual((norm["gamma"]["relative"], norm["beta"]["relative"]), (0, 0))
        self.assertGreater(norm["running_mean"]["relative"], 0)
        self.assertEqual(self.run_program("diff", self.trained(), other, "--tolerance", "0.01").returncode, 1)
        self.assertEqual(self.run_program("diff", self.trained(), self.trained(), "--tolerance", "0").returncode, 0)

    def test_diff_compares_outputs_across_formats(self):
        out = self.folder / "folded.onnx"
        self.succeed("fold", self.trained(), "--out", out)
        result = self.json_of("diff", self.trained(), out, "--random", 10, "--tolerance", "1e-5")
        self.assertEqual((result["only_in_a"], result["inputs"], result["within_tolerance"]), (["bn1"], 10, True))
        self.assertEqual(self.run_program("diff", self.trained(), out, "--tolerance", "1e-5").returncode, 1)
        self.assertIn("outputs on", self.succeed("diff", self.trained(), out, "--data", self.data).stdout)
        self.refuse(2, "diff", self.trained(), out, "--data", self.data, "--random", 3, says="leave one of them out")


def load_tests(loader, _tests, _pattern):
    names = [name for name in loader.getTestCaseNames(Tools) if name in vars(Tools)]
    return unittest.TestSuite(Tools(name) for name in names)


if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-") and os.path.sep in sys.argv[1]:
        cli_test.PROGRAM = sys.argv.pop(1)
    cli_test.PROGRAM = os.path.abspath(cli_test.PROGRAM)
    if not os.path.exists(cli_test.PROGRAM):
        print(f"tools_test: there is no program {cli_test.PROGRAM}", file=sys.stderr)
        sys.exit(2)
    unittest.main(verbosity=2)
