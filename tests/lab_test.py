#!/usr/bin/env python3
"""evenkeel lab: the list, a lab that goes on, what it writes, bad input, Ctrl-C.

  tests/lab_test.py [PROGRAM] [TEST...]      PROGRAM: build/release/evenkeel, or what EVENKEEL_PROGRAM or EVENKEEL says

Runs `identity` alone, which needs no training; the others have tests of their own beside the code.
"""
import csv
import json
import pathlib
import re
import signal
import struct
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import command_line  # noqa: E402
from command_line import TIMEOUT_S, CommandLine, npy, write_csv  # noqa: E402


class Lab(CommandLine):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.rows = write_csv(cls.shared / "rows.csv", rows=400)  # 320 to train and 80 to test

    def words(self, *more, seeds=2, out="lab"):
        return ["lab", "identity", "--data", self.rows, "--seeds", seeds, "--out", out, *more]

    def trials(self, out="lab"):
        return json.loads((self.folder / out / "trials/identity.json").read_text())["trials"]

    # --- what there is ---
    def test_the_list_has_names_titles_and_claims_and_runs_nothing(self):
        experiments = self.json_of("lab", "--list")["experiments"]
        self.assertIn("identity", [e["name"] for e in experiments])
        done = self.succeed("lab", "--list", env={"COLUMNS": "80"})
        for e in experiments:
            self.assertIn(f"{e['name']}: {e['title']}\n", done.stdout)
            self.assertIn(re.sub(r"\s+", " ", e["claim"]), re.sub(r"\s+", " ", done.stdout))
            for key in ("source", "protocol", "rule"):
                self.assertTrue(e[key])
        self.assertLessEqual(max(map(len, done.stdout.splitlines())), 80)
        self.assertEqual(len(self.json_of("lab", "identity", "--list")["experiments"]), 1)
        self.assertEqual(list(self.folder.iterdir()), [])
        self.assertIn("identity", self.succeed("lab", "--help").stdout)

    def test_data_that_need_options_are_read_by_them(self):
        table = self.folder / "t.csv"
        table.write_text("kind,a,b\n" + "".join(f"{'xyz'[i % 3]},{i % 7},{i * i % 11}\n" for i in range(400)))
        words = ["lab", "identity", "--data", table, "--seeds", 1, "--out", "lab", "--quick"]
        self.refuse(3, *words, says="column 1")
        self.assertEqual(self.json_of(*words, "--label", "kind")["status"], "finished")
        self.refuse(2, *words, "--resize", "8x8", "--label", "kind", says="resize")

    # --- what it writes ---
    def test_an_experiment_has_a_verdict_a_page_and_its_numbers(self):
        done = self.succeed(*self.words())
        self.assertRegex(done.stdout, r"^identity  holds +\d+ s\n  With gamma = ")
        self.assertTrue(done.stdout.endswith("\npage      lab/lab.html\n"), done.stdout)
        self.assertRegex(done.stderr, r"^identity: holds \(4 trials, \d+ s\)\n$")
        page = (self.folder / "lab/lab.html").read_text()
        for text in ("What gamma and beta can do", ">holds<", "320 to train and 80 to test", "seeds 2", "rows.csv"):
            self.assertIn(text, page)
        whole = json.loads((self.folder / "lab/lab.json").read_text())
        self.assertEqual(whole["setup"]["seeds"], "2")
        experiment = whole["experiments"][0]
        self.assertEqual((experiment["name"], experiment["verdict"], experiment["trials"]), ("identity", "holds", 4))
        self.assertEqual([len(figure["values"]) for figure in experiment["figures"]], [2, 2, 2])
        chart = experiment["charts"][0]
        self.assertEqual(chart["series"][0]["x"], [0.25, 0.5, 1, 2, 4])
        rows = list(csv.DictReader((self.folder / "lab/numbers/identity.variance-of-the-output-by-gamma.csv").read_text().splitlines()))
        for series in chart["series"]:
            self.assertEqual([float(row["y"]) for row in rows if row["series"] == series["name"]], series["y"])

    def test_json_is_one_object(self):
        result = self.json_of(*self.words("--quiet"))
        self.assertEqual((result["status"], result["folder"], result["page"]), ("finished", "lab", "lab/lab.html"))
        self.assertEqual(result["experiments"][0]["verdict"], "holds")
        self.assertNotIn("charts", result["experiments"][0])
        self.assertEqual(self.succeed(*self.words("--quiet", "--json")).stderr, "")

    def test_seeds_and_folders_follow_from_the_size(self):
        for options, folder, seeds in ((["--quick"], "runs/lab-quick", 1), ([], "runs/lab", 3), (["--full", "--seeds", "1"], "runs/lab-full", 1)):
            result = self.json_of("lab", "identity", "--data", self.rows, *options)
            self.assertEqual(result["folder"], folder)
            self.assertEqual(result["experiments"][0]["trials"], 2 * seeds)

    def test_an_experiment_that_is_named_twice_is_run_once(self):
        self.assertEqual(len(self.json_of(*self.words("identity"))["experiments"]), 1)

    # --- it goes on ---
    def test_the_same_command_runs_nothing_again(self):
        self.succeed(*self.words("--threads", 1))
        before = self.trials()
        (self.folder / "lab/lab.html").unlink()
        self.assertEqual(self.json_of(*self.words("--threads", 2))["experiments"][0]["verdict"], "holds")
        self.assertEqual(self.trials(), before, "the seconds of every trial, too")
        self.assertTrue((self.folder / "lab/lab.html").is_file())

    def test_a_trial_that_is_missing_is_run(self):
        self.succeed(*self.words())
        path = self.folder / "lab/trials/identity.json"
        trials = json.loads(path.read_text())
        del trials["trials"]["gradient/seed=2"]
        path.write_text(json.dumps(trials))
        done = self.succeed(*self.words("--verbose"))
        self.assertEqual([line for line in done.stderr.splitlines() if "seed=" in line and "evenkeel:" not in line][0].split("  ")[:2],
                         ["3/4", "identity gradient/seed=2"])
        self.assertEqual(len(self.trials()), 4)

    def start_and_wait(self, *words):
        """A lab of many trials that has done some of them."""
        path = self.folder / "lab/trials/identity.json"
        before = path.read_bytes() if path.exists() else b""
        process = subprocess.Popen(self.command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.folder,
                                   env=self.environment())
        end = time.monotonic() + TIMEOUT_S
        while not path.exists() or path.read_bytes() == before:
            self.assertIsNone(process.poll(), "the lab ended before it could be stopped")
            self.assertLess(time.monotonic(), end)
            time.sleep(0.002)
        return process

    def test_ctrl_c_keeps_what_was_done_and_says_how_to_go_on(self):
        words = self.words(seeds=400)
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            process = self.start_and_wait(*words, "--json")
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=TIMEOUT_S)
            self.assertEqual(process.returncode, code, stderr)
            result = json.loads(stdout)
            self.assertEqual((result["status"], result["page"], result["experiments"]), ("interrupted", None, []))
            self.assertIn("stopping after this trial", stderr)
        kept = self.trials()
        self.assertLess(0, len(kept))
        self.assertLess(len(kept), 800)
        advice = stderr.splitlines()[-1].strip()
        self.assertIn(f"lab identity --data {self.rows} --seeds 400 --out lab", advice)
        done = subprocess.run(["sh", "-c", advice.replace("evenkeel", f"'{command_line.PROGRAM}'", 1)], cwd=self.folder, capture_output=True,
                              text=True, timeout=TIMEOUT_S)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(json.loads(done.stdout)["experiments"][0]["trials"], 800)
        after = self.trials()
        self.assertEqual({key: after[key] for key in kept}, kept, "what was kept was not run again")

    def test_a_lab_that_was_killed_goes_on(self):
        process = self.start_and_wait(*self.words(seeds=400))
        process.kill()
        process.communicate()
        kept = self.trials()
        self.assertEqual(self.json_of(*self.words(seeds=400))["status"], "finished")
        after = self.trials()
        self.assertEqual({key: after[key] for key in kept}, kept)

    def test_a_folder_is_of_one_lab_at_a_time(self):
        process = self.start_and_wait(*self.words(seeds=400))
        try:
            self.refuse(2, *self.words(seeds=400), says=("in use", str(process.pid)))
        finally:
            process.kill()
            process.communicate()

    def test_a_terminal_shows_what_is_done(self):
        text = self.on_terminal(*self.words())
        self.assertRegex(text, r"\ridentity .* 0 %  0/4  \d+ s left  identity/seed=1")
        self.assertRegex(text.split("\x1b[K")[-1], r"^identity: holds \(4 trials")

    # --- bad input ---
    def test_bad_words_are_refused_in_one_sentence(self):
        self.refuse(2, "lab", "identiti", says=("no experiment 'identiti'", "did you mean 'identity'"))
        self.refuse(2, "lab", "identity", "nothing-of-the-kind", says=("'nothing-of-the-kind'", "xpected", "identity"))
        self.refuse(2, *self.words(seeds=0), says=("--seeds", "0", "whole number from 1"))
        self.refuse(2, *self.words("--quick", "--full"), says=("--quick", "--full", "do not go together"))
        self.refuse(2, *self.words("--model", "nothing"), says="nothing")
        self.refuse(2, *self.words("--model", "vgg11"), says="vgg11")  # pictures are not what it gets
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_data_that_cannot_be_learnt_are_refused(self):
        def lab(data, code=2, **more):
            self.refuse(code, "lab", "identity", "--data", data, "--out", "lab", **more)
            self.assertFalse((self.folder / "lab").exists())

        lab("nowhere.csv", says="nowhere.csv")
        lab(write_csv(self.folder / "few.csv", rows=90), says=("72 examples to train on", "at least 256"))
        (self.folder / "x.npy").write_bytes(npy((400, 2), "|u1", bytes(i % 251 for i in range(800))))
        (self.folder / "y.npy").write_bytes(npy((400,), "<i8", struct.pack("<400q", *[1] * 400)))
        lab("x.npy,y.npy", says="one class only")
        lab("x.npy", says="x.npy")  # no labels

    def test_a_folder_of_another_lab_is_refused_and_left_alone(self):
        self.succeed(*self.words())
        before = self.trials()
        self.refuse(2, *self.words(seeds=3), says=("another lab", "seeds was '2' there and is '3' here", "--out"))
        self.refuse(2, *self.words("--model", "mlp"), says=("model was 'of each experiment'", "'mlp' here"))
        self.refuse(2, *self.words("--quick"), says="another lab: size was 'usual' there and is 'quick' here")
        self.refuse(2, "lab", "identity", "--data", write_csv(self.folder / "more.csv", rows=410), "--seeds", 2, "--out", "lab",
                    says="examples was '320 to train and 80 to test' there")
        same = self.folder / "same.csv"  # what the data are called is no part of the lab
        same.write_bytes(self.rows.read_bytes())
        self.succeed("lab", "identity", "--data", same, "--seeds", 2, "--out", "lab")
        self.assertEqual(self.trials(), before)

    def test_data_that_were_edited_are_another_lab(self):
        rows = self.folder / "mine.csv"
        write_csv(rows, rows=400)
        words = ["lab", "identity", "--data", rows, "--seeds", 1, "--out", "lab"]
        self.succeed(*words)
        before = self.trials()
        lines = rows.read_text().splitlines()
        cells = lines[7].split(",")
        cells[0] = str(float(cells[0]) + 0.5)
        rows.write_text("\n".join([*lines[:7], ",".join(cells), *lines[8:]]) + "\n")
        self.refuse(2, *words, says=("another lab", "data contents was '", "there and is '", "--out"))
        self.assertEqual(self.trials(), before)
        rows.write_text("\n".join(lines) + "\n")
        self.succeed(*words)

    def test_a_network_that_was_edited_is_another_lab(self):
        net = self.folder / "net.toml"
        layers = '[[layer]]\ntype = "linear"\nout = {}\n[[layer]]\ntype = "linear"\n'
        net.write_text(layers.format(16))
        self.succeed(*self.words("--model", net))
        net.write_text(layers.format(17))
        self.refuse(2, *self.words("--model", net), says=("another lab", "network was '", "there and is '", "--out"))
        net.write_text("# the same network\n" + layers.format(16))
        self.succeed(*self.words("--model", net))

    def group_network(self):
        net = self.folder / "group.toml"
        net.write_text('norm = "group"\nnorm_groups = 4\n[[layer]]\ntype = "linear"\nout = 16\n[[layer]]\ntype = "linear"\n')
        return net

    def test_an_experiment_that_does_not_suit_is_refused_before_anything_is_run(self):
        net = self.group_network()
        self.refuse(2, *self.words("regularization", "--model", net),
                    says=("experiment 'regularization' cannot be run here", "no batch norm", "leave it out: evenkeel lab identity"))
        self.assertFalse((self.folder / "lab").exists())
        self.succeed(*self.words())  # and the folder is free for another lab

    def test_a_lab_of_all_leaves_out_what_does_not_suit_and_says_so(self):
        process = subprocess.Popen(self.command("lab", "--data", self.rows, "--quick", "--out", "lab", "--model", self.group_network()),
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.folder, env=self.environment())
        try:
            noted = [process.stderr.readline() for _ in range(3)]
        finally:
            process.kill()
            process.communicate()
        for name, line in zip(("covariate-shift", "regularization", "test-time"), noted):
            self.assertIn(f"{name} is left out: network 'group' has no batch norm", line)

    def test_damaged_files_are_bad_bytes(self):
        self.succeed(*self.words())
        path = self.folder / "lab/trials/identity.json"
        whole = path.read_text()
        for text in (whole[:len(whole) // 2], "", "[]", whole.replace('"version": 1', '"version": 2'), whole.replace('"seconds"', '"hours"')):
            path.write_text(text)
            self.refuse(3, *self.words(), says=("trials/identity.json", "remove the file"))
            self.assertEqual(path.read_text(), text)
        path.write_text(whole)
        (self.folder / "lab/setup.json").write_text("{")
        self.refuse(3, *self.words(), says=("lab/setup.json", "another folder"))

    def test_what_cannot_be_written_is_refused(self):
        (self.folder / "file").write_text("x")
        self.refuse(2, *self.words(out="file"), says="file")
        self.refuse(4, *self.words(out="/proc/nothing/lab"), says="/proc/nothing")


if __name__ == "__main__":
    command_line.main()
