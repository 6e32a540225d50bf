#!/usr/bin/env python3
"""The command line as a user meets it: messages, exit codes, --json, killed and resumed runs.

  tests/cli_test.py [PROGRAM] [TEST...]      PROGRAM: build/release/evenkeel, or what EVENKEEL_PROGRAM or EVENKEEL says

Needs nothing but Python: all data are made here. Every test has a folder of its own, which goes away at the end.
"""
import csv
import gzip
import io
import json
import os
import pathlib
import pty
import re
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest
import zlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = os.environ.get("EVENKEEL_PROGRAM") or os.environ.get("EVENKEEL") or str(ROOT / "build/release/evenkeel")
TIMEOUT_S = 120  # of one command: far above what any takes, sanitizers included

SIDE = 8  # pixels
CLASSES = 3
# Convolution, norm, dropout: all that could make a resumed run differ, in a network of a moment.
TINY = """name = "tiny"
[[layer]]
type = "conv"
out = 4
kernel = 3
padding = 1
[[layer]]
type = "max_pool"
kernel = 2
[[layer]]
type = "flatten"
[[layer]]
type = "dropout"
probability = 0.2
[[layer]]
type = "linear"
"""


class Numbers:
    """The same pseudo-random numbers everywhere (a linear congruence; Python's own generator may change)."""

    def __init__(self, seed=1):
        self.state = seed

    def below(self, bound):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % bound


def pictures(count, seed):
    """Pictures of a bright band whose place is the class, with noise: easily learnt."""
    numbers = Numbers(seed)
    images, labels = [], []
    for i in range(count):
        label = i % CLASSES
        image = bytes(min(255, (170 if y // 3 == label else 20) + numbers.below(60)) for y in range(SIDE) for _ in range(SIDE))
        images.append(image)
        labels.append(label)
    return images, labels


def idx_images(images):
    return struct.pack(">IIII", 0x803, len(images), SIDE, SIDE) + b"".join(images)


def idx_labels(labels):
    return struct.pack(">II", 0x801, len(labels)) + bytes(labels)


def write_idx(folder, train=96, test=48):
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count, seed in (("train", train, 1), ("t10k", test, 2)):
        images, labels = pictures(count, seed)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx_images(images))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_labels(labels))
    return folder


def npy(shape, type_name, payload):
    header = f"{{'descr': '{type_name}', 'fortran_order': False, 'shape': {shape!r}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + payload


def png(width, height, grey):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + grey[y * width:(y + 1) * width] for y in range(height))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)) +
            chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def write_csv(path, rows=90):
    numbers = Numbers(3)
    lines = ["width,height,kind"]
    for i in range(rows):
        kind = i % CLASSES
        lines.append(f"{kind * 4 + numbers.below(200) / 100:.2f},{10 - kind * 3 + numbers.below(200) / 100:.2f},{'abc'[kind]}")
    path.write_text("\n".join(lines) + "\n")
    return path


def safetensors(path):
    """{name: (dtype, shape, bytes)} and the metadata."""
    data = pathlib.Path(path).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    metadata = header.pop("__metadata__", {})
    body = data[8 + length:]
    return {name: (t["dtype"], tuple(t["shape"]), body[slice(*t["data_offsets"])]) for name, t in header.items()}, metadata


