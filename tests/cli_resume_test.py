#!/usr/bin/env python3
"""Runs that are killed or stopped, and resumed: the same bits as a run that was not.

  tests/cli_resume_test.py [PROGRAM] [TEST...]      PROGRAM: build/release/evenkeel, or what EVENKEEL_PROGRAM or EVENKEEL says
"""
import json
import pathlib
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import command_line  # noqa: E402
from command_line import TIMEOUT_S, CommandLine, safetensors  # noqa: E402


class Resume(CommandLine):
    whole = None  # what the run gives that is not cut off: tensors and metadata, trained once

    def long_words(self, out, *more):
        """A run of 240 steps, with all that is random, and checkpoints as often as can be."""
        return self.train_words(out, "--augment", "crop1,flip", "--checkpoint-every", "0.01", *more, epochs=40)

    def uninterrupted(self):
        if type(self).whole is None:
            out = self.shared / "whole"
            self.succeed(*self.long_words(out, "--threads", 1))
            type(self).whole = safetensors(out / "model.safetensors")
        return type(self).whole

    def assert_same_model(self, path):
        (tensors, metadata), (expected, expected_metadata) = safetensors(path), self.uninterrupted()
        self.assertEqual(sorted(tensors), sorted(expected))
        for name in expected:
            self.assertEqual(tensors[name], expected[name], name)
        self.assertEqual(metadata, expected_metadata)

    def test_a_run_killed_at_several_moments_ends_with_the_same_bits(self):
        out = self.folder / "run"
        kills = 0
        for number, steps in enumerate((0, 20, 60, 110, 180)):
            # The first kill comes while the run begins: the folder may not be there yet, or be empty.
            resume = ["--resume"] if out.exists() and any(out.iterdir()) else []
            process = self.start(self.long_words(out, "--threads", 1 + number % 2, *resume))
            if steps == 0:
                while process.poll() is None and not out.exists():
                    time.sleep(0.001)
                time.sleep(0.01)
            else:
                self.wait_for_steps(process, out, steps)
            if process.poll() is None:
                kills += 1
            process.kill()
            process.communicate()
        self.assertGreaterEqual(kills, 3, "the runs ended before they could be killed")
        done = self.succeed(*self.long_words(out, "--threads", 2, "--resume"))
        self.assertIn("resuming", done.stderr)
        self.assert_same_model(out / "model.safetensors")
        steps = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        numbers = [record["step"] for record in steps if "learning_rate" in record]
        self.assertEqual(numbers, list(range(1, 241)), "every step stands in the log once")

    def test_ctrl_c_saves_says_how_to_go_on_and_exits_130(self):
        for number, (number_of_signal, code) in enumerate(((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143))):
            out = self.folder / f"run {number}"  # the space has to be quoted in the advice
            process = self.start(self.long_words(out, "--json", "--threads", 1 + number))
            self.assertTrue(self.wait_for_steps(process, out, 20))
            process.send_signal(number_of_signal)
            stdout, stderr = process.communicate(timeout=TIMEOUT_S)
            self.assertEqual(process.returncode, code, stderr)
            self.assertEqual(json.loads(stdout)["status"], "interrupted")
            advice = stderr.splitlines()[-1].strip()
            self.assertIn("--resume", advice)
            self.assertIn(f"'{out}'", advice)
            done = subprocess.run(["sh", "-c", advice.replace("evenkeel", f"'{command_line.PROGRAM}'", 1)], cwd=self.folder,
                                  capture_output=True, text=True, timeout=TIMEOUT_S)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assert_same_model(out / "model.safetensors")

    def test_a_folder_with_a_run_is_refused_naming_the_two_ways_on(self):
        out = self.folder / "run"
        self.succeed(*self.train_words(out))
        before = (out / "model.safetensors").read_bytes()
        self.refuse(2, *self.train_words(out), says=("--resume", "--out"))
        self.refuse(2, *self.train_words(out, "--resume", "--learning-rate", "0.5"), says=("learning-rate", "0.5"))
        self.assertEqual((out / "model.safetensors").read_bytes(), before)
        self.succeed(*self.train_words(out, "--resume", "--threads", 1))  # already at its end
        self.assertEqual((out / "model.safetensors").read_bytes(), before)

    def test_a_folder_in_use_is_refused(self):
        out = self.folder / "run"
        process = self.start(self.long_words(out))
        try:
            self.assertTrue(self.wait_for_steps(process, out, 5))
            self.refuse(2, *self.long_words(out, "--resume"), says=str(process.pid))
        finally:
            process.kill()
            process.communicate()

    def test_resume_without_a_checkpoint_begins_at_the_beginning_and_says_so(self):
        for name, make in (("new", False), ("empty", True)):
            out = self.folder / name
            if make:
                out.mkdir()
            done = self.succeed(*self.train_words(out, "--resume"))
            self.assertIn("from the beginning", done.stderr)
            self.assertTrue((out / "model.safetensors").exists())

    def test_a_damaged_checkpoint_is_passed_over(self):
        out = self.folder / "run"
        process = self.start(self.long_words(out, "--threads", 1))
        self.assertTrue(self.wait_for_steps(process, out, 60))
        process.kill()
        process.communicate()
        newest = sorted(out.glob("checkpoint-*.safetensors"))[-1]
        newest.write_bytes(newest.read_bytes()[:-5])
        done = self.succeed(*self.long_words(out, "--threads", 1, "--resume"))
        self.assertIn(newest.name, done.stderr)
        self.assert_same_model(out / "model.safetensors")


if __name__ == "__main__":
    command_line.main()
