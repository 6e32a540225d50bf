#!/usr/bin/env python3
"""evenkeel report, and what train writes at its end: the page, the CSV files, the event files of TensorBoard.

  tests/report_test.py [PROGRAM] [TEST...]      PROGRAM: build/release/evenkeel, or what EVENKEEL_PROGRAM or EVENKEEL says

The event files are read by the published schema (tensorflow/core/util/event.proto, framework/summary.proto) and framing (TFRecord).
"""
import base64
import csv
import html
import json
import math
import pathlib
import re
import shlex
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import command_line  # noqa: E402
from command_line import CommandLine, png  # noqa: E402

# --- protobuf's wire format, by the schema: message -> field number -> (name, type, whether it is repeated) ---
SCHEMA = {
    "Event": {1: ("wall_time", "double", False), 2: ("step", "int64", False), 3: ("file_version", "string", False),
              5: ("summary", "Summary", False)},
    "Summary": {1: ("value", "Value", True)},
    "Value": {1: ("tag", "string", False), 2: ("simple_value", "float", False), 7: ("node_name", "string", False)},
}
WIRE_TYPE = {"double": 1, "float": 5, "int64": 0}  # all else is 2: a length and bytes


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a varint of more than ten bytes")


def parse_message(kind, data):
    """A dictionary of the fields. Raises ValueError for a field that the schema does not have, or has with another type."""
    message, at = {}, 0
    while at < len(data):
        key, at = varint(data, at)
        number, wire = key >> 3, key & 7
        if number not in SCHEMA[kind]:
            raise ValueError(f"{kind} has no field {number}")
        name, type_name, repeated = SCHEMA[kind][number]
        if wire != WIRE_TYPE.get(type_name, 2):
            raise ValueError(f"{kind}.{name} has wire type {wire}")
        if wire == 0:
            value, at = varint(data, at)
            value -= (value >> 63) << 64
        elif wire == 1:
            value, at = struct.unpack_from("<d", data, at)[0], at + 8
        elif wire == 5:
            value, at = struct.unpack_from("<f", data, at)[0], at + 4
        else:
            length, at = varint(data, at)
            value, at = data[at:at + length], at + length
            if len(value) != length:
                raise ValueError(f"{kind}.{name} is cut off")
            value = value.decode() if type_name == "string" else parse_message(type_name, value)
        if repeated:
            message.setdefault(name, []).append(value)
        elif name in message:
            raise ValueError(f"{kind}.{name} comes twice")
        else:
            message[name] = value
    return message


def masked_crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_events(path):
    """The Event messages of a file; raises ValueError where a frame or its checksums are wrong."""
    data, at, events = pathlib.Path(path).read_bytes(), 0, []
    while at < len(data):
        length, length_crc = struct.unpack_from("<QI", data, at)
        body = data[at + 12:at + 12 + length]
        if masked_crc32c(data[at:at + 8]) != length_crc or len(body) != length:
            raise ValueError(f"the length at {at} is wrong")
        if masked_crc32c(body) != struct.unpack_from("<I", data, at + 12 + length)[0]:
            raise ValueError(f"the bytes at {at} are not those of their checksum")
        events.append(parse_message("Event", body))
        at += 16 + length
    return events


def scalars(events):
    """tag -> {step: value}"""
    found = {}
    for event in events:
        for value in event.get("summary", {}).get("value", []):
            found.setdefault(value["tag"], {})[event["step"]] = value["simple_value"]
    return found


# --- a log with records of every kind ---
def percentiles(x, spread=1.0):
    return [x - 3 * spread, x - spread, x, x + spread, x + 3 * spread]


def picture(seed):
    return png(8, 8, bytes((x * 16 + seed * 40) % 256 for x in range(64)))


