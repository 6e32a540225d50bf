#!/usr/bin/env python3
"""The command line as a user meets it: help, results, --json, what a terminal shows.

  tests/cli_test.py [PROGRAM] [TEST...]      PROGRAM: build/release/evenkeel, or what EVENKEEL_PROGRAM or EVENKEEL says
"""
import csv
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import command_line  # noqa: E402
from command_line import ROOT, SIDE, CommandLine, npy, pictures, png  # noqa: E402


class Commands(CommandLine):
    # --- help and the parser ---
    def test_help_of_every_command_names_its_options_and_fits_the_width(self):
        for words in (["--help"], ["train", "--help"], ["help", "eval"], ["predict", "-h"], ["help", "data", "info"], ["data", "--help"]):
            done = self.succeed(*words, env={"COLUMNS": "70"})
            self.assertEqual(done.stderr, "")
            self.assertIn("Usage\n", done.stdout)
            for line in done.stdout.splitlines():
                if not line.startswith("  evenkeel "):  # examples are not broken: they are for copying
                    self.assertLessEqual(len(line), 70, line)
            self.assertNotIn("\x1b", done.stdout)
        text = self.succeed("train", "--help").stdout
        self.assertLess(text.index("Examples"), text.index("--learning-rate"))
        self.assertIn("[default: 128]", text)

    def test_version_names_version_and_instruction_set(self):
        version = (ROOT / "evenkeel/version.h").read_text().split('#define EVENKEEL_VERSION "')[1].split('"')[0]
        self.assertRegex(self.succeed("--version").stdout, rf"^evenkeel {version} \(\w+ kernels, [^,()]+\)\n$")

    def test_version_verbose_names_build_and_libraries(self):
        lines = self.succeed("--version", "--verbose").stdout.splitlines()
        self.assertEqual(lines[0] + "\n", self.succeed("--version").stdout)
        rows = dict(line.split(maxsplit=1) for line in lines[1:])
        self.assertEqual(list(rows), ["build", "kernels", "threads", "oneDNN", "Highway", "fmt", "HDF5", "MPI"])
        kernels = re.search(r" \((\w+) kernels", lines[0])[1]
        self.assertRegex(rows["kernels"], rf"^{kernels} in use; compiled for .*\b{kernels}\b")
        for library in ("oneDNN", "Highway", "fmt"):
            self.assertRegex(rows[library], r"^\d+\.\d+\.\d+\b")
        self.assertRegex(rows["threads"], r"^\d+ cores")

    def test_the_log_of_a_run_names_the_versions_that_made_it(self):
        self.succeed(*self.train_words(self.folder / "run"))
        start = json.loads((self.folder / "run/log.jsonl").read_text().splitlines()[0])
        onednn = re.search(r"oneDNN +([\d.]+)", self.succeed("--version", "--verbose").stdout)[1]
        self.assertEqual(start["versions"]["onednn"], onednn)

    def test_colour_is_for_terminals_and_by_request(self):
        self.assertIn("\x1b[1m", self.succeed("--help", "--color", "always").stdout)
        self.assertNotIn("\x1b", self.succeed("--help", "--color=never").stdout)

    def test_no_command_shows_the_help_and_is_a_usage_error(self):
        done = self.run_program()
        self.assertEqual((done.returncode, done.stdout), (2, ""))
        self.assertIn("Commands", done.stderr)
        self.assertEqual(self.run_program("data").returncode, 2)

    def test_unknown_names_are_refused_with_the_closest_one(self):
        self.refuse(2, "trian", says="did you mean 'train'?")
        self.refuse(2, "data", "inof", "x", says="did you mean 'info'?")
        self.refuse(2, "help", "evla", says="did you mean 'eval'?")
        self.refuse(2, "train", "--epoch", 3, says=("no option '--epoch'", "did you mean '--epochs'?"))
        self.refuse(2, "eval", "m", "--epochs", 3, says="`evenkeel train` has it")
        self.refuse(2, "train", "--model", "resnet21", says="did you mean 'resnet20'")
        self.refuse(2, "train", "--schedule", "cosin", says="did you mean 'cosine'?")
        self.refuse(2, "train", "--activation", "rleu", says="did you mean 'relu'?")
        self.refuse(2, "train", "--optimizer", "adamv", says="did you mean")
        self.refuse(2, "train", "--augment", "flop", says=("--augment", "did you mean 'flip'"))
        self.refuse(2, "eval", self.trained(), "--corrupt", "blurr3", says=("--corrupt", "blur3"))
        self.refuse(2, "train", "--data", "fashion-mnits", says="fashion-mnist")

    def test_impossible_values_name_option_found_and_expected(self):
        for words, expected in (
            (["--epochs", "0"], "a whole number from 1"),
            (["--epochs", "three"], "a whole number"),
            (["--epochs", "2.5"], "a whole number"),
            (["--epochs", "99999999999999999999"], "a whole number"),
            (["--batch-size", "-4"], "a whole number"),
            (["--learning-rate", "-1"], "a number above 0"),
            (["--learning-rate", "nan"], "a number above 0"),
            (["--learning-rate", "1e400"], "a number above 0"),
            (["--beta1", "1"], "a number from 0 to below 1"),
            (["--validation", "1"], "a number from 0 to below 1"),
            (["--new-batch-weight", "0"], "a number above 0 and at most 1"),
            (["--threads", "0"], "a whole number"),
            (["--seed", "-1"], "a whole number"),
            (["--seed", "18446744073709551615"], "a whole number from 0 to 9223372036854775807"),
            (["--norm-placement", "between"], "one of before, after"),
        ):
            self.refuse(2, "train", *words, says=(words[0], f"found '{words[1]}'", f"expected {expected}"))

    def test_missing_values_and_arguments_are_named(self):
        self.refuse(2, "train", "--epochs", says="--epochs needs a value")
        self.refuse(2, "train", "--out", "--resume", says="--out needs a value")
        self.refuse(2, "train", "--out=", says="--out needs a value")
        self.refuse(2, "eval", says="needs MODEL")
        self.refuse(2, "predict", self.trained(), says="needs FILE")
        self.refuse(2, "data", "info", says="needs DATA")
        self.refuse(2, "train", "stray", says="takes no 'stray'")
        self.refuse(2, "train", "--resume", says="--resume needs --out")

    def test_the_documents_are_those_of_the_option_table(self):
        text = self.succeed("generate", "docs").stdout
        self.assertEqual((ROOT / "docs/cli.md").read_text(), text,
                         "docs/cli.md is not up to date: build/release/evenkeel generate docs > docs/cli.md")
        self.refuse(2, "generate", "pdf", says="found 'pdf'")

    def test_man_page_and_completions_are_well_formed(self):
        self.assertTrue(self.succeed("generate", "man").stdout.startswith(".TH EVENKEEL 1"))
        self.assertIn("\\-\\-learning\\-rate", self.succeed("generate", "man", "train").stdout)
        self.refuse(2, "generate", "man", "trian", says="did you mean 'train'?")
        for shell in ("bash", "zsh", "fish"):
            script = self.succeed("generate", f"completion-{shell}").stdout
            self.assertIn("learning-rate", script)
            if shutil.which(shell):
                done = subprocess.run([shell, "-n"], input=script, text=True, capture_output=True)
                self.assertEqual((done.returncode, done.stderr), (0, ""), shell)

    def test_bash_completes_commands_options_and_words(self):
        script = self.folder / "completion"
        script.write_text(self.succeed("generate", "completion-bash").stdout)

        def complete(*words):
            line = " ".join(f"'{word}'" for word in words)
            code = f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _evenkeel; echo ${{COMPREPLY[@]}}"
            return subprocess.run(["bash", "-c", code], text=True, capture_output=True, check=True).stdout.split()

        self.assertEqual(complete("evenkeel", "tr"), ["train"])
        self.assertEqual(complete("evenkeel", "train", "--learn"), ["--learning-rate"])
        self.assertEqual(complete("evenkeel", "train", "--schedule", "co"), ["constant", "cosine"])
        self.assertEqual(complete("evenkeel", "data", "i"), ["info"])
        self.assertEqual(complete("evenkeel", "data", "info", "--js"), ["--json"])

    # --- results ---
    def test_train_json_is_one_object_with_the_promised_keys(self):
        result = self.json_of(*self.train_words(self.folder / "run"))
        for key, kind in {"epochs": int, "train_loss": float, "test_accuracy": float, "images_per_s": float, "parameters": int,
                          "peak_memory_bytes": int, "model": str, "run": str, "status": str, "test_loss": float, "steps": int,
                          "seconds": float}.items():
            self.assertIsInstance(result[key], kind, key)
        self.assertEqual((result["status"], result["epochs"], result["steps"]), ("finished", 2, 12))
        self.assertTrue(pathlib.Path(result["model"]).is_file())

    def test_train_writes_its_result_to_stdout_and_a_line_per_epoch_to_stderr(self):
        done = self.succeed(*self.train_words("run"))
        self.assertIn("test accuracy", done.stdout)
        self.assertIn("run/model.safetensors", done.stdout)
        self.assertEqual(sum(line.startswith("epoch ") for line in done.stderr.splitlines()), 2)
        self.assertNotIn("\r", done.stderr)
        done = self.succeed(*self.train_words("other", "--quiet"))
        self.assertEqual(done.stderr, "")
        self.assertIn("test accuracy", done.stdout)

    def test_a_run_folder_is_made_and_numbered_when_none_is_named(self):
        words = ["train", "--data", self.data, "--model", self.toml, "--epochs", 1, "--batch-size", 32]
        self.succeed(*words)
        self.succeed(*words)
        self.assertEqual(sorted(p.name for p in (self.folder / "runs").iterdir()), ["tiny-1", "tiny-2"])

    def test_a_dry_run_writes_nothing(self):
        done = self.succeed("train", "--data", self.data, "--model", self.toml, "--dry-run")
        self.assertIn("nothing was written", done.stdout)
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_a_dry_run_says_nothing_that_it_has_not_measured(self):
        large = bytearray(b"x") * (400 << 20)  # the memory of a parent is not that of the run
        result = self.json_of("train", "--data", self.data, "--model", self.toml, "--dry-run")
        self.assertIsNone(result["train_accuracy"])
        self.assertGreater(result["train_loss"], 0)
        self.assertLess(result["peak_memory_bytes"], len(large))

    def test_a_set_smaller_than_a_batch_cannot_be_dropped(self):
        words = ["train", "--data", self.data, "--model", self.toml, "--epochs", 1, "--batch-size", 100000, "--out", "run"]
        self.refuse(2, *words, "--last-batch", "drop", says=("fewer than a batch of 100000", "--batch-size"))
        self.succeed(*words)

    def test_overfit_learns_a_few_examples_by_heart(self):
        result = self.json_of(*self.train_words("run", "--overfit", 6, "--learning-rate", "0.01", epochs=60))
        self.assertLess(result["train_loss"], 0.3)

    def test_eval_json_has_the_promised_keys(self):
        result = self.json_of("eval", self.trained())
        self.assertEqual((result["examples"], result["statistics"], result["split"]), (48, "running", "test"))
        self.assertGreater(result["accuracy"], 0.9)  # the classes are plain to see
        self.assertGreaterEqual(result["loss"], 0)
        self.assertEqual(self.json_of("eval", self.trained(), "--split", "train")["examples"], 96)
        both = self.json_of("eval", self.trained().parent, "--statistics", "both")
        self.assertEqual(both["running"]["loss"], result["loss"])
        self.assertEqual(both["batch"], {k: v for k, v in self.json_of("eval", self.trained(), "--statistics", "batch").items()
                                         if k in ("loss", "accuracy")})
        inverted = self.json_of("eval", self.trained(), "--corrupt", "invert")
        self.assertLess(inverted["accuracy"], result["accuracy"])
        self.refuse(2, "eval", self.trained(), "--split", "validation", says="no examples in its validation split")

    def test_eval_gives_the_same_predictions_one_by_one_and_in_batches(self):
        for size in (1, 7, 1000):
            self.succeed("eval", self.trained(), "--batch-size", size, "--predictions", f"{size}.csv", "--threads", 1 + size % 2)
        one = (self.folder / "1.csv").read_bytes()
        self.assertEqual(one, (self.folder / "7.csv").read_bytes())
        self.assertEqual(one, (self.folder / "1000.csv").read_bytes())
        rows = list(csv.DictReader(io.StringIO(one.decode())))
        self.assertEqual(len(rows), 48)
        self.assertEqual([int(row["label"]) for row in rows], pictures(48, 2)[1])

    def test_a_table_is_trained_on_by_name_of_its_label(self):
        out = self.folder / "run"
        self.succeed("train", "--data", self.table, "--label", "kind", "--model", "mlp", "--epochs", 8, "--batch-size", 12,
                     "--validation", "0.2", "--out", out)
        self.assertEqual(self.json_of("eval", out)["examples"], 18)  # a fifth of 90: label, seed and split are those of training
        self.assertEqual(self.json_of("eval", out, "--split", "validation")["examples"], 14)
        self.assertEqual(self.json_of("eval", out, "--data", self.table, "--label", -1, "--predictions", "p.csv")["examples"], 18)
        lines = self.table.read_text().splitlines()
        rows = list(csv.DictReader(io.StringIO((self.folder / "p.csv").read_text())))
        self.assertEqual([lines[int(row["line"]) - 1].split(",")[-1] for row in rows], [row["label"] for row in rows])
        self.assertEqual(len({row["line"] for row in rows}), 18)

    def test_predict_agrees_on_png_npy_and_csv(self):
        images, labels = pictures(4, 9)
        for i, image in enumerate(images):
            (self.folder / f"{i}.png").write_bytes(png(SIDE, SIDE, image))
        (self.folder / "all.npy").write_bytes(npy((4, 1, SIDE, SIDE), "|u1", b"".join(images)))
        (self.folder / "rows.csv").write_text("\n".join(",".join(map(str, image)) for image in images) + "\n")
        answers = []
        for files in ([f"{i}.png" for i in range(4)], ["all.npy"], ["rows.csv"]):
            result = self.json_of("predict", self.trained(), *files)
            self.assertEqual(result["examples"], 4)
            answers.append([(p["class"], p["probability"]) for p in result["predictions"]])
        self.assertEqual(answers[0], answers[1])
        self.assertEqual(answers[0], answers[2])
        self.assertEqual([int(name) for name, _ in answers[0]], labels)
        lines = self.succeed("predict", self.trained(), "0.png", "2.png", "--top", 2).stdout.splitlines()
        self.assertEqual([line.split("\t")[0] for line in lines], ["0.png", "2.png"])
        self.assertEqual(len(lines[0].split("\t")), 5)
        self.refuse(2, "predict", self.trained(), "0.png", "--top", 4, says=("--top", "3 classes"))

    def test_data_info_counts_examples_and_classes(self):
        result = self.json_of("data", "info", self.data)
        self.assertEqual(result["example_shape"], [1, SIDE, SIDE])
        self.assertEqual(result["train"], {"examples": 96, "per_class": [32, 32, 32]})
        self.assertEqual(len(result["standardization"]["mean"]), 1)
        self.assertIn("96 examples to train, 48 to test", self.succeed("data", "info", self.data).stdout)
        self.assertEqual(self.json_of("data", "info", self.table, "--label", "kind")["features"], ["width", "height"])

    def test_a_result_that_cannot_be_written_is_an_error(self):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(self.command("data", "info", self.data), stdout=full, stderr=subprocess.PIPE, text=True)
        self.assertEqual(done.returncode, 4, done.stderr)
        self.assertIn("cannot write to standard output", done.stderr)

    # --- on a terminal ---

    def test_a_terminal_shows_a_bar_that_is_redrawn_and_leaves_a_line_per_epoch(self):
        text = self.on_terminal(*self.train_words("run"))
        self.assertIn("\r", text)
        self.assertRegex(text, r"epoch 1/2 [=.]+.* 100 %  loss \d")
        self.assertRegex(text, r"images/s")
        # 10 a second at most, and each epoch's last: two epochs of a moment are a few.
        self.assertLess(text.count("\x1b[K"), 200)
        self.assertRegex(text.split("\x1b[K")[-1], r"epoch 2/2  train loss")

    def test_no_color_and_dumb_terminals_are_respected(self):
        self.assertNotIn("\x1b[2m", self.on_terminal(*self.train_words("one"), NO_COLOR="1"))
        self.assertNotIn("\x1b", self.on_terminal(*self.train_words("two"), TERM="dumb"))

    def test_options_without_effect_are_warned_about_in_one_line(self):
        words = self.train_words("run", "--dry-run", "--momentum", "0.5", "--zero-gamma")
        lines = [line for line in self.succeed(*words).stderr.splitlines() if "no effect" in line]
        self.assertEqual(len(lines), 2, lines)
        self.assertIn("--momentum has no effect: --optimizer is adamw", lines[0])
        self.assertIn("no residual blocks", lines[1])
        self.assertNotIn("no effect", self.succeed(*words, "--quiet").stderr)
        self.assertIn("--optimizer is sgd; give --optimizer momentum", self.succeed(*words, "--optimizer", "sgd").stderr)

    def test_statistics_of_a_network_without_a_norm_are_warned_about(self):
        self.succeed(*self.train_words("plain", "--norm", "none", epochs=1))
        self.assertIn("--statistics has no effect", self.succeed("eval", "plain", "--statistics", "batch").stderr)
        self.assertNotIn("no effect", self.succeed("eval", "plain").stderr)
        self.assertNotIn("no effect", self.succeed("eval", self.trained(), "--statistics", "batch").stderr)

    def test_a_terminal_of_80_columns_shows_the_time_left(self):
        text = self.on_terminal(*self.train_words("run"))
        self.assertRegex(text, r"epoch 1/2 [=.]+.*  loss [\d.]+  accuracy [\d.]+ %  \d+ images/s  \d+ s left")


if __name__ == "__main__":
    command_line.main()
