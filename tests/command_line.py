"""What the tests of the command line share: small data, the program run in a folder of its own, its --json read.

Needs nothing but Python: all data are made here. Every test has a folder of its own, which goes away at the end.
"""
import json
import os
import pathlib
import pty
import select
import shutil
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
    """How tests run the program, and what they give it. Data and a trained model are made once for each class of tests."""

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
        """A model of the pictures, trained once for all tests of the class."""
        if type(self).model is None:
            out = self.shared / "trained"
            self.succeed(*self.train_words(out, epochs=5))
            type(self).model = out / "model.safetensors"
        return type(self).model

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


def take_program():
    """Takes the first word as the program where that is a path. Ends this one where there is no such program."""
    global PROGRAM
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-") and os.path.sep in sys.argv[1]:
        PROGRAM = sys.argv.pop(1)
    PROGRAM = os.path.abspath(PROGRAM)
    if not os.path.exists(PROGRAM):
        print(f"{pathlib.Path(sys.argv[0]).stem}: there is no program {PROGRAM}", file=sys.stderr)
        sys.exit(2)


def main():
    """Runs the tests of the file that was started, on the program that its first word names."""
    take_program()
    unittest.main(verbosity=2)