def write_log(folder, name="cnn", steps=400, layers=3, classes=4, status="finished"):
    """A run of `steps` steps in four epochs, as the program writes it; returns the records."""
    records = [{"kind": "start", "format_version": 1, "step": 0, "unix_time_s": 1.7e9, "model": name, "data": "fashion-mnist",
                "parameters": 1234, "train_examples": 60000, "test_examples": 10000, "versions": {"evenkeel": "9.9.9"},
                "settings": {"model": name, "data": "fashion-mnist", "epochs": "4", "seed": "7"}}]
    for step in range(steps + 1):
        epoch = min(4, 1 + 4 * step // (steps + 1))
        if step % (steps // 10) == 0:
            looks = [{"name": f"bn{i + 1}", "input": percentiles(0.1 * i, 1 + step / steps), "gamma": percentiles(1, 0.1 * step / steps),
                      "beta": percentiles(-0.2 * step / steps, 0.1), "batch_mean": percentiles(step / steps), "output": percentiles(0),
                      "batch_var": percentiles(4 + i), "running_mean": percentiles(0.5 * step / steps), "running_var": percentiles(3.5 + i)}
                     for i in range(layers)]
            gradients = [{"parameter": f"{kind}{i + 1}.weight", "norm": math.exp(-step / steps - i), "weight_norm": 5.0}
                         for i in range(layers) for kind in ("conv", "bn")]
            records.append({"kind": "layers", "step": step, "epoch": epoch, "examples": 64, "loss": 1.0, "layers": looks,
                            "gradients": gradients})
        if step == 0:
            continue
        records.append({"kind": "step", "step": step, "epoch": epoch, "loss": 2.3 * math.exp(-3 * step / steps) + 0.1 * (step % 7) / 7,
                        "learning_rate": 0.003 * (1 - step / steps), "images_per_s": 5000.0 + step % 100, "examples": 128})
        if step % (steps // 4) == 0:
            records.append({"kind": "epoch", "epoch": epoch, "step": step, "train_loss": 1 / epoch, "train_accuracy": 1 - 0.4 / epoch,
                            "test_loss": 1.2 / epoch, "test_accuracy": 1 - 0.5 / epoch, "images_per_s": 5000.0, "seconds": 2.5,
                            "refused_batches": 0,
                            "norms": [{"name": f"bn{i + 1}", "mean_shift": 0.1 / epoch, "log_var_ratio": 0.2 / epoch, "channel": 0}
                                      for i in range(layers)]})
            records.append({"kind": "checkpoint", "step": step, "epoch": epoch, "file": f"checkpoint-{step}.safetensors", "seconds": 0.1})
    names = [f"class {'abcdefghij'[c]}" for c in range(classes)]
    records.append({"kind": "answers", "step": steps, "epoch": 4, "classes": names,
                    "confusion": [900 - 10 * c if c == d else 10 * abs(c - d) for c in range(classes) for d in range(classes)],
                    "mistakes": [{"example": 11 * i, "label": i % classes, "predicted": (i + 1) % classes, "probability": 0.99 - i / 100,
                                  "png_base64": base64.b64encode(picture(i)).decode()} for i in range(12)]})
    records.append({"kind": "end", "status": status, "step": steps, "epoch": 4, "seconds": 12.5, "peak_memory_bytes": 100 << 20,
                    "message": ""})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return records


class Report(CommandLine):
    # --- at the end of train ---
    def test_train_ends_with_a_report_and_names_it(self):
        done = self.succeed(*self.train_words("run"))
        self.assertIn("run/report.html\n", done.stdout)
        page = (self.folder / "run/report.html").read_text()
        self.assertIn("<h1>run</h1>", page)
        self.assertIn("Loss and accuracy", page)
        self.assertIn("finished", page)
        result = self.json_of(*self.train_words("other"))
        self.assertEqual(result["report"], "other/report.html")
        self.assertTrue((self.folder / "other/report.html").is_file())

    def test_train_leaves_the_report_out_where_it_is_told_to(self):
        result = self.json_of(*self.train_words("run", "--no-report"))
        self.assertIsNone(result["report"])
        self.assertFalse((self.folder / "run/report.html").exists())
        self.assertIsNone(self.json_of(*self.train_words("dry", "--dry-run"))["report"])

    def test_a_report_that_cannot_be_written_does_not_lose_the_run(self):
        (self.folder / "run/report.html").mkdir(parents=True)
        done = self.succeed(*self.train_words("run"))
        self.assertIn("warning: no report was written", done.stderr)
        self.assertIn("run/model.safetensors", done.stdout)

    def test_the_command_of_the_report_trains_the_same_model_again(self):
        self.succeed(*self.train_words("run", "--optimizer", "momentum", "--momentum", 0.8, "--bias-corrected", "--activation", "silu",
                                       "--norm-placement", "after"))
        page = (self.folder / "run/report.html").read_text()
        words = shlex.split(html.unescape(re.search(r"<pre>(evenkeel train .*?)</pre>", page, re.S)[1]))
        done = self.succeed(*words[1:], "--out", "again")
        self.assertNotIn("warning", done.stderr)
        tensors = [command_line.safetensors(self.folder / run / "model.safetensors")[0] for run in ("run", "again")]
        self.assertEqual(tensors[0], tensors[1])

    # --- report ---
    def test_a_report_of_one_run_stands_in_its_folder(self):
        write_log(self.folder / "one")
        done = self.succeed("report", "one")
        self.assertEqual(done.stdout.split(), ["report", "one/report.html"])
        page = (self.folder / "one/report.html").read_text()
        for text in ("Layer bn1", "Layer bn3", "Gradients", "Confusion matrix", "The worst mistakes", "data:image/png;base64,",
                     "evenkeel train --data fashion-mnist --epochs 4 --model cnn --seed 7", "100.0 MiB", "87.50 %"):
            self.assertIn(text, page)
        self.assertLess(len(page), 3 << 20)
        result = self.json_of("report", "one/log.jsonl", "--title", "of mine", "-o", "elsewhere.html")
        self.assertEqual(result["report"], "elsewhere.html")
        self.assertIn("<title>of mine</title>", (self.folder / "elsewhere.html").read_text())

    def test_several_runs_are_overlaid_by_name(self):
        write_log(self.folder / "a/run")
        write_log(self.folder / "b/run", steps=200)
        write_log(self.folder / "c", steps=200)
        self.refuse(2, "report", "a/run", "c", says=("2 runs", "--out FILE"))
        self.succeed("report", "a/run", "b/run/", "c", "-o", "all.html", "--csv", "numbers")
        rows = list(csv.DictReader((self.folder / "numbers/loss-and-accuracy.test-accuracy.csv").read_text().splitlines()))
        self.assertEqual({row["series"] for row in rows}, {"a/run", "b/run/", "c"})
        self.assertEqual([float(row["y"]) for row in rows if row["series"] == "c"], [1 - 0.5 / epoch for epoch in (1, 2, 3, 4)])

    def test_csv_files_hold_every_number(self):
        records = write_log(self.folder / "one", steps=1000)
        self.succeed("report", "one", "--csv", "one/numbers")
        rows = list(csv.reader((self.folder / "one/numbers/steps.loss-of-every-step.csv").read_text().splitlines()))
        self.assertEqual(rows[0], ["series", "x", "y"])
        self.assertEqual([(int(x), float(y)) for _, x, y in rows[1:]],
                         [(r["step"], r["loss"]) for r in records if r["kind"] == "step"])
        matrix = list(csv.DictReader((self.folder / "one/numbers/answers-on-the-test-set.confusion-matrix.csv").read_text().splitlines()))
        self.assertEqual([float(row["value"]) for row in matrix],
                         [n for r in records if r["kind"] == "answers" for n in r["confusion"]])
        gamma = list(csv.DictReader((self.folder / "one/numbers/layer-bn2.gamma.csv").read_text().splitlines()))
        looks = [r["layers"][1]["gamma"] for r in records if r["kind"] == "layers"]
        self.assertEqual([(float(g["low"]), float(g["y"]), float(g["high"])) for g in gamma if g["series"] == "median"],
                         [tuple(look[1:4]) for look in looks])

    def test_event_files_are_read_back_by_the_public_schema(self):
        records = write_log(self.folder / "one")
        self.succeed("report", "one", "--tensorboard", "events")
        files = list((self.folder / "events").iterdir())
        self.assertEqual([file.name for file in files], ["events.out.tfevents.1700000000.evenkeel"])
        events = read_events(files[0])
        self.assertEqual(events[0], {"wall_time": 1.7e9, "file_version": "brain.Event:2"})
        times = [event["wall_time"] for event in events]
        self.assertEqual(times, sorted(times))
        found = scalars(events)
        for tag, kind, key in (("loss/step", "step", "loss"), ("learning_rate", "step", "learning_rate"), ("images_per_s", "step", "images_per_s"),
                               ("loss/train", "epoch", "train_loss"), ("accuracy/test", "epoch", "test_accuracy")):
            expected = {r["step"]: struct.unpack("f", struct.pack("f", r[key]))[0] for r in records if r["kind"] == kind}
            self.assertEqual(found[tag], expected, tag)
        looks = [r for r in records if r["kind"] == "layers"]
        self.assertEqual(found["batch_var/bn2/50"], {r["step"]: r["layers"][1]["batch_var"][2] for r in looks})
        self.assertEqual(sorted(found["gradient_norm/conv3.weight"]), [r["step"] for r in looks])
        self.assertNotIn("loss/validation", found)

    def test_a_damaged_event_file_would_be_noticed(self):
        write_log(self.folder / "one")
        self.succeed("report", "one", "--tensorboard", "events")
        file = next((self.folder / "events").iterdir())
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        self.assertRaises(ValueError, read_events, file)

    def test_events_of_several_runs_have_folders_of_their_own(self):
        write_log(self.folder / "a")
        write_log(self.folder / "b")
        self.succeed("report", "a", "b", "-o", "both.html", "--tensorboard", "events")
        self.assertEqual(sorted(p.parent.name for p in (self.folder / "events").rglob("*tfevents*")), ["a", "b"])

    def test_train_writes_events_into_its_folder(self):
        self.succeed(*self.train_words("run", "--tensorboard", "--no-report"))
        found = scalars(read_events(next((self.folder / "run/tensorboard").iterdir())))
        log = [json.loads(line) for line in (self.folder / "run/log.jsonl").read_text().splitlines()]
        self.assertEqual(sorted(found["loss/step"]), [r["step"] for r in log if r["kind"] == "step"])
        self.assertFalse((self.folder / "run/report.html").exists())
        self.refuse(2, *self.train_words("dry", "--tensorboard", "--dry-run"), says="do not go together")

    def test_a_run_that_goes_on_or_did_not_end_well_has_a_report(self):
        records = write_log(self.folder / "one")
        whole = (self.folder / "one/log.jsonl").read_text()
        (self.folder / "one/log.jsonl").write_text(whole[:len(whole) // 2])  # killed while it wrote a line
        self.succeed("report", "one")
        self.assertIn("no end", (self.folder / "one/report.html").read_text())
        write_log(self.folder / "two", status="not finite")
        self.succeed("report", "two")
        self.assertIn(">not finite<", (self.folder / "two/report.html").read_text())
        self.assertGreater(len(records), 400)

    def test_a_run_that_diverges_has_a_report(self):
        done = self.run_program(*self.train_words("run", "--learning-rate", "1e30", "--optimizer", "sgd"))
        self.assertEqual(done.returncode, 6, done.stderr)
        self.assertIn("run/report.html", done.stderr)
        self.assertIn(">not finite<", (self.folder / "run/report.html").read_text())

    # --- bad input ---
    def test_bad_runs_are_refused_in_one_sentence(self):
        (self.folder / "empty").mkdir()
        self.refuse(2, "report", says="needs RUN")
        self.refuse(2, "report", "nowhere", says=("no run 'nowhere'", "folder of a run"))
        self.refuse(2, "report", "empty", says=("'empty' holds no log.jsonl", "evenkeel train"))
        (self.folder / "empty/log.jsonl").write_text("")
        self.refuse(3, "report", "empty", says="holds no record")
        write_log(self.folder / "one")
        log = self.folder / "one/log.jsonl"
        lines = log.read_text().splitlines(keepends=True)
        log.write_text(lines[0] + "{oops\n" + "".join(lines[1:]))
        self.refuse(3, "report", "one", says="line 2")
        self.assertFalse((self.folder / "one/report.html").exists())

    def test_the_log_is_never_overwritten(self):
        write_log(self.folder / "one")
        before = (self.folder / "one/log.jsonl").read_bytes()
        self.refuse(2, "report", "one", "-o", "one/log.jsonl", says=("--out", "would take the place"))
        self.assertEqual((self.folder / "one/log.jsonl").read_bytes(), before)

    def test_what_cannot_be_written_is_an_error_of_the_system(self):
        write_log(self.folder / "one")
        self.refuse(4, "report", "one", "-o", "no/such/folder/x.html", says="no/such/folder")
        self.refuse(4, "report", "one", "--csv", "one/log.jsonl/x", says="one/log.jsonl/x")

    def test_options_of_one_name_may_be_flags_of_another_command(self):
        write_log(self.folder / "one")
        self.succeed("--color", "never", "report", "--csv", "numbers", "one")
        self.assertTrue((self.folder / "numbers").is_dir())


if __name__ == "__main__":
    command_line.main()
