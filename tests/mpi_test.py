#!/usr/bin/env python3
"""Many ranks, started by mpirun: the collectives (tests/mpi_ranks.cc), and `evenkeel train` with its faults.

  tests/mpi_test.py [PROGRAM] [TEST...]      PROGRAM: build/release/evenkeel, or what EVENKEEL_PROGRAM or EVENKEEL says
                                             EVENKEEL_MPI_RANKS: mpi_ranks, else the one beside PROGRAM

Exit 77 where there is no mpirun, or the program has no MPI. No rank outlives a test: each is known by a variable in its environment.
"""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import command_line  # noqa: E402
from command_line import CommandLine, safetensors, write_idx  # noqa: E402

MARK = "EVENKEEL_MPI_TEST"
WHOLE_S = 90  # of one command: far above what any takes


def mpi_ranks():
    return os.environ.get("EVENKEEL_MPI_RANKS") or str(pathlib.Path(command_line.PROGRAM).parent / "mpi_ranks")


class Mpi(CommandLine):
    def setUp(self):
        super().setUp()
        self.mark = self.folder.name

    def tearDown(self):
        for pid, _ in self.ranks():
            os.kill(pid, signal.SIGKILL)

    # --- how ranks are started and found ---
    def mpirun(self, *programs):
        """Each program: (number of ranks, words...) or (number of ranks, folder, words...), as mpirun's contexts."""
        words = ["timeout", "-k", "5", str(WHOLE_S), "mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]
        for i, (ranks, *rest) in enumerate(programs):
            words += [":"] if i > 0 else []
            words += ["-n", str(ranks)]
            if isinstance(rest[0], pathlib.Path) and rest[0].is_dir():
                words += ["-wdir", str(rest.pop(0))]
            words += map(str, rest)
        return words

    def environment(self, **more):
        return super().environment(**{MARK: self.mark, "OMP_WAIT_POLICY": "passive", **more})

    def start(self, *programs):
        return subprocess.Popen(self.mpirun(*programs), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True, cwd=self.folder, env=self.environment())

    def run_ranks(self, code, *programs):
        begin = time.monotonic()
        process = self.start(*programs)
        done = self.ended(process, code)
        done.seconds = time.monotonic() - begin
        return done

    def ended(self, process, code):
        out, err = process.communicate(timeout=WHOLE_S + 10)
        self.assertEqual(process.returncode, code, out + err)
        self.nobody_is_left()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def ranks(self):
        """(pid, rank) of the living programs of this test."""
        found = []
        for folder in pathlib.Path("/proc").iterdir():
            try:
                if not folder.name.isdigit() or folder.joinpath("stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                    continue
                variables = folder.joinpath("environ").read_bytes().split(b"\0")
                if f"{MARK}={self.mark}".encode() not in variables:
                    continue
                rank = [v for v in variables if v.startswith(b"OMPI_COMM_WORLD_RANK=")]
                if rank and os.readlink(folder / "exe") in (os.path.realpath(command_line.PROGRAM), os.path.realpath(mpi_ranks())):
                    found.append((int(folder.name), int(rank[0].split(b"=")[1])))
            except OSError:
                pass  # gone in between
        return found

    def pid_of_rank(self, rank):
        return {r: pid for pid, r in self.ranks()}[rank]

    def nobody_is_left(self):
        for _ in range(50):
            if not self.ranks():
                return
            time.sleep(0.1)
        self.fail(f"ranks outlive mpirun: {self.ranks()}")

    def one_error(self, text):
        """mpirun adds words of its own, the ranks have one line."""
        lines = [line for line in text.splitlines() if "error: " in line.lower() and "MPI_ERR" not in line]
        self.assertEqual(len(lines), 1, text)
        return lines[0]

    # --- the collectives ---
    def test_collectives_give_what_they_promise(self):
        for ranks in (1, 2, 3, 4):
            done = self.run_ranks(0, (ranks, mpi_ranks(), "collectives"))
            self.assertIn(f"{ranks} ranks: all is well", done.stdout)
            self.assertEqual(done.stdout.count("all is well"), 1)

    def test_a_rank_that_is_stopped_is_named_by_one_of_those_who_wait(self):
        for ranks, missing, waiting in ((2, 0, "one rank waits"), (4, 2, "3 ranks wait")):
            done = self.run_ranks(4, (ranks, mpi_ranks(), "missing", missing, 1))
            error = self.one_error(done.stderr)
            self.assertIn(f"no answer from rank {missing} on {os.uname().nodename} for 1 s: {waiting} in a sum at step 17, "
                          "gradients of conv1; ", error)
            self.assertLess(done.seconds, 1 + 10)

    def test_a_rank_that_comes_too_late_is_named(self):
        error = self.one_error(self.run_ranks(4, (3, mpi_ranks(), "late", 1, 1)).stderr)
        # To the sum at step 17; on a busy machine the others hear of it when it has gone on to the end of the program.
        self.assertRegex(error, f"rank 1 on {os.uname().nodename} came last, to (a sum at step 17|the end of the program)[,;]")

    def test_a_rank_can_end_all_with_an_exit_code(self):
        done = self.run_ranks(6, (3, mpi_ranks(), "abort", 1, 6))
        self.assertLess(done.seconds, 10)

    def test_an_error_of_one_rank_is_that_of_all_and_printed_once(self):
        for ranks in (2, 4):
            error = self.one_error(self.run_ranks(3, (ranks, mpi_ranks(), "agree", 1)).stderr)
            self.assertEqual(error, f"error: rank 1 on {os.uname().nodename}: this file is damaged")

    # --- commands of one rank ---
    def test_commands_that_do_not_train_run_once(self):
        done = self.run_ranks(0, (3, command_line.PROGRAM, "--version"))
        self.assertEqual(done.stdout.count("evenkeel "), 1)
        self.assertEqual(done.stderr, "")
        done = self.run_ranks(0, (2, command_line.PROGRAM, "plan", self.toml, "--input", "1x8x8", "--json"))
        self.assertEqual(json.loads(done.stdout)["model"], "tiny")
        done = self.run_ranks(0, (2, command_line.PROGRAM, "train", "--help"))
        self.assertEqual(done.stdout.count("evenkeel train: train a network"), 1)

    def test_their_errors_are_printed_once_and_the_exit_code_passes_through_mpirun(self):
        done = self.run_ranks(2, (3, command_line.PROGRAM, "eval", "nowhere.safetensors"))
        self.assertIn("nowhere.safetensors", self.one_error(done.stderr))
        damaged = self.folder / "damaged.safetensors"
        damaged.write_bytes(b"\x10\0\0\0\0\0\0\0{}")
        self.assertIn("damaged.safetensors", self.one_error(self.run_ranks(3, (2, command_line.PROGRAM, "eval", damaged)).stderr))
        for words in (["train", "--nothing"], ["train", "--norm-sync", "group:none"], ["plann"]):
            self.one_error(self.run_ranks(2, (2, command_line.PROGRAM, *words)).stderr)

    def test_words_that_differ_are_an_error_of_the_rank_that_has_them(self):
        done = self.run_ranks(2, (1, command_line.PROGRAM, "train", "--dry-run"), (1, command_line.PROGRAM, "train", "--epochs", "none"))
        self.assertIn("rank 1 on", self.one_error(done.stderr))

    def test_a_launcher_of_another_mpi_is_told_from_a_plain_run(self):
        for launcher in ({"PMI_SIZE": "4", "PMI_RANK": "0"}, {"OMPI_COMM_WORLD_SIZE": "4"},
                         {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}):
            done = self.refuse(5, "train", "--dry-run", env=launcher, says=["4 ranks", next(iter(launcher)), "finds 1"])
            self.assertNotIn("rank 0", done.stderr)
            self.assertNotIn("signal", done.stderr)
        self.succeed("--version", env={"PMI_SIZE": "4", "EVENKEEL_RANKS": "1"})

    # --- training ---
    def training(self, ranks, out, *more, epochs=3):
        return (ranks, command_line.PROGRAM, "train", "--data", self.data, "--model", self.toml, "--batch-size", 32, "--epochs", epochs,
                "--no-report", "--out", out, *more)

    def tensors(self, out):
        return safetensors(self.folder / out / "model.safetensors")[0]

    def steps(self, out):
        log = self.folder / out / "log.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        return sum('"kind":"step"' in line for line in lines)

    def wait_for_steps(self, process, out, steps):
        for _ in range(600):
            if self.steps(out) >= steps:
                return
            self.assertIsNone(process.poll(), "the run ended by itself")
            time.sleep(0.05)
        self.fail(f"{steps} steps did not happen in 30 s")

    def test_deterministic_runs_have_the_same_bits_on_any_number_of_ranks(self):
        self.succeed(*self.training(1, "alone", "--deterministic")[2:])
        for ranks in (2, 4):
            done = self.run_ranks(0, self.training(ranks, f"on{ranks}", "--deterministic"))
            self.assertEqual(done.stdout.count("test accuracy"), 1)
            self.assertEqual(done.stderr.count("epoch 1/3"), 1)
            self.assertEqual(self.tensors(f"on{ranks}"), self.tensors("alone"))

    def test_a_run_is_stopped_by_a_signal_to_any_rank_and_goes_on_with_another_number(self):
        self.succeed(*self.training(1, "whole", "--deterministic", epochs=400)[2:])
        process = self.start(self.training(2, "cut", "--deterministic", epochs=400))
        self.wait_for_steps(process, "cut", 5)
        os.kill(self.pid_of_rank(1), signal.SIGTERM)
        done = self.ended(process, 143)
        self.assertEqual(done.stderr.count("stopped by SIGTERM after step"), 1, done.stderr)
        self.assertIn("mpirun -n 2 evenkeel train", done.stderr)
        self.run_ranks(0, self.training(3, "cut", "--deterministic", "--resume", epochs=400))
        self.assertEqual(self.tensors("cut"), self.tensors("whole"))

    def test_a_killed_rank_ends_the_run_and_it_goes_on_with_another_number(self):
        self.succeed(*self.training(1, "whole", "--deterministic", epochs=400)[2:])
        process = self.start(self.training(3, "cut", "--deterministic", "--checkpoint-every", 0.2, epochs=400))
        self.wait_for_steps(process, "cut", 10)
        begin = time.monotonic()
        os.kill(self.pid_of_rank(2), signal.SIGKILL)
        self.ended(process, 137)
        self.assertLess(time.monotonic() - begin, 10)
        self.run_ranks(0, self.training(2, "cut", "--deterministic", "--resume", epochs=400))
        self.assertEqual(self.tensors("cut"), self.tensors("whole"))

    def test_a_stopped_rank_is_found_by_the_timeout(self):
        process = self.start(self.training(3, "cut", "--timeout", 2, epochs=100000))
        self.wait_for_steps(process, "cut", 5)
        begin = time.monotonic()
        os.kill(self.pid_of_rank(1), signal.SIGSTOP)
        error = self.one_error(self.ended(process, 4).stderr)
        self.assertLess(time.monotonic() - begin, 2 + 10)
        self.assertRegex(error, rf"no answer from rank 1 on {os.uname().nodename} for 2(\.\d+)? s: 2 ranks wait in .* at step \d+, \S")

    def test_ranks_that_differ_are_refused_by_name(self):
        one, other = self.training(1, "run"), self.training(1, "run", "--seed", 5)
        error = self.one_error(self.run_ranks(2, one, other).stderr)
        self.assertRegex(error, r"rank 1 on \S+ has --seed 5, but rank 0 on \S+ has 1")
        here, there = self.folder / "here", self.folder / "there"
        write_idx(here / "set", train=96)
        write_idx(there / "set", train=64)
        words = (command_line.PROGRAM, "train", "--data", "set", "--model", self.toml, "--batch-size", 32, "--out", self.folder / "run")
        self.assertRegex(self.one_error(self.run_ranks(2, (1, here, *words), (1, there, *words)).stderr), "rank 1 on .*data")
        shutil.rmtree(there / "set")
        self.assertRegex(self.one_error(self.run_ranks(2, (1, here, *words), (1, there, *words)).stderr), "rank 1 on .*set")
        self.assertFalse((self.folder / "run").exists())

    def test_more_ranks_than_parts_of_a_batch_are_refused(self):
        words = [8 if word == 32 else word for word in self.training(2, "run")]
        self.assertIn("2 ranks", self.one_error(self.run_ranks(2, words).stderr))

    def test_values_that_are_not_finite_end_the_run_everywhere_with_one_message(self):
        words = self.training(2, "run", "--optimizer", "sgd", "--learning-rate", "1e30", "--schedule", "constant")
        error = self.one_error(self.run_ranks(6, words).stderr)
        self.assertRegex(error, "step|epoch")


def reason_to_skip():
    if shutil.which("mpirun") is None:
        return "mpirun is not here (apt install openmpi-bin)"
    version = subprocess.run([command_line.PROGRAM, "--version"], capture_output=True, text=True, timeout=60, check=False).stdout
    return "the program was built without MPI" if "no MPI" in version else None


if __name__ == "__main__":
    command_line.take_program()
    if reason := reason_to_skip():
        print(f"mpi_test: {reason}")
        sys.exit(77)
    command_line.main()
