#!/usr/bin/env python3
"""recalibrate, inspect, `eval --statistics both` and the averages of train, as a user meets them.

  tests/statistics_test.py [PROGRAM] [TEST...]      PROGRAM: build/release/evenkeel, or what EVENKEEL_PROGRAM or EVENKEEL says
"""
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import command_line  # noqa: E402
from command_line import CommandLine, safetensors, write_idx  # noqa: E402


class Statistics(CommandLine):
    def plain(self):
        """A network without norms."""
        self.succeed(*self.train_words(self.folder / "plain", "--norm", "none", epochs=1))
        return self.folder / "plain"

    def recalibrated(self, *more):
        out = self.folder / "new.safetensors"
        return out, self.json_of("recalibrate", self.trained(), "--out", out, *more)

    # --- recalibrate ---
    def test_recalibrate_writes_a_new_model_with_the_same_weights(self):
        before = self.trained().read_bytes()
        out, result = self.recalibrated()
        self.assertEqual(self.trained().read_bytes(), before)
        old, new = safetensors(self.trained())[0], safetensors(out)[0]
        for name in old:
            changed = "running" in name or "num_batches" in name
            self.assertEqual(old[name] != new[name], changed, name)
        self.assertEqual((result["examples"], result["passes"], result["out"]), (96, 1, str(out)))
        self.assertEqual([norm["name"] for norm in result["norms"]], ["bn1"])
        evaluated = self.json_of("eval", out)
        self.assertEqual(evaluated["loss"], result["after"]["loss"])
        self.assertEqual(self.json_of("eval", self.trained())["loss"], result["before"]["loss"])
        self.assertEqual(evaluated["running_statistics"]["estimate"], "population")
        self.assertEqual(evaluated["running_statistics"]["made_from"]["examples"], "96")

    def test_recalibrate_writes_beside_the_model_and_never_over_it(self):
        folder = self.folder / "run"
        self.succeed(*self.train_words(folder))
        before = (folder / "model.safetensors").read_bytes()
        done = self.succeed("recalibrate", folder)
        self.assertIn("model.recalibrated.safetensors", done.stdout)
        self.assertEqual((folder / "model.safetensors").read_bytes(), before)
        self.refuse(2, "recalibrate", folder / "model.recalibrated.safetensors", says=("would take the place", "--out"))
        self.succeed("recalibrate", folder, "--out", folder / "model.safetensors")  # asked for
        self.assertNotEqual((folder / "model.safetensors").read_bytes(), before)

    def test_the_new_model_is_named_after_its_own_and_takes_no_other_ones_place(self):
        for name in ("a", "b"):
            (self.folder / f"{name}.safetensors").write_bytes(self.trained().read_bytes())
            self.succeed("recalibrate", self.folder / f"{name}.safetensors", "--biased")
            self.succeed("recalibrate", self.folder / f"{name}.safetensors")  # once more, of the same model
        names = sorted(path.name for path in self.folder.iterdir())
        self.assertEqual(names, ["a.recalibrated.safetensors", "a.safetensors", "b.recalibrated.safetensors", "b.safetensors"])
        kept = (self.folder / "a.recalibrated.safetensors").read_bytes()
        self.succeed(*self.train_words(self.folder / "other", epochs=1))
        other = (self.folder / "other/model.safetensors").read_bytes()
        for there, source in ((kept, other), (b"not a model", other), (other, self.trained().read_bytes())):
            (self.folder / "a.recalibrated.safetensors").write_bytes(there)
            (self.folder / "a.safetensors").write_bytes(source)
            self.refuse(2, "recalibrate", self.folder / "a.safetensors", says=("another model", "--out"))
            self.assertEqual((self.folder / "a.recalibrated.safetensors").read_bytes(), there)
        self.succeed("recalibrate", self.folder / "a.safetensors", "--out", self.folder / "a.recalibrated.safetensors")

    def test_recalibrate_knows_all_estimates(self):
        seen = set()
        for how in ("ema", "cumulative", "population", "population_one_pass"):
            for variance in ("biased", "unbiased"):
                out, result = self.recalibrated("--running-statistics", how, "--running-variance", variance)
                self.assertEqual((result["running_statistics"]["estimate"], result["running_statistics"]["variance"]), (how, variance))
                seen.add(repr(safetensors(out)[0]["bn1.running_var"]))
        # The network has one norm: what is below it has no statistics, and one pass is as exact as many.
        self.assertEqual(len(seen), 6)

    def test_recalibrate_takes_some_examples_of_another_split_changed_as_told(self):
        result = self.recalibrated("--examples", 40, "--split", "test", "--batch-size", 8, "--corrupt", "invert", "--augment", "flip")[1]
        made = result["running_statistics"]["made_from"]
        self.assertEqual((made["examples"], made["batch_size"], made["corrupt"], made["augment"]), ("40", "8", "invert", "flip"))
        self.assertEqual(result["examples"], 40)

    def test_recalibrate_says_when_the_result_is_worse(self):
        other = write_idx(self.folder / "other")
        images = other / "train-images-idx3-ubyte"
        old = images.read_bytes()
        images.write_bytes(old[:16] + bytes(255 - byte for byte in old[16:]))  # inverted: not what the test set looks like
        done = self.succeed("recalibrate", self.trained(), "--data", other, "--out", self.folder / "worse.safetensors")
        self.assertIn("judged worse", done.stderr)
        self.assertTrue((self.folder / "worse.safetensors").exists())  # a warning: the user decides

    def test_recalibrate_says_once_that_classes_are_taken_by_number(self):
        self.succeed("train", "--data", self.table, "--model", "mlp", "--epochs", 1, "--out", "run")
        rows = self.table.read_text().replace(",a\n", ",x\n").replace(",b\n", ",y\n").replace(",c\n", ",z\n")
        (self.folder / "other.csv").write_text(rows)
        done = self.succeed("recalibrate", "run", "--data", "other.csv", "--out", "new.safetensors")
        self.assertEqual(done.stderr.count("have other names (x, y, z)"), 1, done.stderr)

    def test_recalibrate_does_not_depend_on_threads(self):
        one, three = self.folder / "one.safetensors", self.folder / "three.safetensors"
        self.succeed("recalibrate", self.trained(), "--threads", 1, "--out", one)
        self.succeed("recalibrate", self.trained(), "--threads", 3, "--out", three)
        self.assertEqual(one.read_bytes(), three.read_bytes())

    def test_recalibrate_refuses_what_cannot_be(self):
        out = self.folder / "new.safetensors"
        self.refuse(2, "recalibrate", self.trained(), "--running-statistics", "median", says=("--running-statistics", "population"))
        self.refuse(2, "recalibrate", self.trained(), "--examples", 0, says=("--examples", "at least 1"))
        self.refuse(2, "recalibrate", self.trained(), "--examples", 97, "--out", out, says=("97", "has 96"))
        self.refuse(2, "recalibrate", self.plain(), "--out", out, says="no batch norm")
        self.refuse(4, "recalibrate", self.trained(), "--out", self.folder / "none" / "new.safetensors", says="none")
        self.assertFalse(out.exists())

    # --- recalibrate --adapt ---
    def adapted(self, goal, *more):
        return self.recalibrated("--adapt", goal, "--adapt-epochs", 3, "--adapt-rate", 0.01, "--batch-size", 32, "--corrupt",
                                 "noise=0.3", *more)

    def test_adapt_changes_gamma_and_beta_beside_the_statistics_and_undo_brings_all_back(self):
        old = safetensors(self.trained())[0]
        for goal, by in (("gamma-beta", "labels"), ("gamma-beta-entropy", "entropy")):
            out, result = self.adapted(goal)
            new = safetensors(out)[0]
            for name in old:
                changed = name.startswith("bn1.")
                self.assertEqual(old[name] != new[name], changed, name)
            adapted = result["adapted"]
            self.assertEqual([adapted[key] for key in ("by", "epochs", "rate", "norms", "parameters", "examples", "steps")],
                             [by, 3, 0.01, 1, 8, 96, 9])
            self.assertLess(adapted["losses"][2], adapted["losses"][0])
            self.assertNotEqual(result["after"]["loss"], result["recalibrated"]["loss"])
            self.assertEqual(self.json_of("eval", out, "--corrupt", "noise=0.3")["loss"], result["after"]["loss"])
            self.assertIn(f"gamma and beta adapted by {by}, 3 epochs, rate 0.01", self.succeed("eval", out).stdout)
            back = self.folder / "back.safetensors"
            done = self.succeed("recalibrate", out, "--undo", "--out", back)
            self.assertIn("the statistics, gamma and beta from before are back", done.stdout)
            self.assertEqual(safetensors(back)[0], old)
            self.refuse(2, "recalibrate", back, "--undo", "--out", self.folder / "more.safetensors", says="no statistics from before")

    def test_adapted_statistics_are_those_of_the_adapted_network(self):
        """By labels: those that it learned with. By entropy: of the network as it is now, which one more recalibration does not change."""
        for goal in ("gamma-beta", "gamma-beta-entropy"):
            out = self.adapted(goal)[0]
            once = self.folder / "once.safetensors"
            self.succeed("recalibrate", out, "--corrupt", "noise=0.3", "--batch-size", 32, "--out", once)
            self.assertEqual(safetensors(once)[0], safetensors(out)[0], goal)  # one norm: nothing above it

    def test_adapt_says_what_it_did(self):
        done = self.succeed("recalibrate", self.trained(), "--adapt", "gamma-beta", "--dry-run")
        for words in ("gamma and beta of 1 norm, 8 numbers: 6 steps on 96 examples, loss", "new stats", "adapted"):
            self.assertIn(words, done.stdout)
        self.assertNotIn("adapted", self.recalibrated()[1])

    def test_adapt_does_not_depend_on_threads(self):
        for goal in ("gamma-beta", "gamma-beta-entropy"):
            one, two = (self.adapted(goal, "--threads", threads)[0].read_bytes() for threads in (1, 2))
            self.assertEqual(one, two)

    def test_adapt_refuses_what_cannot_be(self):
        out = self.folder / "new.safetensors"
        self.refuse(2, "recalibrate", self.trained(), "--adapt", "gamma", says=("--adapt", "gamma-beta-entropy"))
        self.refuse(2, "recalibrate", self.trained(), "--adapt-rate", 0.1, says=("--adapt-rate needs --adapt",))
        self.refuse(2, "recalibrate", self.trained(), "--adapt", "gamma-beta", "--undo", says="do not go together")
        self.refuse(2, "recalibrate", self.trained(), "--adapt", "gamma-beta", "--adapt-rate", 0, says="--adapt-rate")
        self.refuse(2, "recalibrate", self.trained(), "--adapt", "gamma-beta", "--adapt-epochs", 0, says="--adapt-epochs")
        exported = self.folder / "model.onnx"
        self.succeed("convert", self.trained(), "--out", exported)
        for goal in ("gamma-beta", "gamma-beta-entropy"):
            self.refuse(5, "recalibrate", exported, "--data", self.data, "--adapt", goal, "--out", self.folder / "new.onnx",
                        says=("ONNX models cannot be trained here", "--architecture"))
        self.assertFalse(out.exists())

    # --- inspect ---
    def test_inspect_shows_a_line_for_every_norm(self):
        text = self.succeed("inspect", self.trained().parent).stdout
        self.assertIn("running statistics: ema, unbiased, new batch weight 0.1", text)
        self.assertIn("PyTorch momentum 0.1, Keras/ONNX momentum 0.9", text)
        rows = text.split("\n\n")[1].splitlines()
        self.assertEqual([row.split()[0] for row in rows], ["norm", "bn1"])
        result = self.json_of("inspect", self.trained())
        norm = result["norms"][0]
        self.assertEqual((norm["name"], norm["channels"], norm["num_batches_tracked"]), ("bn1", 4, 30))
        for key in ("gamma", "beta", "running_mean", "running_var"):
            self.assertLessEqual(norm[key][0], norm[key][1])
        self.assertGreater(norm["running_var"][0], 0)
        self.assertIsNone(result["running_statistics"]["made_from"])

    def test_inspect_of_a_network_without_norms_says_so(self):
        plain = self.plain()
        self.assertIn("no batch norm", self.succeed("inspect", plain).stdout)
        self.assertEqual(self.json_of("inspect", plain)["norms"], [])
        self.refuse(2, "inspect", self.folder / "missing", says="missing")

    # --- eval ---
    def test_eval_both_says_how_far_the_statistics_are_apart(self):
        both = self.json_of("eval", self.trained(), "--statistics", "both", "--batch-size", 64)
        self.assertEqual([norm["name"] for norm in both["norms"]], ["bn1"])
        inverted = self.json_of("eval", self.trained(), "--statistics", "both", "--batch-size", 64, "--corrupt", "invert")
        self.assertGreater(inverted["norms"][0]["mean_shift"], 3 * both["norms"][0]["mean_shift"])
        text = self.succeed("eval", self.trained(), "--statistics", "both").stdout
        self.assertIn("mean shift", text)
        self.assertIn("running statistics: ema", text)
        self.assertNotIn("norms", self.json_of("eval", self.trained()))

    def test_recalibrated_on_the_evaluated_split_nothing_is_apart(self):
        out = self.recalibrated("--split", "test", "--running-variance", "biased")[0]
        norm = self.json_of("eval", out, "--statistics", "both")["norms"][0]
        self.assertLess(norm["mean_shift"], 1e-6)
        self.assertLess(norm["log_var_ratio"], 1e-6)

    # --- train ---
    def test_train_recomputes_at_the_end_and_says_so(self):
        out = self.folder / "run"
        done = self.succeed(*self.train_words(out, "--running-statistics", "population"))
        self.assertIn("made anew from 96 training examples (population, 1 pass", done.stderr)
        kinds = [json.loads(line)["kind"] for line in (out / "log.jsonl").read_text().splitlines()]
        self.assertEqual(kinds.count("statistics"), 1)
        self.assertIn("population, unbiased, of 96 examples", self.succeed("eval", out).stdout)
        plain = self.folder / "plain"
        self.succeed(*self.train_words(plain))
        self.succeed("recalibrate", plain)
        self.assertEqual(safetensors(out / "model.safetensors")[0],
                         safetensors(plain / "model.recalibrated.safetensors")[0])
        self.refuse(2, *self.train_words(out, "--resume"), says="running-statistics")

    def test_train_averages_the_weights(self):
        out = self.folder / "run"
        done = self.succeed(*self.train_words(out, "--average-weights", "swa=2"))
        self.assertIn("averaged weights are evaluated and saved", done.stderr)
        plain = self.folder / "plain"
        self.succeed(*self.train_words(plain))
        averaged, last = safetensors(out / "model.safetensors")[0], safetensors(plain / "model.safetensors")[0]
        self.assertNotEqual(averaged["conv1.weight"], last["conv1.weight"])
        for words, says in ((("--average-weights", "mean"), "unknown average"), (("--average-weights", "ema=2"), "ema=0.999"),
                            (("--average-weights", "swa=9"), "from epoch 9 on"),
                            (("--running-statistics", "median"), "--running-statistics")):
            self.refuse(2, *self.train_words(self.folder / "none", *words), says=says)


if __name__ == "__main__":
    command_line.main()
