#!/usr/bin/env python3
"""`evenkeel train --precision` and `evenkeel plan --precision` as a user meets them.

  tests/precision_test.py [PROGRAM] [TEST...]      PROGRAM: build/release/evenkeel, or what EVENKEEL_PROGRAM or EVENKEEL says
"""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import command_line  # noqa: E402
from command_line import CommandLine, safetensors  # noqa: E402

NO_BF16 = "this processor has no bf16 products: training in fp32"


class Precision(CommandLine):
    def test_two_steps_are_trained(self):
        result = self.json_of(*self.train_words(self.folder / "run", "--precision", "bf16", "--max-steps", 2))
        self.assertEqual((result["status"], result["steps"]), ("finished", 2))

    def test_fp32_is_the_default(self):
        plain, named = self.folder / "plain", self.folder / "named"
        self.succeed(*self.train_words(plain))
        self.succeed(*self.train_words(named, "--precision", "fp32"))
        self.assertEqual(safetensors(plain / "model.safetensors"), safetensors(named / "model.safetensors"))

    def test_bf16_learns_what_fp32_learns(self):
        wide = self.json_of(*self.train_words(self.folder / "wide", epochs=5))
        narrow = self.json_of(*self.train_words(self.folder / "narrow", "--precision", "bf16", epochs=5))
        self.assertLess(abs(narrow["train_loss"] - wide["train_loss"]), 0.1)

    def test_a_processor_without_bf16_says_so_once_and_trains_in_fp32(self):
        plain, limited = self.folder / "plain", self.folder / "limited"
        old = {"DNNL_MAX_CPU_ISA": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
        self.succeed(*self.train_words(plain), env=old)
        done = self.succeed(*self.train_words(limited, "--precision", "bf16"), env=old)
        self.assertEqual(done.stderr.count(NO_BF16), 1, done.stderr)
        self.assertEqual(safetensors(plain / "model.safetensors")[0], safetensors(limited / "model.safetensors")[0])

    def test_another_word_is_refused(self):
        self.refuse(2, *self.train_words(self.folder / "run", "--precision", "fp16"), says=("--precision", "one of fp32, bf16"))

    def test_a_run_is_not_resumed_in_another_precision(self):
        out = self.folder / "run"
        self.succeed(*self.train_words(out, "--precision", "bf16"))
        self.refuse(2, *self.train_words(out, "--resume"), says="precision")
        self.succeed(*self.train_words(out, "--precision", "bf16", "--resume"))

    # --- evenkeel plan ---
    def test_a_plan_in_bf16_is_measured_and_keeps_half_of_the_images(self):
        words = ("plan", "cnn-gap", "--batch-size", 32, "--threads", 1)
        wide, narrow = self.json_of(*words, "--no-run"), self.json_of(*words, "--precision", "bf16")
        self.assertEqual(wide["precision"], "fp32")
        if narrow["precision"] == "fp32":
            self.skipTest("this processor has no bf16 products")
        self.assertEqual(narrow["precision"], "bf16")
        kept = [sum(phase["kept_bytes"] for phase in plan["phases"]) for plan in (wide, narrow)]
        self.assertTrue(0.5 <= kept[1] / kept[0] < 0.6, kept)
        self.assertLess(narrow["memory_bytes"]["total"], wide["memory_bytes"]["total"])
        self.assertGreater(narrow["step_s"], 0)
        self.assertIn("32 examples a step in bf16, 1 thread", self.succeed(*words, "--precision", "bf16", "--no-run").stdout)

    def test_a_plan_for_a_processor_without_bf16_is_that_of_fp32(self):
        words = ("plan", "cnn", "--batch-size", 32, "--no-run", "--threads", 1)
        old = {"DNNL_MAX_CPU_ISA": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
        done = self.succeed(*words, "--precision", "bf16", env=old)
        self.assertEqual(done.stderr.count("this processor has no bf16 products: a plan in fp32"), 1, done.stderr)
        self.assertEqual(done.stdout, self.succeed(*words, env=old).stdout)


if __name__ == "__main__":
    command_line.main()
