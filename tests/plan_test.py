#!/usr/bin/env python3
"""`evenkeel plan`, `evenkeel train --memory` and `--profile` as a user meets them.

  tests/plan_test.py [PROGRAM] [TEST...]      PROGRAM: build/release/evenkeel, or what EVENKEEL_PROGRAM or EVENKEEL says
"""
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import command_line  # noqa: E402
from command_line import CommandLine, npy, safetensors  # noqa: E402

MEMORY_PARTS = ("arena", "scratch", "partials", "packed", "parameters")


class Plan(CommandLine):
    # --- evenkeel plan ---
    def test_a_plan_of_the_zoo_has_its_phases_and_its_memory(self):
        plan = self.json_of("plan", "cnn", "--batch-size", 32, "--threads", 2, "--no-run")
        self.assertEqual((plan["model"], plan["input"], plan["classes"], plan["batch_size"], plan["threads"]),
                         ("cnn", [1, 28, 28], 10, 32, 2))
        first = plan["phases"][0]
        self.assertEqual(first["nodes"], ["conv1", "moments"])
        self.assertEqual(plan["phases"][1]["nodes"], ["bn1.scale", "bn1 relu", "pool1", "conv2", "moments"])
        self.assertGreater(first["kept_bytes"], 32 * 28 * 28 * 32)
        self.assertTrue(1 <= first["tile"] <= 8)
        self.assertEqual(first["unit"] % 8, 0)
        self.assertAlmostEqual(sum(phase["estimated_share"] for phase in plan["phases"]), 1)
        self.assertTrue(any("pool1.gradient" in phase["copies"] for phase in plan["phases"]))
        for memory in (plan["memory_bytes"], plan["memory_keeping_all_bytes"]):
            self.assertEqual(sum(memory[part] for part in MEMORY_PARTS), memory["total"])
        self.assertLess(plan["memory_bytes"]["total"], plan["memory_keeping_all_bytes"]["total"])
        self.assertEqual(plan["phases"][0]["measured_s"], None)
        self.assertEqual(plan["step_s"], None)

    def test_phases_are_measured_unless_told_not_to(self):
        plan = self.json_of("plan", self.toml, "--input", "1x8x8", "--classes", 3, "--batch-size", 16, "--threads", 1)
        self.assertGreater(plan["step_s"], 0)
        spans = [phase["measured_s"] for phase in plan["phases"]]
        self.assertTrue(all(span >= 0 for span in spans))
        self.assertLessEqual(sum(spans), 2 * plan["step_s"], "medians of parts, near the median of the whole")

    def test_the_text_names_everything_and_says_what_is_an_estimate(self):
        done = self.succeed("plan", "cnn", "--batch-size", 32, "--no-run", env={"COLUMNS": "80"})
        for word in ("phase", "tile", "unit", "kept", "scratch", "copies", "estimate", "conv2", "pool1.dx*", "arena", "total",
                     "nothing made again", "cnn, input 1x28x28, 10 classes"):
            self.assertIn(word, done.stdout)
        self.assertNotIn("measured", done.stdout)
        self.assertTrue(all(len(line) <= 80 for line in done.stdout.splitlines()), done.stdout)
        done = self.succeed("plan", self.toml, "--input", "1x8x8", "--batch-size", 16)
        self.assertIn("measured: shares of", done.stdout)

    def test_a_plan_takes_its_input_from_data_from_a_file_and_from_a_trained_model(self):
        plan = self.json_of("plan", "cnn", "--data", self.data, "--no-run")
        self.assertEqual((plan["input"], plan["classes"]), ([1, command_line.SIDE, command_line.SIDE], command_line.CLASSES))
        plan = self.json_of("plan", "mlp", "--input", "20", "--classes", 4, "--no-run")
        self.assertEqual((plan["input"], plan["classes"]), ([20], 4))
        for model in (self.trained(), self.trained().parent):
            plan = self.json_of("plan", model, "--no-run")
            self.assertEqual((plan["input"], plan["classes"]), ([1, 8, 8], 3))
            self.refuse(2, "plan", model, "--classes", 4, says="a trained model has its input and classes")

    def test_data_that_need_options_are_read_by_them(self):
        (self.folder / "t.csv").write_text("kind,a,b\n" + "x,1,2\ny,2,3\nz,3,4\n" * 5)
        plan = self.json_of("plan", "mlp", "--data", self.folder / "t.csv", "--label", "kind", "--no-run")
        self.assertEqual((plan["input"], plan["classes"]), ([2], 3))
        (self.folder / "x.npy").write_bytes(npy((6, 12, 10, 3), "|u1", bytes(range(240)) * 9))
        (self.folder / "y.npy").write_bytes(npy((6,), "|u1", bytes([0, 1] * 3)))
        words = ["plan", "cnn", "--data", f"{self.folder}/x.npy,{self.folder}/y.npy", "--no-run"]
        self.assertEqual(self.json_of(*words, "--layout", "nhwc", "--resize", "8x9")["input"], [3, 8, 9])
        self.refuse(2, *words, says="--layout nhwc")
        self.refuse(2, "plan", "cnn", "--label", "kind", says="--label says how --data is read")

    def test_impossible_plans_are_refused(self):
        self.refuse(2, "plan", says="needs MODEL")
        self.refuse(2, "plan", "cn", says="did you mean 'cnn'")
        for shape in ("28x28", "1x28x", "x", "1x0x3", "3x32x32x1", "1x28x70000", "a"):
            self.refuse(2, "plan", "cnn", "--input", shape, says=("--input", f"found '{shape}'"))
        self.refuse(2, "plan", "cnn", "--input", "1x8x8", "--data", self.data, says="do not go together")
        self.refuse(2, "plan", "cnn", "--memory", "1M", says=("128 examples needs", "more than the 1 MiB allowed"))

    def test_a_forced_tile_is_that_of_every_phase(self):
        plan = self.json_of("plan", "cnn", "--batch-size", 32, "--tile", 3, "--no-run")
        self.assertEqual({phase["tile"] for phase in plan["phases"]} - {0}, {3})

    def test_a_plan_keeps_to_its_memory(self):
        words = ["plan", "cnn", "--threads", 2, "--no-run"]
        free = self.json_of(*words)["memory_bytes"]["total"]
        bounded = self.json_of(*words, "--memory", free - 1)["memory_bytes"]["total"]
        self.assertLess(bounded, free)
        self.refuse(2, *words, "--memory", "4M", says=("128 examples needs", "more than the 4 MiB allowed"))
        self.assertEqual(self.json_of(*words, "--memory", "1G")["memory_bytes"]["total"], free)

    # --- train --memory ---
    def test_amounts_of_memory_are_read_with_their_units(self):
        for text in ("0", "-1", "12Q", "M", "1.5G", "9999999999G", ""):
            self.refuse(2, "train", f"--memory={text}", says="--memory")
        for text in ("1G", "1024M", "1048576K", "1073741824"):
            out = self.folder / text
            self.succeed(*self.train_words(out, "--memory", text, epochs=1))
            start = json.loads((out / "log.jsonl").read_text().splitlines()[0])
            self.assertEqual(start["settings"]["memory"], str(1 << 30))

    def test_a_run_within_its_memory_is_resumed_with_the_same_only(self):
        out = self.folder / "run"
        words = self.train_words(out, "--memory", "1G", "--threads", 2)
        self.succeed(*words, "--max-steps", 3)
        self.refuse(2, *self.train_words(out, "--threads", 2, "--resume", "--max-steps", 3), says=("--memory", "not set"))
        self.refuse(2, *self.train_words(out, "--memory", "2G", "--threads", 2, "--resume", "--max-steps", 3), says="--memory")
        self.refuse(2, *self.train_words(out, "--memory", "1G", "--threads", 1, "--resume", "--max-steps", 3), says="--threads")
        self.succeed(*words, "--max-steps", 3, "--resume")

    def test_too_little_memory_is_refused_before_a_folder_is_made(self):
        out = self.folder / "run"
        self.refuse(2, *self.train_words(out, "--memory", "10K"), says=("16 examples needs", "more than the 10240 bytes allowed"))
        self.assertFalse(out.exists())

    # --- train --profile ---
    def test_a_profile_is_a_trace_that_browsers_read_and_a_table(self):
        file = self.folder / "trace.json"
        done = self.succeed(*self.train_words(self.folder / "run", "--profile", file, "--threads", 2, epochs=1))
        for word in ("step 3:", "convolutions and matrix products", "norms", "everything else", "waiting", " ms", " %"):
            self.assertIn(word, done.stdout)
        events = json.loads(file.read_text())
        self.assertTrue(events)
        for event in events:
            self.assertEqual((event["ph"], event["pid"]), ("X", 1))
            self.assertIn(event["tid"], (0, 1))
            self.assertGreaterEqual(event["ts"], 0)
            self.assertGreaterEqual(event["dur"], 0)
            self.assertIn("phase", event["args"])
        self.assertLessEqual({"conv1", "bn1.moments", "fc1"}, {event["name"] for event in events})
        self.assertLessEqual({"Conv", "Moments", "Normalize", "AdamUpdate"}, {event["cat"] for event in events})
        firsts = sorted(event["args"]["first_example"] for event in events if event["name"] == "conv1" and event["cat"] == "Conv")
        self.assertEqual(firsts[0], 0)

    def test_a_profile_adds_up_and_changes_no_bit(self):
        plain, traced = self.folder / "plain", self.folder / "traced"
        self.succeed(*self.train_words(plain))
        result = self.json_of(*self.train_words(traced, "--profile", self.folder / "trace.json"))
        profile = result["profile"]
        parts = sum(profile[part] for part in ("products_s", "norms_s", "other_s", "waiting_s"))
        self.assertAlmostEqual(parts, profile["seconds"] * profile["threads"], delta=1e-9)
        self.assertEqual(safetensors(plain / "model.safetensors")[0], safetensors(traced / "model.safetensors")[0])

    def test_a_run_of_two_steps_is_profiled_at_its_last(self):
        result = self.json_of(*self.train_words(self.folder / "run", "--profile", "trace.json", "--max-steps", 2))
        self.assertEqual(result["profile"]["step"], 2)
        self.assertTrue((self.folder / "trace.json").is_file())

    def test_a_profile_that_cannot_be_written_is_refused_before_training(self):
        out = self.folder / "run"
        self.refuse(4, *self.train_words(out, "--profile", "nowhere/trace.json"), says="nowhere")
        self.refuse(2, *self.train_words(out, "--profile", self.folder), says="it is a folder")
        self.refuse(2, "train", "--profile", "trace.json", "--dry-run", says="--profile and --dry-run")
        self.assertEqual(list(self.folder.iterdir()), [])


if __name__ == "__main__":
    command_line.main()
