#!/usr/bin/env python3
"""`--micro-batch` and `--spill` of `evenkeel train` and `evenkeel plan` as a user meets them.

  tests/micro_batch_test.py [PROGRAM] [TEST...]      PROGRAM: build/release/evenkeel, or what EVENKEEL_PROGRAM or EVENKEEL says
"""
import json
import pathlib
import resource
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import command_line  # noqa: E402
from command_line import CommandLine, safetensors, write_idx  # noqa: E402

WIDE = """name = "wide"
[[layer]]
type = "conv"
out = 64
kernel = 3
padding = 1
[[layer]]
type = "conv"
out = 64
kernel = 3
padding = 1
[[layer]]
type = "global_avg_pool"
[[layer]]
type = "linear"
"""
MEGA = 1 << 20


def small_files():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (32 * MEGA, 32 * MEGA))


def losses(run):
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["kind"] == "step"]


class MicroBatch(CommandLine):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.wide = cls.shared / "wide.toml"
        cls.wide.write_text(WIDE)
        cls.many = write_idx(cls.shared / "many", train=4096, test=48)

    def wide_words(self, out, *more):
        return ["train", "--data", self.many, "--model", self.wide, "--batch-size", 4096, "--max-steps", 2, "--threads", 2,
                "--out", out, *more]

    # --- whole runs ---
    def test_a_run_has_the_same_bits_for_every_micro_batch(self):
        plain = self.folder / "plain"
        self.succeed(*self.train_words(plain))
        for k in (8, 16):
            divided = self.folder / f"divided{k}"
            self.succeed(*self.train_words(divided, "--micro-batch", k))
            self.assertEqual(losses(divided), losses(plain))
            self.assertEqual(safetensors(divided / "model.safetensors"), safetensors(plain / "model.safetensors"),
                             "tensors and settings: the micro-batch is no part of the run")

    def test_a_run_is_resumed_with_another_micro_batch(self):
        plain, out = self.folder / "plain", self.folder / "run"
        words = ["--checkpoint-every", "0.01"]
        self.succeed(*self.train_words(plain, *words, epochs=40))
        process = self.start(self.train_words(out, *words, "--micro-batch", 8, epochs=40))
        self.assertTrue(self.wait_for_steps(process, out, 20))
        process.kill()
        process.communicate()
        self.assertLess(len(losses(out)), len(losses(plain)), "the run ended before it could be killed")
        done = self.succeed(*self.train_words(out, *words, "--micro-batch", 16, "--resume", epochs=40))
        self.assertIn("resuming", done.stderr)
        self.assertEqual(losses(out), losses(plain))
        self.assertEqual(safetensors(out / "model.safetensors"), safetensors(plain / "model.safetensors"))

    def test_a_spilled_run_has_the_same_bits_in_less_memory(self):
        kept, spilled, disk = self.folder / "kept", self.folder / "spilled", self.folder / "disk"
        disk.mkdir()
        plain = self.json_of(*self.wide_words(kept))
        # 4096 examples x 64 channels x 64 pixels: 64 MiB for each of the two convolutions' outputs, and for a gradient.
        self.refuse(2, *self.wide_words(spilled, "--memory", "60M"), says=("4096 examples needs", "or spill values to a disk"))
        done = self.succeed(*self.wide_words(spilled, "--memory", "60M", "--spill", disk))
        self.assertIn("MiB, are kept in a file in", done.stderr)
        self.assertEqual(list(disk.iterdir()), [], "the file has no name")
        self.assertEqual(losses(spilled), losses(kept))
        self.assertEqual(safetensors(spilled / "model.safetensors")[0], safetensors(kept / "model.safetensors")[0])
        records = [json.loads(line) for line in (spilled / "log.jsonl").read_text().splitlines()]
        self.assertLess(records[-1]["peak_memory_bytes"], plain["peak_memory_bytes"] - 80 * MEGA)

    # --- what is refused ---
    def test_impossible_micro_batches_are_refused(self):
        out = self.folder / "run"
        for k in ("0", "-8", "x"):
            self.refuse(2, *self.train_words(out, f"--micro-batch={k}"), says="--micro-batch")
        self.refuse(2, *self.train_words(out, "--micro-batch", 12), says=("blocks of 8", "found 12; use 8 or 16"))
        self.refuse(2, *self.train_words(out, "--micro-batch", 24), says=("larger than the batch of 16", "use at most 16"))
        self.refuse(2, "plan", "cnn", "--micro-batch", 12, says="use 8 or 16")
        self.refuse(2, "plan", "cnn", "--micro-batch", 256, says="larger than the batch of 128")
        self.assertFalse(out.exists())

    def test_impossible_folders_are_refused_before_the_run(self):
        out = self.folder / "run"
        for words in (self.train_words(out), ["plan", "cnn", "--no-run"]):
            self.refuse(2, *words, "--spill", self.folder, says=("--spill does nothing without --memory", "give --memory BYTES"))
            self.refuse(4, *words, "--memory", "1G", "--spill", self.folder / "nowhere", says="nowhere")
            self.refuse(4, *words, "--memory", "1G", "--spill", self.toml, says=str(self.toml))
        self.assertFalse(out.exists())

    def test_a_disk_without_room_is_found_before_the_run(self):
        out = self.folder / "run"
        self.refuse(4, *self.wide_words(out, "--memory", "60M", "--spill", self.folder), preexec_fn=small_files,
                    says=("cannot keep", "MiB of spilled values in", "free some space"))
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_a_folder_that_is_not_needed_is_said_to_be(self):
        done = self.succeed(*self.train_words(self.folder / "run", "--memory", "1G", "--spill", self.folder))
        self.assertIn("nothing is spilled", done.stderr)

    # --- evenkeel plan ---
    def test_a_plan_shows_the_micro_batch_and_what_is_spilled(self):
        words = ["plan", "cnn", "--batch-size", 512, "--threads", 2, "--no-run"]
        free = self.json_of(*words)
        self.assertEqual((free["micro_batch"], free["tile_threads"], free["spilled"]), (None, 2, []))
        plan = self.json_of(*words, "--micro-batch", 8, "--memory", "60M", "--spill", self.folder)
        self.assertEqual((plan["micro_batch"], plan["tile_threads"]), (8, 1))
        self.assertEqual(plan["spilled"][0], {"value": "conv1", "bytes": 512 * 28 * 28 * 32 * 4})
        self.assertGreaterEqual(plan["memory_bytes"]["spilled"], plan["spilled"][0]["bytes"])
        self.assertLessEqual(plan["memory_bytes"]["total"], 60 * MEGA)
        text = self.succeed(*words, "--micro-batch", 8, "--memory", "60M", "--spill", self.folder).stdout
        for word in ("at most 8 examples in work at a time, on 1 thread\n", "spilled to a file:", "conv1  "):
            self.assertIn(word, text)
        measured = self.json_of("plan", "cnn", "--batch-size", 512, "--threads", 2, "--memory", "60M", "--spill", self.folder)
        self.assertGreater(measured["step_s"], 0)


if __name__ == "__main__":
    command_line.main()
