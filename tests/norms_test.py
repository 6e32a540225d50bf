#!/usr/bin/env python3
"""Kinds of norms and their switches in `evenkeel train`, as a user meets them.

  tests/norms_test.py [PROGRAM] [TEST...]      PROGRAM: build/release/evenkeel, or what EVENKEEL_PROGRAM or EVENKEEL says
"""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import command_line  # noqa: E402
from command_line import CommandLine, safetensors  # noqa: E402


class Norms(CommandLine):
    def tensors(self, *options, name="run", **keywords):
        out = self.folder / name
        self.succeed(*self.train_words(out, *options, **keywords))
        return safetensors(out / "model.safetensors")[0]

    def test_every_kind_of_norm_learns(self):
        none = self.json_of(*self.train_words(self.folder / "none", "--norm", "none", "--dry-run"))
        for kind in ("batch", "renorm", "layer"):
            result = self.json_of(*self.train_words(self.folder / kind, "--norm", kind, "--renorm-schedule", "0,4,4", epochs=5))
            self.assertEqual(result["status"], "finished")
            self.assertLess(result["train_loss"], none["train_loss"])

    def test_group_norm_keeps_no_running_statistics(self):
        names = set(self.tensors("--norm", "group", "--norm-groups", 4))
        self.assertIn("bn1.weight", names)
        self.assertNotIn("bn1.running_mean", names)

    def test_a_ghost_batch_as_large_as_the_batch_changes_nothing(self):
        self.assertEqual(self.tensors(name="plain"), self.tensors("--ghost-batch", 4096, name="ghost"))

    def test_frozen_norms_stay_as_they_are(self):
        first = self.tensors(name="first")
        frozen = self.tensors("--from", self.folder / "first", "--freeze-norm", "bn*", name="frozen")
        for name, value in first.items():
            self.assertEqual(value == frozen[name], name.startswith("bn"), name)

    def test_frozen_running_statistics_are_not_made_anew_at_the_end(self):
        first = self.tensors(name="first")
        after = self.tensors("--from", self.folder / "first", "--freeze-running", "bn1", "--running-statistics", "population",
                             name="after")
        self.assertEqual(first["bn1.running_mean"], after["bn1.running_mean"])
        again = self.tensors("--from", self.folder / "first", "--running-statistics", "population", name="again")
        self.assertNotEqual(first["bn1.running_mean"], again["bn1.running_mean"])

    def test_the_mean_of_batches_is_that_of_the_last_epoch(self):
        # Without a step of the weights (a learning rate of nearly 0) every epoch has the same batches' statistics but for their order.
        frozen = ("--learning-rate", "1e-30", "--schedule", "constant", "--optimizer", "sgd")
        last = self.tensors("--running-statistics", "mean_of_batches", *frozen, name="last", epochs=3)
        every = self.tensors("--running-statistics", "cumulative", *frozen, name="every", epochs=3)
        batches = {name: int.from_bytes(t["bn1.num_batches_tracked"][2], "little") for name, t in (("last", last), ("every", every))}
        self.assertEqual(batches["every"], 3 * batches["last"])
        ema = self.tensors("--running-statistics", "ema", *frozen, name="ema", epochs=3)
        self.assertNotEqual(ema["bn1.running_mean"], every["bn1.running_mean"])

    def test_the_three_switches_work_apart(self):
        first = self.tensors(name="first")
        for option, kept in (("--freeze-affine", ("bn1.weight", "bn1.bias")),
                             ("--freeze-running", ("bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked")),
                             ("--use-running", ())):
            after = self.tensors("--from", self.folder / "first", option, "bn1", name=option.strip("-"))
            for name in (n for n in first if n.startswith("bn1.")):
                self.assertEqual(first[name] == after[name], name in kept, f"{option} {name}")

    def test_a_run_from_a_model_takes_its_network(self):
        self.tensors(name="first")
        result = self.json_of("train", "--data", self.data, "--from", self.folder / "first", "--max-steps", 1, "--out",
                              self.folder / "second")
        self.assertEqual(result["status"], "finished")

    def test_a_run_from_a_model_takes_none_of_its_switches(self):
        self.tensors("--freeze-norm", "*", "--bias-corrected", "--ghost-batch", 4, name="first")
        second = self.folder / "second"
        self.succeed("train", "--data", self.data, "--from", self.folder / "first", "--epochs", 2, "--batch-size", 16, "--out", second)
        first, after = (safetensors(path / "model.safetensors")[0] for path in (self.folder / "first", second))
        self.assertNotEqual(first["bn1.weight"], after["bn1.weight"])
        self.assertNotIn("ghost", safetensors(second / "model.safetensors")[1]["architecture"])

    def test_a_corrected_norm_that_has_seen_no_batch_is_read_as_any_other(self):
        # Start values 0 and 1 in both: the same steps to the bit.
        for number, words in enumerate((["--freeze-norm", "*"], ["--freeze-running", "*", "--max-steps", 1], ["--use-running", "*", "--max-steps", 1],
                                        ["--norm", "renorm", "--renorm-schedule", "0,4,4", "--max-steps", 1])):
            plain = self.tensors(*words, name=f"plain{number}")
            corrected = self.tensors(*words, "--bias-corrected", name=f"corrected{number}")
            for name in (n for n in plain if ".running" not in n):
                self.assertEqual(plain[name], corrected[name], f"{words} {name}")

    def test_a_corrected_average_is_taken_over_corrected(self):
        first = self.folder / "first"
        self.succeed(*self.train_words(first, "--bias-corrected"))
        held = self.json_of("eval", first)
        frozen = ("--freeze-norm", "*", "--learning-rate", "1e-30", "--optimizer", "sgd", "--schedule", "constant", "--max-steps", 1)
        again = self.json_of("train", "--data", self.data, "--from", first, *frozen, "--out", self.folder / "second")
        self.assertAlmostEqual(held["loss"], again["test_loss"], places=5)

    def test_renorm_and_ghost_batches_are_refused_together(self):
        self.refuse(2, *self.train_words(self.folder / "run", "--norm", "renorm", "--ghost-batch", 4), says="leave one of them out")

    def test_options_without_effect_are_told(self):
        for words in (("--norm", "group", "--ghost-batch", 4), ("--norm", "batch", "--norm-groups", 2), ("--ghost-batch", 99),
                      ("--running-statistics", "cumulative", "--bias-corrected")):
            done = self.succeed(*self.train_words(self.folder / str(words[-1]).strip("-"), *words, epochs=1))
            self.assertIn("has no effect", done.stderr, words)

    def test_a_run_on_other_classes_starts_its_last_layer_anew_and_its_model_loads(self):
        tables = []
        for name, kinds in (("three", "abc"), ("two", "ab")):
            path = self.folder / f"{name}.csv"
            path.write_text("x,y,kind\n" + "".join(f"{i % 7},{i * i % 5},{kinds[i % len(kinds)]}\n" for i in range(90)))
            tables.append(path)
        first, second = self.folder / "t3", self.folder / "t2"
        words = ("--epochs", 1, "--batch-size", 16, "--quiet")
        self.succeed("train", "--data", tables[0], "--label", "kind", "--model", "mlp", "--out", first, *words)
        done = self.succeed("train", "--data", tables[1], "--label", "kind", "--from", first, "--out", second, *words[:-1])
        self.assertIn("start anew", done.stderr)
        self.assertEqual(self.json_of("eval", second)["examples"], 18)

    def test_counts_of_batches_come_with_their_statistics_only(self):
        table = self.folder / "wide.csv"
        table.write_text("x,y,z,kind\n" + "".join(f"{i % 7},{i * i % 5},{i % 3},{'abc'[i % 3]}\n" for i in range(90)))
        net = '[[layer]]\ntype = "linear"\nout = {}\n[[layer]]\ntype = "linear"\nout = {}\n[[layer]]\ntype = "linear"\nbias = false\n'
        for name, widths in (("old", (8, 6)), ("new", (8, 5)), ("other", (7, 5))):
            (self.folder / f"{name}.toml").write_text(net.format(*widths))
        words = ("--data", table, "--label", "kind", "--epochs", 1, "--batch-size", 16)
        old, new = self.folder / "old", self.folder / "new"
        self.succeed("train", "--model", self.folder / "old.toml", "--out", old, *words)
        done = self.succeed("train", "--model", self.folder / "new.toml", "--from", old, "--out", new, *words)
        self.assertIn("bn2.num_batches_tracked", done.stderr)
        batches = {norm["name"]: norm["num_batches_tracked"] for norm in self.json_of("inspect", new)["norms"]}
        self.assertEqual(batches["bn1"], 2 * batches["bn2"])
        # No tensor but the two counts fits.
        self.refuse(2, "train", "--model", self.folder / "other.toml", "--from", old, "--norm-placement", "before", "--out", self.folder / "no",
                    *words, says="none of its tensors")

    def test_impossible_requests_are_one_sentence(self):
        out = self.folder / "run"
        self.refuse(2, *self.train_words(out, "--freeze-norm", "bn9"), says=("no norm layer 'bn9'", "bn1"))
        self.refuse(2, *self.train_words(out, "--freeze-norm", "bn1", "--norm", "none"), says="the network has no norms")
        self.refuse(2, *self.train_words(out, "--freeze-norm", "bn1,,bn2"), says="with commas between them")
        self.refuse(2, "train", "--data", self.data, "--model", "mlp", "--out", out, "--ghost-batch", 1, says="ghost batch of 1")
        self.refuse(2, *self.train_words(out, "--norm", "group", "--norm-groups", 7), says="do not divide")
        self.refuse(2, *self.train_words(out, "--renorm-schedule", "5,1,1"), says="three numbers of steps")
        self.refuse(2, *self.train_words(out, "--norm", "spectral"), says="one of none, batch")
        self.assertFalse(out.exists())

    def test_renorm_that_never_begins_is_told(self):
        done = self.succeed(*self.train_words(self.folder / "run", "--norm", "renorm"))
        self.assertIn("stays plain batch norm", done.stderr)


if __name__ == "__main__":
    command_line.main()
