#!/usr/bin/env python3
"""Bad input, a bad place to write to, and data that do not mean what a model was trained on: messages, exit codes, nothing lost.

  tests/cli_refusals_test.py [PROGRAM] [TEST...]      PROGRAM: build/release/evenkeel, or what EVENKEEL_PROGRAM or EVENKEEL says
"""
import csv
import gzip
import json
import pathlib
import resource
import signal
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import command_line  # noqa: E402
from command_line import SIDE, TINY, CommandLine, idx_labels, npy, pictures, png, safetensors, write_idx  # noqa: E402


class Refusals(CommandLine):
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
        self.assertNotIn("epoch", self.refuse(4, *self.train_words(self.folder / "file" / "run"), says="file/run").stderr)
        self.assertNotIn("epoch", self.refuse(2, *self.train_words(self.folder / "file"), says="file").stderr)

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

        if "asan" in command_line.PROGRAM or "tsan" in command_line.PROGRAM:
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


if __name__ == "__main__":
    command_line.main()
