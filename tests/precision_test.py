#!/usr/bin/env python3
"""`evenkeel train --precision` as a user meets it.

  tests/precision_test.py [PROGRAM] [TEST...]      PROGRAM: build/release/evenkeel, or what EVENKEEL_PROGRAM or EVENKEEL says
"""
import os
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import cli_test  # noqa: E402
from cli_test import CommandLine, safetensors  # noqa: E402

NO_BF16 = "this processor has no bf16 products: training in fp32"


class Precision(CommandLine):
    """Its tools, not its tests (load_tests)."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        CommandLine.model = None  # where trained() keeps it

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


def load_tests(loader, _tests, _pattern):
    names = [name for name in loader.getTestCaseNames(Precision) if name in vars(Precision)]
    return unittest.TestSuite(Precision(name) for name in names)


if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-") and os.path.sep in sys.argv[1]:
        cli_test.PROGRAM = sys.argv.pop(1)
    cli_test.PROGRAM = os.path.abspath(cli_test.PROGRAM)
    if not os.path.exists(cli_test.PROGRAM):
        print(f"precision_test: there is no program {cli_test.PROGRAM}", file=sys.stderr)
        sys.exit(2)
    unittest.main(verbosity=2)
