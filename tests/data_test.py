#!/usr/bin/env python3
"""Pictures, arrays and folders of them, and stated preprocessing, as a user meets them; and files that lie.

  tests/data_test.py [PROGRAM] [TEST...]      PROGRAM: build/release/evenkeel, or what EVENKEEL_PROGRAM or EVENKEEL says
"""
import json
import os
import pathlib
import resource
import struct
import sys
import zipfile
import zlib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import command_line  # noqa: E402
from command_line import ROOT, SIDE, CommandLine, npy, pictures, png, safetensors  # noqa: E402

SHARED = pathlib.Path(os.environ.get("EVENKEEL_TEST_DATA", ROOT / "../shared/data")).resolve()
NAMES = ("low", "middle", "top")


def write_npz(path, compress=True, **arrays):
    """As numpy writes it: headers in zip64 form in front of the members."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as file:
        for name, content in arrays.items():
            with file.open(name + ".npy", "w", force_zip64=True) as member:
                member.write(content)
    return path


def write_folders(folder, images, labels, side=SIDE):
    for i, (image, label) in enumerate(zip(images, labels)):
        place = folder / NAMES[label]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:03}.png").write_bytes(png(side, side, image))
    return folder


def doubled(image):
    """Every pixel four times: bilinear at half-pixel centres, without antialiasing, gives the picture back from it."""
    rows = [image[y * SIDE:(y + 1) * SIDE] for y in range(SIDE)]
    return b"".join(bytes(p for p in row for _ in range(2)) * 2 for row in rows)


class Data(CommandLine):
    def predicted(self, *words):
        return [(row["class_index"], row["probability"]) for row in self.json_of("predict", self.trained(), *words)["predictions"]]

    def accuracy(self, *words):
        return self.json_of("eval", self.trained(), *words)["accuracy"]

    # --- what is read ---
    def test_a_folder_of_pictures_is_a_data_set(self):
        images, labels = pictures(30, 5)
        folder = write_folders(self.folder / "set", images, labels)
        info = self.json_of("data", "info", folder)
        self.assertEqual(info["classes"], list(NAMES))
        self.assertEqual((info["train"]["examples"], info["test"]["examples"]), (24, 6))
        self.assertEqual(info["example_shape"], [1, SIDE, SIDE])
        self.succeed(*self.train_words("run", data=folder, epochs=8))
        self.assertGreater(self.json_of("eval", "run", "--split", "train")["accuracy"], 0.6)
        # train and test below, and JPEG beside PNG
        both = self.folder / "both"
        write_folders(both / "train", images, labels)
        write_folders(both / "test", *pictures(9, 6))
        info = self.json_of("data", "info", both)
        self.assertEqual((info["train"]["examples"], info["test"]["examples"]), (30, 9))

    def test_npz_files_are_data_sets_and_files_to_predict(self):
        images, labels = pictures(48, 2)  # those of the test set
        x, y = npy((48, SIDE, SIDE), "|u1", b"".join(images)), npy((48,), "|u1", bytes(labels))
        for compress in (False, True):
            path = write_npz(self.folder / "set.npz", compress, x_train=x, y_train=y, x_test=x, y_test=y)
            self.assertEqual(self.accuracy("--data", path), self.accuracy())
        (self.folder / "x.npy").write_bytes(x)
        write_npz(self.folder / "x.npz", x=x)
        self.assertEqual(self.predicted("x.npz"), self.predicted("x.npy"))

    def test_predict_takes_folders_and_names_of_classes(self):
        images, labels = pictures(6, 2)
        folder = self.folder / "loose"
        folder.mkdir()
        for i, image in enumerate(images):
            (folder / f"{i}.png").write_bytes(png(SIDE, SIDE, image))
        (folder / "notes.txt").write_text("no picture")
        (self.folder / "names.txt").write_text("\n".join(NAMES) + "\n")
        words = ("predict", self.trained(), folder, "--labels", "names.txt", "--top", 2)
        result = self.json_of(*words, "--batch-size", 4)
        self.assertEqual([row["name"] for row in result["predictions"]], [str(folder / f"{i}.png") for i in range(6)])
        for row, label in zip(result["predictions"], labels):
            self.assertEqual(row["class"], NAMES[row["class_index"]])
            self.assertEqual(len(row["top"]), 2)
        (self.folder / "names.txt").write_text("low\nmiddle\n")
        self.refuse(2, *words, says=("found 2 names", "3 outputs"))
        self.refuse(2, "predict", self.trained(), self.folder, says="holds no pictures")

    def test_jpeg_is_read_wherever_png_is(self):
        seeds = ROOT / "fuzz/corpus/jpeg"
        place = self.folder / "set" / "a"
        place.mkdir(parents=True)
        (self.folder / "set" / "b").mkdir()
        for i in range(3):
            (place / f"{i}.jpg").write_bytes((seeds / "colour").read_bytes())
            (self.folder / "set" / "b" / f"{i}.jpeg").write_bytes((seeds / "progressive").read_bytes())
        self.assertEqual(self.json_of("data", "info", "set")["example_shape"], [3, 13, 19])
        grey = (seeds / "grey").read_bytes()  # 8x8
        (self.folder / "grey.jpg").write_bytes(grey)
        self.assertEqual(len(self.predicted("grey.jpg")), 1)
        (self.folder / "cut.jpg").write_bytes(grey[:-20])
        self.refuse(3, "predict", self.trained(), "cut.jpg", says=("cut.jpg", "is the file cut?"))
        (self.folder / "cmyk.jpg").write_bytes((seeds / "cmyk").read_bytes())
        self.refuse(3, "predict", self.trained(), "cmyk.jpg", says="CMYK")

    def test_one_cifar_batch_is_all_of_every_split_of_eval(self):
        for name, records in (("some.bin", 10), ("other.bin", 7)):
            (self.folder / name).write_bytes(b"".join(bytes([i % 10]) + bytes(range(256)) * 12 for i in range(records)))
        info = self.json_of("data", "info", "some.bin")
        self.assertEqual((info["train"]["examples"], info["test"]["examples"]), (8, 2))
        self.succeed("train", "--data", "some.bin", "--model", "mlp", "--max-steps", 1, "--batch-size", 4, "--out", "run")
        self.assertEqual(self.json_of("eval", "run")["examples"], 2)  # as it was split in training
        for split in ("train", "test"):
            self.assertEqual(self.json_of("eval", "run", "--data", "other.bin", "--split", split)["examples"], 7)
        self.assertIn("the file", self.succeed("recalibrate", "run", "--data", "other.bin", "--out", "new.safetensors").stdout)

    def test_data_of_others_without_a_test_set_are_taken_whole(self):
        images, labels = pictures(30, 5)
        x, y = npy((30, SIDE, SIDE), "|u1", b"".join(images)), npy((30,), "|u1", bytes(labels))
        (self.folder / "x.npy").write_bytes(x)
        (self.folder / "y.npy").write_bytes(y)
        write_npz(self.folder / "pair.npz", x=x, y=y)
        write_folders(self.folder / "pictures", images, labels)
        for data in ("x.npy,y.npy", "pair.npz", "pictures"):
            for split in ("train", "test"):
                self.assertEqual(self.json_of("eval", self.trained(), "--data", data, "--split", split)["examples"], 30, data)
            done = self.succeed("recalibrate", self.trained(), "--data", data, "--out", "new.safetensors")
            self.assertIn("the file", done.stdout)
        self.succeed(*self.train_words("own", data="x.npy,y.npy", epochs=1))
        self.assertEqual(self.json_of("eval", "own")["examples"], 6)
        self.assertEqual(self.json_of("eval", "own", "--data", "./x.npy,./y.npy")["examples"], 6)  # the same files

    def test_text_that_is_not_utf8_is_refused_before_a_run_folder(self):
        table = self.folder / os.fsdecode(b"caf\xe9.csv")
        table.write_bytes(b"a,kind\n" + b"".join(b"%d,%s\n" % (i % 5, (b"\xe9", b"\xe8")[i % 2]) for i in range(20)))
        plain = self.folder / "plain.csv"
        plain.write_bytes(table.read_bytes())
        run = self.folder / "run"
        self.refuse(3, "train", "--data", plain, "--model", "mlp", "--out", run, says=r"line 2, column 2: found '\xe9', which is not UTF-8; save")
        self.refuse(2, "train", "--data", table, "--model", "mlp", "--out", run, says=r"caf\xe9.csv', which is not UTF-8, and the model keeps it")
        plain.write_text("a,kind\n" + "1,x\n2,y\n" * 9)
        self.refuse(2, "train", "--data", plain, "--label", os.fsdecode(b"k\xefnd"), "--model", "mlp", "--out", run, says=r"--label: found 'k\xefnd'")
        self.assertFalse(run.exists())

    def test_options_of_other_kinds_of_data_are_refused(self):
        images, labels = pictures(30, 5)
        x, y = npy((30, SIDE, SIDE), "|u1", b"".join(images)), npy((30,), "|u1", bytes(labels))
        path = write_npz(self.folder / "set.npz", x=x, y=y)
        (self.folder / "t.csv").write_text("a,kind\n" + "1,x\n2,y\n" * 9)
        write_folders(self.folder / "pictures", images, labels)
        for data in (path, self.data, self.folder / "pictures"):
            self.refuse(2, *self.train_words("run", "--label", "foo", data=data), says="the label column 'foo' is asked for")
        for data in ("t.csv", self.data, "pictures"):
            self.refuse(2, *self.train_words("run", "--layout", "nhwc", data=data), says="--layout is asked for")
            self.refuse(2, "data", "info", data, "--layout", "nhwc", says="--layout is asked for")
        self.succeed(*self.train_words("npz", data=path, epochs=1))
        self.refuse(2, "eval", "npz", "--label", "q", says="the label column 'q' is asked for")

    def test_a_folder_for_validation_is_the_validation_split(self):
        for name, count, seed in (("train", 30, 5), ("val", 9, 6), ("test", 6, 7)):
            write_folders(self.folder / "set" / name, *pictures(count, seed))
        self.assertIn("30 examples to train, 9 to validate, 6 to test", self.succeed("data", "info", "set").stdout)
        self.succeed(*self.train_words("run", data="set", epochs=1))
        self.assertEqual(self.json_of("eval", "run", "--split", "validation")["examples"], 9)
        self.refuse(2, *self.train_words("run2", data="set", epochs=1), "--validation", 0.2, says="leave --validation out")

    def test_data_without_labels_make_the_statistics_of_the_same_data_with_labels(self):
        images, labels = pictures(30, 5)
        x, y = npy((30, 1, SIDE, SIDE), "|u1", b"".join(images)), npy((30,), "|u1", bytes(labels))
        (self.folder / "x.npy").write_bytes(x)
        (self.folder / "y.npy").write_bytes(y)
        write_npz(self.folder / "x.npz", x=x)
        (self.folder / "flat").mkdir()
        for i, image in enumerate(images):
            (self.folder / "flat" / f"{i:03}.png").write_bytes(png(SIDE, SIDE, image))

        def statistics(model, data):
            result = self.json_of("recalibrate", model, "--data", data, "--out", "new.safetensors", "--order", "file")
            values = {name: found for name, found in safetensors(self.folder / "new.safetensors")[0].items() if "running" in name}
            return result, values
        labelled, expected = statistics(self.trained(), "x.npy,y.npy")
        self.assertIsNotNone(labelled["before"])
        for data in ("x.npy", "x.npz", "flat"):
            result, found = statistics(self.trained(), data)
            self.assertEqual(found, expected, data)
            self.assertIsNone(result["before"], data)
        self.assertIn("no labels of a test set", self.succeed("recalibrate", self.trained(), "--data", "flat", "--dry-run").stdout)
        self.assertNotIn("accuracy", self.json_of("inspect", self.trained(), "--data", "x.npy")["data"])
        self.assertEqual(self.json_of("fold", self.trained(), "--dry-run", "--data", "flat", "--verify", 5)["proof"]["inputs"], 5)
        self.refuse(2, "eval", self.trained(), "--data", "x.npy", says="no labels")
        self.refuse(2, "train", "--data", "x.npy", says="no labels")
        table = command_line.write_csv(self.folder / "table.csv")
        rows = [line.split(",") for line in table.read_text().splitlines()]
        for name, columns in (("copy.csv", (0, 1, 2)), ("bare.csv", (1, 0))):
            (self.folder / name).write_text("\n".join(",".join(row[c] for c in columns) for row in rows) + "\n")
        self.succeed(*self.train_words("run", "--model", "mlp", data=table, epochs=1))
        _, expected = statistics("run", "copy.csv")
        result, found = statistics("run", "bare.csv")  # columns by their names
        self.assertEqual(found, expected)
        self.assertIsNone(result["before"])

    def test_what_rounding_takes_from_a_column_is_said(self):
        rows = [f"{1700000000 + i},{i % 3},{'abc'[i % 3]}" for i in range(60)]
        (self.folder / "times.csv").write_text("time,other,kind\n" + "\n".join(rows) + "\n")
        says = "warning: times.csv: column 1 ('time') is rounded"
        self.assertIn(says, self.succeed("data", "info", "times.csv").stderr)
        words = ("--model", "mlp", "--batch-size", 12, "--max-steps", 2, "--out", "run")
        self.assertIn(says, self.succeed("train", "--data", "times.csv", *words).stderr)
        self.assertIn(says, self.succeed("eval", "run").stderr)
        self.assertIn(says.removeprefix("warning: "), self.json_of("data", "info", "times.csv")["warnings"][0])
        (self.folder / "new.csv").write_text("time,other\n1700000007,1\n1700000008,2\n")
        self.assertIn("new.csv: column 1 ('time') is rounded", self.succeed("predict", "run", "new.csv").stderr)

    def test_names_with_line_breaks_stay_in_their_line(self):
        rows = [f"{i},{i % 3},\"{'abc'[i % 3]}\n{i % 3}\"" for i in range(60)]
        (self.folder / "broken.csv").write_text("\n".join(rows) + "\n")
        self.assertIn("\na?0 ", self.succeed("data", "info", "broken.csv").stdout)
        self.succeed("train", "--data", "broken.csv", "--model", "mlp", "--batch-size", 12, "--max-steps", 2, "--out", "run")
        self.assertIn("\na?0 ", self.succeed("eval", "run", "--verbose").stdout)

    def test_a_model_trained_from_another_reads_its_table_as_that_was_read(self):
        table = command_line.write_csv(self.folder / "table.csv")
        rows = [line.split(",") for line in table.read_text().splitlines()]
        turned = self.folder / "turned.csv"
        turned.write_text("\n".join(f"{kind},{height},{width}" for width, height, kind in rows) + "\n")
        words = ("--model", "mlp", "--batch-size", 12, "--max-steps", 2)
        self.succeed("train", "--data", turned, "--label", "kind", *words, "--out", "first")
        self.succeed("train", "--from", "first", "--data", table, *words, "--out", "second")
        self.assertEqual(self.json_of("eval", "second", "--data", table)["examples"], 18)
        self.succeed("train", "--from", "first", "--data", turned, *words, "--out", "third")
        self.assertEqual(self.json_of("eval", "third")["examples"], 18)  # the label stands first there

    # --- stated preprocessing ---
    def test_stated_preprocessing_is_that_of_the_model_file_where_they_agree(self):
        metadata = safetensors(self.trained())[1]
        stated = json.loads(metadata["standardization"])
        mean, std = stated["mean"][0], stated["std"][0]
        plain = self.json_of("eval", self.trained())
        for words in (("--mean", repr(mean), "--std", repr(std)),
                      ("--scale", 1, "--mean", repr(mean * 255), "--std", repr(std * 255))):
            found = self.json_of("eval", self.trained(), *words)
            self.assertEqual(found["accuracy"], plain["accuracy"])
            self.assertAlmostEqual(found["loss"], plain["loss"], 5)
        done = self.succeed("eval", self.trained(), "--mean", "0.9", "--std", "0.1")
        self.assertIn("standardized as stated (mean 0.9, std 0.1), not as the model file says", done.stderr)
        done = self.succeed("eval", self.trained(), "--mean", "127")
        self.assertIn("--scale 1", done.stderr)
        self.refuse(2, "eval", self.trained(), "--mean", "0.1,0.2,0.3", says=("--mean", "found 3 numbers"))
        self.refuse(2, "eval", self.trained(), "--std", "0", says="above 0")
        self.refuse(2, "eval", self.trained(), "--resize", "8by8", says="--resize")

    def test_floats_are_taken_as_they_are_unless_a_scale_is_stated(self):
        images, labels = pictures(48, 2)
        flat = b"".join(images)
        y = npy((48,), "|u1", bytes(labels))
        whole = npy((48, 1, SIDE, SIDE), "<f4", struct.pack(f"<{len(flat)}f", *flat))
        for name, x in (("bytes", npy((48, 1, SIDE, SIDE), "|u1", flat)), ("floats", whole)):
            write_npz(self.folder / f"{name}.npz", x_train=x, y_train=y, x_test=x, y_test=y)
        words = ("--mean", "0.4", "--std", "0.25")
        bytes_ = self.json_of("eval", self.trained(), "--data", "bytes.npz", *words)
        floats = self.json_of("eval", self.trained(), "--data", "floats.npz", "--scale", 255, *words)
        self.assertAlmostEqual(bytes_["loss"], floats["loss"], 5)
        self.refuse(2, "eval", self.trained(), "--data", "floats.npz", says="divide them by 255")

    def test_pictures_are_resized_where_that_is_stated(self):
        images, labels = pictures(30, 2)
        small = write_folders(self.folder / "small" / "train", images, labels).parent
        large = write_folders(self.folder / "large" / "train", [doubled(i) for i in images], labels, 2 * SIDE).parent
        for folder in (small, large):
            os.symlink(folder / "train", folder / "test")
        names = self.folder / "names.txt"
        names.write_text("\n".join(NAMES) + "\n")
        expected = self.accuracy("--data", small)
        self.assertEqual(self.accuracy("--data", large, "--resize", f"{SIDE}x{SIDE}"), expected)
        self.refuse(2, "eval", self.trained(), "--data", large)
        first = sorted((large / "train" / "low").iterdir())[0]
        same = small / "train" / "low" / first.name
        self.assertEqual(self.predicted(first, "--resize", SIDE), self.predicted(same))
        self.refuse(2, "predict", self.trained(), first, says=f"--resize {SIDE}x{SIDE}")
        (small / "train" / "low" / "odd.png").write_bytes(png(5, 4, bytes(20)))
        self.refuse(2, "data", "info", small, says=("odd.png", "5 wide and 4 high", "--resize"))

    def test_a_model_trained_on_resized_pictures_resizes_them(self):
        large = write_folders(self.folder / "large", [doubled(i) for i in pictures(30, 2)[0]], pictures(30, 2)[1], 2 * SIDE)
        self.succeed(*self.train_words("run", "--resize", SIDE, data=large))
        here = self.json_of("eval", "run")
        self.assertEqual(here["accuracy"], self.json_of("eval", "run", "--resize", SIDE, "--data", large)["accuracy"])
        self.json_of("predict", "run", large / "low" / "000.png")
        self.refuse(2, "predict", "run", large / "low" / "000.png", "--resize", 4, says="--resize 4x4 makes no examples")

    def test_channels_last_are_taken_where_that_is_stated(self):
        images, _ = pictures(4, 2)
        (self.folder / "first.npy").write_bytes(npy((4, 1, SIDE, SIDE), "|u1", b"".join(images)))
        (self.folder / "last.npy").write_bytes(npy((4, SIDE, SIDE, 1), "|u1", b"".join(images)))
        self.assertEqual(self.predicted("last.npy", "--layout", "nhwc"), self.predicted("first.npy"))
        self.refuse(2, "predict", self.trained(), "last.npy", says="--layout nhwc")

    # --- recalibrate ---
    def test_recalibrate_takes_the_first_examples_in_the_order_of_the_file(self):
        def recalibrated(*words):
            self.json_of("recalibrate", self.trained(), "--running-statistics", "mean_of_batches", "--batch-size", 16, "--out",
                         "new.safetensors", *words)
            return {k: v for k, v in safetensors(self.folder / "new.safetensors")[0].items() if "running" in k}

        first = recalibrated("--order", "file", "--examples", 32, "--seed", 1)
        self.assertEqual(first, recalibrated("--order", "file", "--examples", 32, "--seed", 2))
        self.assertNotEqual(first, recalibrated("--examples", 32))
        images, labels = pictures(96, 1)  # those of the training set
        x, y = npy((32, SIDE, SIDE), "|u1", b"".join(images[:32])), npy((32,), "|u1", bytes(labels[:32]))
        write_npz(self.folder / "first.npz", x_train=x, y_train=y, x_test=x, y_test=y)
        self.assertEqual(first, recalibrated("--data", "first.npz", "--order", "file"))

    def test_recalibrate_writes_the_preprocessing_that_its_statistics_are_for(self):
        stated = ("--mean", "0.3", "--std", "0.2")
        self.json_of("recalibrate", self.trained(), "--out", "new.safetensors", *stated)
        with_it = self.json_of("eval", "new.safetensors")
        self.assertEqual(with_it["loss"], self.json_of("eval", "new.safetensors", *stated)["loss"])

    # --- the figures of a trained ResNet-20 (shared/data/README.md) ---
    def test_a_corrupted_test_set_and_new_statistics_have_the_known_accuracy(self):
        weights, cifar = SHARED / "models/resnet20_cifar10.safetensors", SHARED / "cifar10"
        for path in (weights, cifar / "test_2000.bin.gz", cifar / "train_4000.bin.gz"):
            if not path.exists():
                self.skipTest(f"{path} is absent (EVENKEEL_TEST_DATA names its folder)")
        model, new = (weights, "--architecture", "resnet20"), self.folder / "new.safetensors"
        stated = ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")
        for corrupt, before, after in (("none", 0.9180, 0.8880), ("contrast=0.3", 0.6625, 0.8790), ("brightness=0.3", 0.8595, 0.8485),
                                       ("blur3", 0.5925, 0.8285), ("noise=0.1", 0.2335, 0.5800)):
            within = 0.02 if corrupt.startswith("noise") else 0.005
            words = ("--data", cifar / "test_2000.bin.gz", "--corrupt", corrupt)
            found = self.json_of("eval", *model, *words, *stated)
            self.assertEqual(found["examples"], 2000)
            self.assertAlmostEqual(found["accuracy"], before, delta=within, msg=corrupt)
            self.succeed("recalibrate", *model, "--data", cifar / "train_4000.bin.gz", "--examples", 2000, "--order", "file",
                         "--batch-size", 250, "--running-statistics", "mean_of_batches", "--corrupt", corrupt, "--out", new, *stated)
            self.assertAlmostEqual(self.json_of("eval", new, *words)["accuracy"], after, delta=within, msg=corrupt)

    # --- hostile files ---
    def test_files_that_promise_gigabytes_are_refused_in_little_memory(self):
        def chunk(kind, body):
            return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

        def huge_png(width, height):
            return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) +
                    chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b""))

        x = npy((2, 2, 2), "|u1", bytes(8))
        lying = write_npz(self.folder / "lies.npz", x=x, y=npy((2,), "|u1", b"\0\1")).read_bytes()
        at = lying.index(b"PK\1\2") + 24
        (self.folder / "lies.npz").write_bytes(lying[:at] + b"\xfe\xff\xff\xff" + lying[at + 4:])
        (self.folder / "far.npz").write_bytes(lying[:-6] + b"\xff\xff\xff\x7f\0\0")  # where the directory begins
        write_npz(self.folder / "shape.npz", x=x.replace(b"(2, 2, 2)", b"(2,1<<30)"), y=x)
        (self.folder / "array.npy").write_bytes(npy((1 << 30, 2, 2), "|u1", bytes(8)))
        (self.folder / "wide.png").write_bytes(huge_png(65535, 65535))
        (self.folder / "thin.png").write_bytes(huge_png(1, (1 << 31) - 1))
        (self.folder / "lies.jpg").write_bytes((ROOT / "fuzz/corpus/jpeg/lies").read_bytes())
        (self.folder / "a.bin").write_bytes(zlib.compress(bytes(3073 * 4), wbits=31)[:-8])
        place = self.folder / "set" / "a"
        place.mkdir(parents=True)
        (place / "wide.png").write_bytes(huge_png(65535, 65535))

        def limit():
            resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))

        options = {} if "asan" in command_line.PROGRAM or "tsan" in command_line.PROGRAM else {"preexec_fn": limit}
        for name in ("lies.npz", "far.npz", "shape.npz", "a.bin", "set"):
            with self.subTest(name):
                self.refuse(3, "data", "info", name, says=name, **options)
        for name in ("wide.png", "thin.png", "lies.jpg", "array.npy", "lies.npz"):
            with self.subTest(name):
                self.refuse(3, "predict", self.trained(), name, "--resize", SIDE, says=name, **options)

    def test_hostile_models_are_refused_in_one_sentence(self):
        def limit():
            resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))

        options = {} if "asan" in command_line.PROGRAM or "tsan" in command_line.PROGRAM else {"preexec_fn": limit}
        for name, says in (("cut", "cut short"), ("cycle", "cycle"), ("external", "own folder"), ("lies", "elements"),
                           ("negative", "found -4"), ("twice", "made twice")):
            with self.subTest(name):
                (self.folder / "model.onnx").write_bytes((ROOT / "fuzz/corpus/onnx" / name).read_bytes())
                self.refuse(3, "inspect", "model.onnx", says=("model.onnx", says), **options)
        for path in sorted((ROOT / "fuzz/corpus/safetensors").glob("bad_*")):
            with self.subTest(path.name):
                (self.folder / "model.safetensors").write_bytes(path.read_bytes())
                self.refuse(3, "inspect", "model.safetensors", says="model.safetensors", **options)
        # A header of 4 GiB, and one that is longer than the file.
        for length in (1 << 32, 1 << 63, 1000):
            with self.subTest(length=length):
                (self.folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + b'{"a":1}')
                self.refuse(3, "inspect", "model.safetensors", says="model.safetensors", **options)

    def test_every_cut_of_an_npz_file_is_refused(self):
        x, y = npy((20, 2, 2), "|u1", bytes(80)), npy((20,), "|u1", bytes(i % 2 for i in range(20)))
        whole = write_npz(self.folder / "set.npz", x=x, y=y).read_bytes()
        self.succeed("data", "info", "set.npz")
        for cut in (0, 1, 4, 30, 60, len(whole) // 2, len(whole) - 23, len(whole) - 22, len(whole) - 1):
            with self.subTest(cut=cut):
                (self.folder / "set.npz").write_bytes(whole[:cut])
                self.refuse(3, "data", "info", "set.npz", says="set.npz")
        self.refuse(2, "data", "info", "gone.npz", says="gone.npz")


if __name__ == "__main__":
    command_line.main()
