#!/usr/bin/env python3
"""`evenkeel train --weight` and `eval --weight` as a user meets them.

  tests/weights_test.py [PROGRAM] [TEST...]      PROGRAM: build/release/evenkeel, or what EVENKEEL_PROGRAM or EVENKEEL says
"""
import csv
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import command_line  # noqa: E402
from command_line import CommandLine, safetensors  # noqa: E402


class Weights(CommandLine):
    def table_with(self, weight_of, name="weighted.csv"):
        """The table with a column of weights in front of the label: weight_of(row, kind)."""
        rows = list(csv.reader(self.table.read_text().splitlines()))
        lines = ["width,height,importance,kind"]
        lines += [",".join([*row[:2], str(weight_of(i, row[2])), row[2]]) for i, row in enumerate(rows[1:])]
        path = self.folder / name
        path.write_text("\n".join(lines) + "\n")
        return path

    def words(self, data, out, *more):
        return ["train", "--data", data, "--model", "mlp", "--epochs", 3, "--batch-size", 16, "--seed", 4, "--out",
                self.folder / out, *more]

    def tensors(self, out):
        return safetensors(self.folder / out / "model.safetensors")[0]

    def test_a_line_of_weight_0_is_as_absent_whatever_it_holds(self):
        weighted = self.table_with(lambda i, _: 0 if i % 5 == 2 else 1 + i % 3)
        lines = weighted.read_text().splitlines()
        absent = [line for line in lines if line.split(",")[2] != "0"]
        self.assertLess(len(absent), len(lines))
        broken = ["?,nan,0," if line.split(",")[2] == "0" else line for line in lines]
        for name, content in (("absent.csv", absent), ("broken.csv", broken)):
            (self.folder / name).write_text("\n".join(content) + "\n")
            self.succeed(*self.words(self.folder / name, name.split(".")[0], "--weight", "importance"))
        self.succeed(*self.words(weighted, "zero", "--weight", "importance"))
        self.assertEqual(self.tensors("zero"), self.tensors("absent"))
        self.assertEqual(self.tensors("broken"), self.tensors("absent"))

    def test_weights_change_what_is_learnt_and_those_of_1_do_not(self):
        plain = self.json_of(*self.words(self.table, "plain"))
        ones = self.json_of(*self.words(self.table_with(lambda *_: 1), "ones", "--weight", "importance"))
        other = self.json_of(*self.words(self.table_with(lambda i, kind: 9 if kind == "a" else 1), "other", "--weight", "3"))
        self.assertAlmostEqual(ones["train_loss"], plain["train_loss"], places=3)
        self.assertAlmostEqual(ones["test_loss"], plain["test_loss"], places=3)
        self.assertGreater(abs(other["train_loss"] - plain["train_loss"]), 1e-3)

    def test_eval_weights_its_figures_as_training_did(self):
        data = self.table_with(lambda i, kind: {"a": 7, "b": 1, "c": 0.25}[kind])
        trained = self.json_of(*self.words(data, "run", "--weight", "importance", "--max-steps", 2))
        found = self.json_of("eval", self.folder / "run", "--predictions", self.folder / "p.csv")
        self.assertAlmostEqual(found["accuracy"], trained["test_accuracy"], places=9)
        self.assertAlmostEqual(found["loss"], trained["test_loss"], places=6)
        weights = {"a": 7, "b": 1, "c": 0.25}
        rows = list(csv.DictReader((self.folder / "p.csv").read_text().splitlines()))
        right = sum(weights[row["label"]] for row in rows if row["label"] == row["predicted"])
        self.assertAlmostEqual(found["accuracy"], right / sum(weights[row["label"]] for row in rows), places=9)
        copy = self.folder / "copy.csv"
        copy.write_text(data.read_text())
        same = self.folder / ".." / self.folder.name / data.name  # what it was trained on, called otherwise
        named = self.json_of("eval", self.folder / "run", "--data", same, "--label", "kind", "--weight", "importance")
        self.assertAlmostEqual(named["loss"], found["loss"], places=9)
        named = self.json_of("eval", self.folder / "run", "--data", copy, "--label", "kind", "--weight", "importance")
        self.assertEqual(named["examples"], 90)  # other data: all of them
        self.assertEqual(self.json_of("eval", self.folder / "run", "--data", copy)["loss"], named["loss"])
        self.json_of("eval", self.folder / "run", "--statistics", "both")

    def test_what_is_no_weight_is_refused_with_its_line_and_column(self):
        for word in ("-1", "nan", "inf", "many", ""):
            data = self.table_with(lambda i, _, w=word: w if i == 5 else 1)
            self.refuse(3, *self.words(data, "run", "--weight", "importance"),
                        says=("line 7, column 3 ('importance')", f"found the weight '{word}'"))
        zero = self.table_with(lambda *_: 0)
        self.refuse(3, *self.words(zero, "run", "--weight", "importance"), says="all 90 weights are 0")
        self.assertFalse((self.folder / "run").exists())

    def test_a_column_that_is_not_there_is_refused_with_the_closest_one(self):
        data = self.table_with(lambda *_: 1)
        self.refuse(2, *self.words(data, "run", "--weight", "importanze"), says=("no column 'importanze'", "'importance'"))
        self.refuse(2, *self.words(data, "run", "--weight", "kind", "--label", "kind"), says="as the label and as the weight")
        self.refuse(2, *self.words(self.data, "run", "--weight", "importance"), says="is no CSV file")

    def test_weights_too_small_for_statistics_are_refused_before_the_first_step(self):
        data = self.table_with(lambda *_: 0.01)
        self.refuse(2, *self.words(data, "run", "--weight", "importance"), says=("0.01 on average", "--running-variance biased"))
        self.succeed(*self.words(data, "run", "--weight", "importance", "--running-variance", "biased"))
        shares = self.table_with(lambda *_: 1.0001 / 16)  # of the batches of 16
        self.refuse(2, *self.words(shares, "shares", "--weight", "importance"), says=("0.0625 on average", "about 1;"))

    def test_a_batch_whose_weights_are_too_small_stops_the_run_or_is_skipped(self):
        data = self.table_with(lambda i, _: 400 if i < 3 else 0.001)
        words = self.words(data, "stop", "--weight", "importance")
        self.refuse(6, *words, says=("step ", "has no statistics because of its weights", "--on-nonfinite skip"))
        skipped = self.words(data, "skip", "--weight", "importance", "--on-nonfinite", "skip")
        done = self.succeed(*skipped)
        self.assertIn("batches of epoch 1 were refused", done.stderr)

    def test_recalibration_names_weights_that_are_too_small(self):
        self.succeed(*self.words(self.table_with(lambda *_: 1), "run", "--weight", "importance"))
        shares = self.table_with(lambda *_: 1.0001 / 16, "shares.csv")
        words = ["recalibrate", self.folder / "run", "--data", shares, "--label", "kind", "--weight", "importance", "--batch-size", 16,
                 "--running-statistics", "mean_of_batches", "--out", self.folder / "new.safetensors"]
        self.refuse(2, *words, says=("norm 'bn1': the values of a batch count as 1.0001 by their weights,", "--running-variance biased"))
        self.assertFalse((self.folder / "new.safetensors").exists())
        self.succeed(*words, "--running-variance", "biased")

    def test_a_run_is_not_resumed_with_other_weights(self):
        data = self.table_with(lambda i, _: 1 + i % 2)
        self.succeed(*self.words(data, "run", "--weight", "importance", "--max-steps", 3))
        self.refuse(2, *self.words(data, "run", "--max-steps", 3, "--resume"), says="weight")
        self.succeed(*self.words(data, "run", "--weight", "importance", "--max-steps", 3, "--resume"))

    def test_a_run_resumed_within_an_epoch_ends_as_one_that_was_not_stopped(self):
        data = self.table_with(lambda i, _: 1 + i % 4 / 3)
        whole = self.json_of(*self.words(data, "whole", "--weight", "importance"))
        parts = self.words(data, "parts", "--weight", "importance", "--checkpoint-every", "0.000001")
        self.succeed(*parts)
        last = max((self.folder / "parts").glob("checkpoint-*.safetensors"))  # the other is one step older
        last.unlink()
        again = self.json_of(*parts, "--resume")
        self.assertEqual(again["train_loss"], whole["train_loss"])
        self.assertEqual(self.tensors("whole"), self.tensors("parts"))

    def test_data_info_and_plan_take_the_column_out_of_the_features(self):
        table = self.table_with(lambda i, kind: i % 3)  # a third of the lines has weight 0
        info = self.json_of("data", "info", table, "--label", "kind", "--weight", "importance")
        self.assertEqual((info["example_shape"], info["train"]["examples"] + info["test"]["examples"]), ([2], 60))
        self.assertEqual(self.json_of("data", "info", table, "--label", "kind")["example_shape"], [3])
        plan = ["plan", "mlp", "--data", table, "--label", "kind", "--no-run"]
        self.assertEqual(self.json_of(*plan, "--weight", "importance")["input"], [2])
        self.refuse(2, "plan", "mlp", "--weight", "importance", says="--weight says how --data is read")


if __name__ == "__main__":
    command_line.main()
