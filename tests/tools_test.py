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
import xml.etree.ElementTree

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import command_line  # noqa: E402
from command_line import CommandLine, safetensors  # noqa: E402

SHARED = pathlib.Path(os.environ.get("EVENKEEL_TEST_DATA", command_line.ROOT.parent / "shared/data"))


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
        text = self.succeed("inspect", self.real("resnet20_cifar10.safetensors")).stdout
        self.assertIn("\nupdate weight and kind of running variance: not in the file\n", text)

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

    def test_data_of_a_model_with_a_label_column_of_its_own_are_read_as_it_read_them(self):
        rows = [line.split(",") for line in self.table.read_text().splitlines()]
        table = self.folder / "turned.csv"
        table.write_text("\n".join(f"{kind},{height},{width}" for width, height, kind in rows) + "\n")
        self.succeed("train", "--data", table, "--label", "kind", "--model", "mlp", "--batch-size", 12, "--max-steps", 2, "--out", "own")
        held_back = self.json_of("eval", "own")["examples"]
        proof = self.json_of("fold", "own", "--dry-run", "--data", table, "--verify", 1000)["proof"]
        self.assertTrue(0 < proof["inputs"] <= held_back, proof["inputs"])  # not the whole table
        self.assertLess(proof["worst"], 1e-5)
        self.assertEqual([o["max_abs"] for o in self.json_of("diff", "own", "own", "--data", table)["outputs"]], [0])

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
        folded = self.folder / "folded.onnx"
        result = self.json_of("fold", exported, "--force-inference", "--out", folded)
        self.assertEqual((len(result["folded"]), result["left"]), (1, []))
        self.assertEqual([removed["norm"] for removed in result["removed_outputs"]], ["bn1", "bn1"])
        self.assertEqual(len(result["dropout_ended"]), 1)
        self.assertLess(result["proof"]["worst"], 1e-5)
        self.assertNotIn(b"running_mean.next", folded.read_bytes().split(b"evenkeel.fold")[0])
        self.assertEqual(self.json_of("eval", folded, "--data", self.data)["accuracy"],
                         self.json_of("eval", self.trained())["accuracy"])
        text = self.succeed("fold", exported, "--force-inference", "--dry-run").stdout
        self.assertIn("output 'bn1.running_mean.next' (running statistics of bn1) removed", text)
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

    # --- what a file says about itself ---
    def exported(self, *options, name="net.onnx"):
        out = self.folder / name
        self.succeed("convert", self.trained(), "--out", out, *options)
        return out

    def test_recalibrate_ends_the_training_mode_of_norms_with_new_statistics(self):
        trained, out = self.exported("--training", name="training.onnx"), self.folder / "new.onnx"
        result = self.json_of("recalibrate", trained, "--data", self.data, "--out", out)
        self.assertEqual(result["training_mode_ended"], ["bn1"])
        self.assertEqual([removed["output"] for removed in result["removed_outputs"]],
                         ["bn1.running_mean.next", "bn1.running_var.next"])
        self.assertNotIn("EK112", [finding["code"] for finding in self.json_of("inspect", out)["findings"]])
        plain = self.folder / "plain.onnx"
        self.assertEqual(self.json_of("recalibrate", self.exported(), "--data", self.data, "--out", plain)["training_mode_ended"], [])
        self.assertEqual(self.json_of("diff", plain, out, "--random", 4, "--tolerance", 0)["outputs"][0]["max_abs"], 0)
        self.assertIn("removed", self.succeed("recalibrate", trained, "--data", self.data, "--dry-run").stdout)

    def test_an_export_says_how_its_statistics_were_made_as_the_model_does(self):
        own, export = (self.json_of("inspect", model)["running_statistics"] for model in (self.trained(), self.exported()))
        self.assertEqual(own, export)
        self.assertEqual(own["variance"], "unbiased")
        self.assertIn("unbiased (n-1)", self.json_of("inspect", self.exported())["norms"][0]["conventions"])
        self.assertEqual(self.json_of("eval", self.exported(), "--data", self.data)["running_statistics"], own)
        out = self.folder / "new.onnx"
        new = self.json_of("recalibrate", self.exported(), "--data", self.data, "--biased", "--out", out)["running_statistics"]
        self.assertEqual((new["estimate"], new["variance"], new["made_from"]["examples"]), ("population", "biased", "96"))
        self.assertEqual(new["made_from"]["data"], "pictures")  # no folders
        self.assertEqual(self.json_of("inspect", out)["running_statistics"], new)
        self.assertIn("running variance biased", self.json_of("inspect", out)["norms"][0]["conventions"])
        back = self.folder / "back.onnx"
        self.succeed("recalibrate", out, "--undo", "--out", back)
        self.assertEqual(self.json_of("inspect", back)["running_statistics"], own)
        foreign = self.json_of("inspect", self.real("version-slim-320.onnx"))["running_statistics"]
        self.assertEqual(set(foreign), set(own))
        self.assertEqual((foreign["estimate"], foreign["variance"]), (None, "biased"))

    def test_an_export_that_leaves_the_standardization_to_the_caller_says_it(self):
        ours = self.json_of("eval", self.trained())
        bare = self.exported("--no-standardization")
        done = self.succeed("eval", bare, "--data", self.data, "--json")
        self.assertAlmostEqual(json.loads(done.stdout)["loss"], ours["loss"], delta=1e-6)
        self.assertEqual(done.stderr, "")
        stated = self.succeed("eval", bare, "--data", self.data, "--mean", 0, "--std", 1, "--json")
        self.assertNotAlmostEqual(json.loads(stated.stdout)["loss"], ours["loss"], delta=1e-3)  # the user's word counts
        self.assertIn("not as the model file says", stated.stderr)
        seen = [self.json_of("inspect", model, "--data", self.data)["data"]["norms"][0]["mean_shift"]
                for model in (bare, self.exported())]
        self.assertAlmostEqual(*seen, places=4)
        data = bare.read_bytes()
        self.assertNotIn(str(self.data).encode(), data)
        self.assertIn(b"evenkeel.data", data)

    def test_recalibrate_writes_the_standardization_that_its_statistics_are_for(self):
        out = self.folder / "new.onnx"
        result = self.json_of("recalibrate", self.exported("--no-standardization"), "--data", self.data, "--mean", 0, "--std", 2,
                              "--out", out)
        self.assertAlmostEqual(self.json_of("eval", out, "--data", self.data)["loss"], result["after"]["loss"], delta=1e-6)

    def test_standardizing_twice_is_said(self):
        export = self.exported()
        words = ("eval", export, "--data", self.data, "--mean", "0.5", "--std", "0.5")
        done = self.succeed(*words)
        self.assertIn("standardizes its inputs itself", done.stderr)
        self.assertEqual(self.succeed(*words, "--quiet").stderr, "")
        self.assertEqual(self.succeed("eval", export, "--data", self.data).stderr, "")
        done = self.succeed("fold", self.trained(), "--dry-run", "--data", self.data, "--mean", "0.5")
        self.assertIn("standardizes its inputs itself", done.stderr)

    def test_weights_of_an_own_export_fit_their_architecture(self):
        weights = self.folder / "weights.safetensors"
        self.succeed("convert", self.exported(), "--out", weights)
        scale = json.loads(safetensors(self.trained())[1]["standardization"])
        result = self.json_of("eval", weights, "--architecture", self.toml, "--input", "1x8x8", "--data", self.data,
                              "--mean", scale["mean"][0], "--std", scale["std"][0])
        self.assertAlmostEqual(result["loss"], self.json_of("eval", self.trained())["loss"], delta=1e-6)

    # --- options that would change nothing, and messages ---
    def test_options_without_effect_are_refused(self):
        export = self.exported()
        for command in (("inspect", export), ("fold", export, "--dry-run"), ("diff", export, self.trained())):
            for option in (("--architecture", "mlp"), ("--input", "1x8x8"), ("--classes", 3)):
                self.refuse(2, *command, *option, says=("own architecture", "leave them out"))
            for option in (("--mean", "0.5"), ("--std", "0.5"), ("--scale", 255), ("--resize", "8x8"), ("--layout", "nhwc")):
                self.refuse(2, *command, *option, says=(option[0], "--data"))
        self.refuse(2, "fold", self.trained(), "--dry-run", "--architecture", "mlp", says="own architecture")
        self.refuse(2, "recalibrate", export, "--biased", "--running-variance", "unbiased", "--dry-run", says="--biased")
        self.succeed("recalibrate", export, "--data", self.data, "--biased", "--running-variance", "biased", "--dry-run")

    def test_quiet_is_quiet_about_warnings(self):
        training = self.exported("--training")
        for words in (("eval", training, "--data", self.data), ("inspect", training, "--data", self.data),
                      ("recalibrate", self.trained(), "--corrupt", "invert", "--dry-run")):
            self.assertIn("warning", self.succeed(*words).stderr, words)
            done = self.succeed(*words, "--quiet")
            self.assertEqual(done.stderr, "")
            self.assertNotEqual(done.stdout, "")

    # --- diff ---
    def test_diff_finds_nothing_between_a_model_and_its_export(self):
        result = self.json_of("diff", self.trained(), self.exported(), "--tolerance", 0)
        self.assertEqual((result["norms"][0]["effect"], result["norms"][0]["eps_differs"]), (0, False))
        self.assertTrue(result["within_tolerance"])

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

    def test_diff_with_a_tolerance_wants_every_output_compared(self):
        toml, weights = self.folder / "plain.toml", bare_with_floats(self.trained(), self.folder / "bare.safetensors", "bn1.running_var", [])
        toml.write_text(command_line.TINY.replace('[[layer]]\ntype = "dropout"\nprobability = 0.2\n', ""))  # whose training cannot be run
        training, plain = self.folder / "training.onnx", self.folder / "plain.onnx"
        for out, options in ((training, ["--training"]), (plain, [])):
            self.succeed("convert", weights, "--architecture", toml, "--input", "1x8x8", "--out", out, *options)
        extra = ["bn1.running_mean.next", "bn1.running_var.next"]
        for models, only in (((training, plain), (extra, [])), ((plain, training), ([], extra))):
            done = self.run_program("diff", *models, "--random", 4, "--tolerance", "1e9", "--json")
            self.assertEqual(done.returncode, 1, done.stderr)
            result = json.loads(done.stdout)
            self.assertEqual((result["outputs_only_in_a"], result["outputs_only_in_b"], result["within_tolerance"]), (*only, False))
        text = self.succeed("diff", training, plain, "--random", 4).stdout
        self.assertIn("2 outputs are in A only: bn1.running_mean.next, bn1.running_var.next", text)


if __name__ == "__main__":
    command_line.main()