class CommandLine(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.shared = pathlib.Path(tempfile.mkdtemp(prefix="evenkeel-cli-"))
        cls.data = write_idx(cls.shared / "pictures")
        cls.toml = cls.shared / "tiny.toml"
        cls.toml.write_text(TINY)
        cls.table = write_csv(cls.shared / "table.csv")
        cls.model = None

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.shared, ignore_errors=True)

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(dir=self.shared))

    # --- how commands are run ---
    def command(self, *words):
        return [PROGRAM, *map(str, words)]

    def environment(self, **more):
        kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LANG", "LC_ALL", "LC_CTYPE")}
        return {**kept, "TERM": "xterm", **more}

    def run_program(self, *words, **options):
        return subprocess.run(self.command(*words), capture_output=True, text=True, timeout=TIMEOUT_S, cwd=self.folder,
                              env=self.environment(**options.pop("env", {})), stdin=subprocess.DEVNULL, **options)

    def succeed(self, *words, **options):
        done = self.run_program(*words, **options)
        self.assertEqual(done.returncode, 0, f"{words}\n{done.stdout}{done.stderr}")
        return done

    def refuse(self, code, *words, says=(), **options):
        """The command fails with this code, one message, nothing on standard output."""
        done = self.run_program(*words, **options)
        self.assertEqual(done.returncode, code, f"{words}\n{done.stdout}{done.stderr}")
        self.assertEqual(done.stdout, "")
        errors = [line for line in done.stderr.splitlines() if line.startswith("evenkeel: error: ")]
        self.assertEqual(len(errors), 1, done.stderr)
        self.assertNotIn("internal error", done.stderr)
        for text in (says,) if isinstance(says, str) else says:
            self.assertIn(text, errors[0])
        return done

    def json_of(self, *words, **options):
        done = self.succeed(*words, "--json", **options)
        self.assertEqual(done.stdout.count("\n"), 1, done.stdout)
        result = json.loads(done.stdout)
        self.assertEqual(result["schema_version"], 1)
        return result

    def train_words(self, out, *more, epochs=2, data=None):
        return ["train", "--data", data or self.data, "--model", self.toml, "--epochs", epochs, "--batch-size", 16, "--out", out,
                *more]

    def trained(self):
        """A model of the pictures, trained once for all tests."""
        if type(self).model is None:
            out = self.shared / "trained"
            self.succeed(*self.train_words(out, epochs=5))
            type(self).model = out / "model.safetensors"
        return type(self).model

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
        self.assertEqual(self.json_of("eval", out, "--data", self.table, "--label", -1)["examples"], 18)

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
    def on_terminal(self, *words, **env):
        """What a terminal of 80 columns gets on standard error."""
        leader, follower = pty.openpty()
        process = subprocess.Popen(self.command(*words), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=follower,
                                   cwd=self.folder, env=self.environment(COLUMNS="80", **env))
        os.close(follower)
        text = b""
        while select.select([leader], [], [], TIMEOUT_S)[0]:
            try:
                piece = os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
            text += piece
        os.close(leader)
        self.assertEqual(process.wait(), 0, text)
        return text.decode()

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

    # --- runs that stop and go on ---
    def long_words(self, out, *more):
        """A run of 240 steps, with all that is random, and checkpoints as often as can be."""
        return self.train_words(out, "--augment", "crop1,flip", "--checkpoint-every", "0.01", *more, epochs=40)

    def start(self, words):
        return subprocess.Popen(self.command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.folder,
                                env=self.environment())

    def wait_for_steps(self, process, out, steps):
        """Until the log has so many steps; false when the run ended before."""
        log = pathlib.Path(out) / "log.jsonl"
        end = time.monotonic() + TIMEOUT_S
        while time.monotonic() < end and process.poll() is None:
            if log.exists() and log.read_bytes().count(b"\n") > steps:
                return True
            time.sleep(0.002)
        return False

    def uninterrupted(self):
        if not hasattr(CommandLine, "whole"):
            out = self.shared / "whole"
            self.succeed(*self.long_words(out, "--threads", 1))
            CommandLine.whole = safetensors(out / "model.safetensors")
        return CommandLine.whole

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
            done = subprocess.run(["sh", "-c", advice.replace("evenkeel", f"'{PROGRAM}'", 1)], cwd=self.folder,
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

    # --- bad input ---
    def test_damaged_idx_files_are_refused(self):
        good, name = self.folder / "good", "train-images-idx3-ubyte"
        write_idx(good)
        whole = (good / name).read_bytes()
        for what, bytes_, says in (
            ("cut", whole[:-7], name), ("cut in the header", whole[:10], name), ("empty", b"", name),
            ("another magic", b"\0\0\x42\3" + whole[4:], name), ("lying", whole[:4] + b"\x7f\xff\xff\xff" + whole[8:], name),
            ("too long", whole + b"x", name), ("cut gzip", gzip.compress(whole)[:-20], name),
        ):
            with self.subTest(what):
                (good / name).write_bytes(bytes_)
                self.refuse(3, "train", "--data", good, "--dry-run", says=says)
        (good / name).write_bytes(gzip.compress(whole))
        self.succeed("data", "info", good)
        (good / name).unlink()
        self.refuse(2, "train", "--data", good, "--dry-run", says="train-images")

    def test_labels_out_of_range_are_refused(self):
        good = write_idx(self.folder / "good")
        (good / "t10k-labels-idx1-ubyte").write_bytes(idx_labels([0] * 47 + [200]))
        done = self.run_program(*self.train_words("run", data=good))
        self.assertIn(done.returncode, (2, 3), done.stderr)
        self.assertIn("label", done.stderr)
        self.assertFalse((self.folder / "run").exists())

    def test_damaged_cifar_files_are_refused(self):
        folder = self.folder / "cifar"
        folder.mkdir()
        record = bytes([3]) + bytes(3072)
        for i in range(1, 6):
            (folder / f"data_batch_{i}.bin").write_bytes(record * 3)
        (folder / "test_batch.bin").write_bytes(record * 2)
        self.succeed("data", "info", folder)
        (folder / "data_batch_2.bin").write_bytes(record * 3 + record[:100])
        self.refuse(3, "data", "info", folder, says="data_batch_2.bin")
        (folder / "data_batch_2.bin").write_bytes(record * 2 + bytes([10]) + record[1:])
        self.refuse(3, "data", "info", folder, says=("data_batch_2.bin", "10"))

    def test_damaged_npy_files_are_refused(self):
        x = npy((20, 2), "<f4", struct.pack("<40f", *range(40)))
        labels = npy((20,), "<i8", struct.pack("<20q", *(i % 2 for i in range(20))))
        files = {"x.npy": x, "y.npy": labels}
        for name, bytes_ in files.items():
            (self.folder / name).write_bytes(bytes_)
        self.succeed("data", "info", "x.npy,y.npy")
        for what, name, bytes_, code in (
            ("cut", "x.npy", x[:-3], 3), ("magic", "x.npy", b"NUMPY" + x[5:], 3), ("empty", "x.npy", b"", 3),
            ("lying", "x.npy", x.replace(b"(20, 2)", b"(99, 2)"), 3), ("object", "x.npy", x.replace(b"<f4", b"|O8"), 3),
            ("negative label", "y.npy", npy((20,), "<i8", struct.pack("<20q", -7, *[0] * 19)), 3),
        ):
            with self.subTest(what):
                (self.folder / name).write_bytes(bytes_)
                self.refuse(code, "data", "info", "x.npy,y.npy", says=name)
                (self.folder / name).write_bytes(files[name])
        self.refuse(2, "data", "info", "x.npy,z.npy", says="z.npy")

    def test_bad_tables_are_refused_with_line_and_column(self):
        for what, text, says in (
            ("ragged", "a,b,k\n1,2,x\n3,x\n", "3"), ("text", "a,b,k\n1,2,x\n3,oops,y\n", ("3", "oops")),
            ("missing", "a,b,k\n1,2,x\n3,,y\n", "3"), ("quote", 'a,b,k\n1,"2,x\n', "quote"),
        ):
            with self.subTest(what):
                (self.folder / "t.csv").write_text(text)
                self.refuse(3, "data", "info", "t.csv", "--label", "k", says=says)
        (self.folder / "t.csv").write_text("a,b,k\n1,2,x\n3,4,y\n")
        self.refuse(2, "data", "info", "t.csv", "--label", "kk", says="kk")

    def test_bad_toml_is_refused_with_line_and_suggestion(self):
        bad = self.folder / "bad.toml"
        for what, text, says in (("key", TINY.replace("padding", "paddding"), ("padding", "line")),
                                 ("type", TINY.replace('"conv"', '"cnov"'), "conv"),
                                 ("syntax", TINY + "\nout = = 3\n", "line"),
                                 ("shape", TINY.replace("kernel = 3\npadding = 1", "kernel = 30"), "conv"),
                                 ("range", TINY.replace("out = 4", "out = -4"), "out")):
            with self.subTest(what):
                bad.write_text(text)
                self.refuse(2, "train", "--data", self.data, "--model", bad, "--dry-run", says=says)
        self.refuse(2, "train", "--data", self.data, "--model", "gone.toml", "--dry-run", says="gone.toml")

    def test_damaged_model_files_are_refused(self):
        whole = self.trained().read_bytes()
        header = struct.unpack("<Q", whole[:8])[0]
        bad = self.folder / "bad.safetensors"
        cuts = [0, 1, 7, 8, 9, 8 + header // 2, 7 + header, 8 + header, 9 + header, (len(whole) + header) // 2, len(whole) - 1]
        for cut in cuts:
            with self.subTest(cut=cut):
                bad.write_bytes(whole[:cut])
                self.refuse(3, "eval", bad, "--data", self.data, says=str(bad))
        for what, bytes_ in (
            ("length", struct.pack("<Q", 2**63) + whole[8:]), ("length short", struct.pack("<Q", header - 1) + whole[8:]),
            ("offsets", whole.replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1)), ("extra", whole + b"\0"),
            ("version", whole.replace(b'format_version":"1"', b'format_version":"9"', 1)),
            ("name", whole.replace(b".running_var", b".running_vax", 1)), ("text", b"hello"),
        ):
            with self.subTest(what):
                self.assertNotEqual(bytes_, whole, "the file was changed")
                bad.write_bytes(bytes_)
                self.refuse(3, "eval", bad, "--data", self.data, says=str(bad))
        self.refuse(2, "eval", "gone.safetensors", says="gone.safetensors")
        self.refuse(2, "eval", self.folder, says="no model.safetensors")

    def test_data_that_do_not_fit_the_model_are_refused(self):
        self.refuse(2, "eval", self.trained(), "--data", self.table)
        (self.folder / "wide.png").write_bytes(png(9, 8, bytes(72)))
        self.refuse(2, "predict", self.trained(), "wide.png", says=("wide.png", "9"))
        (self.folder / "bad.png").write_bytes(png(8, 8, bytes(64))[:-30])
        self.refuse(3, "predict", self.trained(), "bad.png", says="bad.png")
        self.refuse(2, "predict", self.trained(), "gone.png", says="gone.png")

    def test_one_value_per_channel_is_refused_before_the_first_step_and_a_last_one_is_merged(self):
        words = ["train", "--data", self.data, "--model", "mlp", "--epochs", 1, "--out", "run"]
        self.refuse(2, *words, "--batch-size", 1, says="one value per channel")
        self.assertFalse((self.folder / "run").exists())
        result = self.json_of(*words, "--batch-size", 19)  # 96 = 5 * 19 + 1
        self.assertEqual(result["steps"], 5)

    def test_a_run_that_diverges_stops_with_code_6_and_keeps_the_last_good_checkpoint(self):
        out = self.folder / "run"
        words = ["train", "--data", self.data, "--model", "mlp", "--norm", "none", "--optimizer", "sgd", "--schedule", "constant",
                 "--learning-rate", "1e30", "--epochs", 3, "--batch-size", 16, "--out", out]
        done = self.refuse(6, *words, says=("step", "not finite", "learning-rate"))
        self.assertTrue(list(out.glob("checkpoint-*.safetensors")))
        self.assertFalse((out / "model.safetensors").exists())
        for path in out.glob("checkpoint-*.safetensors"):
            for name, (dtype, _, payload) in safetensors(path)[0].items():
                if dtype == "F32":
                    values = struct.unpack(f"<{len(payload) // 4}f", payload)
                    self.assertTrue(all(abs(v) < float("inf") for v in values), name)
        done = self.run_program(*words[:-1], self.folder / "json", "--json")
        self.assertEqual((done.returncode, json.loads(done.stdout)["status"]), (6, "not finite"))

    def test_an_unwritable_folder_is_found_before_the_first_step(self):
        (self.folder / "file").write_text("")
        started = time.monotonic()
        self.refuse(4, *self.train_words(self.folder / "file" / "run", epochs=1000), says="file/run")
        self.refuse(2, *self.train_words(self.folder / "file", epochs=1000), says="file")
        self.assertLess(time.monotonic() - started, 30)

    def test_a_full_disk_leaves_no_half_written_model(self):
        def limit():  # files of at most 20 kB: as on a disk that is full
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

        out = self.folder / "run"
        words = ["train", "--data", self.data, "--model", "mlp", "--epochs", 1, "--batch-size", 32, "--out", out]
        self.refuse(4, *words, preexec_fn=limit, restore_signals=False)
        self.assertFalse(list(out.glob("*.safetensors")))
        self.succeed(*words, "--resume")

    def test_out_of_memory_is_a_message(self):
        def limit():
            resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))

        if "asan" in PROGRAM or "tsan" in PROGRAM:
            self.skipTest("sanitizers need the address space")
        wide = self.folder / "wide.toml"  # 4 GiB of weights
        wide.write_text('[[layer]]\ntype = "flatten"\n[[layer]]\ntype = "linear"\nout = 16777216\n[[layer]]\ntype = "linear"\n')
        self.refuse(4, "train", "--data", self.data, "--model", wide, "--out", "run", preexec_fn=limit, says="memory")

    def test_a_limit_on_the_size_of_files_is_an_error_with_a_message(self):
        def limit():  # Python ignores SIGXFSZ; a shell does not
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

        words = ["train", "--data", self.data, "--model", "mlp", "--max-steps", 2, "--batch-size", 32, "--out", "run"]
        self.refuse(4, *words, preexec_fn=limit, says="run")

    def test_options_without_effect_are_warned_about_in_one_line(self):
        words = self.train_words("run", "--dry-run", "--momentum", "0.5", "--zero-gamma")
        lines = [line for line in self.succeed(*words).stderr.splitlines() if "no effect" in line]
        self.assertEqual(len(lines), 2, lines)
        self.assertIn("--momentum has no effect: --optimizer is adamw", lines[0])
        self.assertIn("no residual blocks", lines[1])
        self.assertNotIn("no effect", self.succeed(*words, "--quiet").stderr)

    def test_statistics_of_a_network_without_a_norm_are_warned_about(self):
        self.succeed(*self.train_words("plain", "--norm", "none", epochs=1))
        self.assertIn("--statistics has no effect", self.succeed("eval", "plain", "--statistics", "batch").stderr)
        self.assertNotIn("no effect", self.succeed("eval", "plain").stderr)
        self.assertNotIn("no effect", self.succeed("eval", self.trained(), "--statistics", "batch").stderr)

    def test_a_terminal_of_80_columns_shows_the_time_left(self):
        text = self.on_terminal(*self.train_words("run"))
        self.assertRegex(text, r"epoch 1/2 [=.]+.*  loss [\d.]+  accuracy [\d.]+ %  \d+ images/s  \d+ s left")

    # --- data that do not mean what the model was trained on ---
    def floats_of(self, name, images, divisor, shape=None):
        values = [byte / divisor for image in images for byte in image]
        (self.folder / name).write_bytes(npy(shape or (len(images), SIDE, SIDE), "<f4", struct.pack(f"<{len(values)}f", *values)))
        return name

    def trained_on_floats(self, divisor):
        """A model of the pictures as floats: bytes / divisor."""
        images, labels = pictures(96, 1)
        x = self.floats_of(f"train{divisor}.npy", images, divisor)
        (self.folder / "labels.npy").write_bytes(npy((96,), "<i8", struct.pack("<96q", *labels)))
        self.succeed(*self.train_words(f"by{divisor}", data=f"{x},labels.npy", epochs=5))
        return f"by{divisor}"

    def classes_of(self, model, *files):
        return [int(p["class"]) for p in self.json_of("predict", model, *files)["predictions"]]

    def test_pixels_on_another_scale_are_scaled_or_refused_but_never_guessed(self):
        images, labels = pictures(6, 9)
        (self.folder / "bytes.npy").write_bytes(npy((6, SIDE, SIDE), "|u1", b"".join(images)))
        (self.folder / "wide.npy").write_bytes(npy((6, SIDE, SIDE), "<i8", struct.pack("<384q", *b"".join(images))))
        (self.folder / "0.png").write_bytes(png(SIDE, SIDE, images[0]))
        (self.folder / "unit.csv").write_text("\n".join(",".join(str(v / 255) for v in image) for image in images) + "\n")
        self.floats_of("0to255.npy", images, 1)
        self.floats_of("0to1.npy", images, 255)
        for name in ("bytes.npy", "wide.npy", "0to1.npy", "unit.csv"):
            self.assertEqual(self.classes_of(self.trained(), name), labels, name)
        self.assertEqual(self.json_of("predict", self.trained(), "wide.npy")["predictions"][0]["probability"],
                         self.json_of("predict", self.trained(), "bytes.npy")["predictions"][0]["probability"])
        self.refuse(2, "predict", self.trained(), "0to255.npy", says=("0to255.npy", "trained on", "divide them by 255"))
        model = self.trained_on_floats(1)
        for name in ("bytes.npy", "wide.npy", "0to255.npy"):
            self.assertEqual(self.classes_of(model, name), labels, name)
        self.assertEqual(self.classes_of(model, "0.png", "0to255.npy"), labels[:1] + labels)
        self.assertGreater(self.json_of("eval", model, "--data", self.data)["accuracy"], 0.9)  # IDX: bytes
        self.refuse(2, "predict", model, "0to1.npy", says=("0to1.npy", "trained on", "multiply them by 255"))
        images, labels = pictures(20, 5)
        (self.folder / "y.npy").write_bytes(npy((20,), "<i8", struct.pack("<20q", *labels)))
        self.refuse(2, "eval", self.trained(), "--data", self.floats_of("x255.npy", images, 1) + ",y.npy", says="divide them by 255")
        self.refuse(2, "eval", model, "--data", self.floats_of("x1.npy", images, 255) + ",y.npy", says="multiply them by 255")

    def test_columns_of_a_table_are_taken_by_name(self):
        rows = list(csv.reader(self.table.read_text().splitlines()))
        self.succeed("train", "--data", self.table, "--model", "mlp", "--epochs", 8, "--batch-size", 12, "--out", "run")
        accuracy = self.json_of("eval", "run")["accuracy"]
        self.assertGreater(accuracy, 0.9)

        def write(name, order, header=True):
            lines = [",".join(row[i] for i in order) for row in rows]
            (self.folder / name).write_text("\n".join(lines if header else lines[1:]) + "\n")
            return name

        self.assertEqual(self.json_of("eval", "run", "--data", write("turned.csv", (2, 1, 0)))["accuracy"], accuracy)
        self.assertEqual(self.json_of("eval", "run", "--data", write("turned.csv", (1, 0, 2)))["accuracy"], accuracy)
        classes = [p["class"] for p in self.json_of("predict", "run", write("q.csv", (0, 1)))["predictions"]]
        for name in (write("p.csv", (1, 0)), write("plain.csv", (0, 1), header=False)):
            self.assertEqual([p["class"] for p in self.json_of("predict", "run", name)["predictions"]], classes, name)
        self.refuse(2, "predict", "run", self.table, says=("'kind'", "leave the label"))
        self.refuse(2, "predict", "run", write("label.csv", (2, 0, 1)), says=("'kind'", "leave the label"))
        self.refuse(3, "predict", "run", write("label.csv", (2, 0, 1), header=False), says="leave it out")
        (self.folder / "other.csv").write_text("width,weight\n1,2\n")
        self.refuse(2, "predict", "run", "other.csv", says=("has no 'height'", "'weight'"))
        (self.folder / "other.csv").write_text("width,weight,kind\n1,2,a\n3,4,b\n")
        self.refuse(2, "eval", "run", "--data", "other.csv", says=("has no 'height'", "'weight'"))
        self.refuse(2, "data", "info", self.table, "--label", "99", says="has no column '99'; columns are named")

    def test_channels_last_is_refused(self):
        (self.folder / "y.npy").write_bytes(npy((20,), "|u1", bytes(i % 2 for i in range(20))))
        for channels in (1, 3, 4):
            (self.folder / "x.npy").write_bytes(npy((20, 14, 12, channels), "|u1", bytes(20 * 168 * channels)))
            self.refuse(2, "data", "info", "x.npy,y.npy", says=("channels last", "x.transpose(0, 3, 1, 2)"))
        for shape in ((20, 3, 3, 3), (20, 16, 1, 1), (20, 1, 9, 8), (20, 3, 9, 4), (20, 8, 8, 4), (20, 32, 64, 1)):
            (self.folder / "x.npy").write_bytes(npy(shape, "|u1", bytes(shape[0] * shape[1] * shape[2] * shape[3])))
            self.succeed("data", "info", "x.npy,y.npy")
        (self.folder / "one.npy").write_bytes(npy((SIDE, SIDE, 1), "|u1", bytes(64)))
        self.refuse(2, "predict", self.trained(), "one.npy", says="channels last")

    def test_wild_labels_and_a_single_class_are_refused(self):
        good = write_idx(self.folder / "good")
        (good / "train-labels-idx1-ubyte").write_bytes(idx_labels([i % 3 for i in range(95)] + [200]))
        self.refuse(3, "train", "--data", good, "--out", "run", says=("label 200 at index 95", "201 classes", "only 4"))
        (self.folder / "x.npy").write_bytes(npy((20, 2), "|u1", bytes(range(40))))
        for labels, code in (([i % 3 for i in range(19)] + [60000], 3), ([7] * 20, 2), ([0] * 20, 2), ([1 + i % 3 for i in range(20)], 0)):
            (self.folder / "y.npy").write_bytes(npy((20,), "<i8", struct.pack("<20q", *labels)))
            done = self.run_program("train", "--data", "x.npy,y.npy", "--model", "mlp", "--dry-run")
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertIn({0: "", 2: "one class only", 3: "label 60000 at index 19"}[code], done.stderr)
        self.assertEqual(self.json_of("data", "info", "x.npy,y.npy")["train"]["per_class"][0], 0)

    def test_a_checkpoint_in_place_of_a_model_is_named(self):
        checkpoint = sorted(self.trained().parent.glob("checkpoint-*.safetensors"))[-1]
        self.refuse(3, "eval", checkpoint, "--data", self.data, says=("is a checkpoint", "model.safetensors"))

    def test_fashion_mnist_is_known_by_all_its_spellings(self):
        for name in ("FashionMNIST", "fashion_mnist", "Fashion-MNIST"):
            done = self.run_program("data", "info", name, "--json")
            if done.returncode == 0:
                self.assertEqual(json.loads(done.stdout)["name" if "name" in done.stdout else "data"], "fashion-mnist")
            else:
                self.assertIn("fashion-mnist is not installed", done.stderr)


def own_tests(case):
    """For load_tests of a file whose class borrows the tools of CommandLine: its own tests without those of CommandLine."""
    names = [name for name in unittest.defaultTestLoader.getTestCaseNames(case) if name in vars(case)]
    return unittest.TestSuite(case(name) for name in names)


def main():
    """Runs the tests of the file that was started, with its first word as the program where that is a path."""
    global PROGRAM
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-") and os.path.sep in sys.argv[1]:
        PROGRAM = sys.argv.pop(1)
    PROGRAM = os.path.abspath(PROGRAM)
    if not os.path.exists(PROGRAM):
        print(f"{pathlib.Path(sys.argv[0]).stem}: there is no program {PROGRAM}", file=sys.stderr)
        sys.exit(2)
    unittest.main(verbosity=2)


if __name__ == "__main__":
    main()
