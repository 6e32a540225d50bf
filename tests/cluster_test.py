#!/usr/bin/env python3
"""examples/cluster: the MPIJob against the fields of its kind, the Slurm script with a Slurm that only writes down what it is told.

  tests/cluster_test.py [PROGRAM] [TEST...]      PROGRAM is not used

tests/mpijob_schema.json was written from the public definition of the kind (kubeflow/mpi-operator, manifests and types of v2beta1).
"""
import copy
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

try:
    import yaml
except ImportError:
    yaml = None

ROOT = pathlib.Path(__file__).resolve().parent.parent
CLUSTER = ROOT / "examples/cluster"
SCHEMA = json.loads((ROOT / "tests/mpijob_schema.json").read_text(encoding="utf-8"))
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}


def faults(value, schema, place="job"):
    """What does not fit, each as one line: as much of JSON Schema as the file uses."""
    if "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"]]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{place}: {value!r} is none of {schema['enum']}"]
    kind = TYPES.get(schema.get("type"), object)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        return [f"{place}: expected {schema['type']}, found {value!r}"]
    found = []
    if "minimum" in schema and value < schema["minimum"]:
        found.append(f"{place}: {value} is below {schema['minimum']}")
    if "pattern" in schema and not re.fullmatch(schema["pattern"], value):
        found.append(f"{place}: {value!r} does not match {schema['pattern']}")
    if isinstance(value, list):
        for i, item in enumerate(value):
            found += faults(item, schema.get("items", {}), f"{place}[{i}]")
    if isinstance(value, dict):
        found += [f"{place}: {key} is missing" for key in schema.get("required", []) if key not in value]
        for key, item in value.items():
            if key in schema.get("properties", {}):
                found += faults(item, schema["properties"][key], f"{place}.{key}")
            elif "values" in schema:
                found += faults(item, schema["values"], f"{place}.{key}")
            elif schema.get("additionalProperties") is False:
                found.append(f"{place}: there is no field {key}")
    return found


@unittest.skipIf(yaml is None, "python3-yaml is not installed")
class MpiJob(unittest.TestCase):
    def setUp(self):
        self.job = yaml.safe_load((CLUSTER / "mpijob.yaml").read_text(encoding="utf-8"))
        self.replicas = self.job["spec"]["mpiReplicaSpecs"]

    def test_every_field_is_one_of_the_kind(self):
        self.assertEqual(faults(self.job, SCHEMA), [])

    def test_a_wrong_field_or_value_is_found(self):
        changes = [(("spec",), "slotPerWorker", 1), (("spec",), "slotsPerWorker", "1"), (("spec", "runPolicy"), "cleanPodPolicy", "Some"),
                   (("spec", "mpiReplicaSpecs", "Worker"), "replicas", 0),
                   (("spec", "mpiReplicaSpecs", "Worker", "template", "spec", "containers", 0), "volumeMount", []),
                   (("spec", "mpiReplicaSpecs", "Worker", "template", "spec", "containers", 0, "resources", "limits"), "cpu", 8)]
        for path, key, value in changes:
            wrong = copy.deepcopy(self.job)
            place = wrong
            for step in path:
                place = place[step]
            place[key] = value
            self.assertEqual(len(faults(wrong, SCHEMA)), 1, (path, key, value))
        del self.job["spec"]["mpiReplicaSpecs"]
        self.assertEqual(faults(self.job, SCHEMA), ["job.spec: mpiReplicaSpecs is missing"])

    def test_mpirun_starts_a_rank_for_every_slot(self):
        self.assertEqual(self.replicas["Launcher"]["replicas"], 1)
        ranks = self.replicas["Worker"]["replicas"] * self.job["spec"]["slotsPerWorker"]
        script = self.replicas["Launcher"]["template"]["spec"]["containers"][0]["args"][0]
        self.assertIn(f"mpirun -np {ranks} ", script)

    def test_volumes_that_are_mounted_are_there(self):
        for replica in self.replicas.values():
            pod = replica["template"]["spec"]
            named = {volume["name"] for volume in pod["volumes"]}
            mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
            self.assertEqual(mounted, named)

    def test_the_script_of_the_launcher_resumes_what_is_there(self):
        script = self.replicas["Launcher"]["template"]["spec"]["containers"][0]["args"][0]
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            (folder / "mpirun").write_text('#!/bin/sh\necho "$@"\n')
            (folder / "mpirun").chmod(0o755)
            script = script.replace("/volume/", f"{folder}/")
            environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}

            def words():
                return subprocess.run(["/bin/sh", "-c", script], env=environment, capture_output=True, text=True, check=True).stdout.split()

            self.assertNotIn("--resume", words())
            (folder / "runs/job").mkdir(parents=True)
            (folder / "runs/job/checkpoint-7.safetensors").touch()
            self.assertEqual(words()[-1], "--resume")


class Slurm(unittest.TestCase):
    script = CLUSTER / "evenkeel.sbatch"

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        for tool in ("srun", "scontrol"):
            (self.folder / tool).write_text(f'#!/bin/sh\necho {tool} "$@" >> "$LOG"\nif [ {tool} = srun ]; then exit "$SRUN_EXIT"; fi\n')
            (self.folder / tool).chmod(0o755)

    def submit(self, *words, srun_exit=0):
        """(exit code, the lines of srun and scontrol)"""
        log = self.folder / "log"
        log.write_text("")
        environment = {**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}", "LOG": str(log), "SRUN_EXIT": str(srun_exit),
                       "SLURM_JOB_ID": "17", "SLURM_CPUS_PER_TASK": "8", "RUN": str(self.folder / "run"), "EVENKEEL": "/opt/evenkeel"}
        done = subprocess.run(["bash", str(self.script), *words], env=environment, capture_output=True, text=True, cwd=self.folder)
        self.assertEqual(done.stderr, "")
        return done.returncode, log.read_text().splitlines()

    def test_it_starts_a_rank_for_every_task_with_the_options_that_it_got(self):
        code, lines = self.submit("--model", "resnet20", "--data", "a folder")
        self.assertEqual((code, len(lines)), (0, 1))
        self.assertRegex(lines[0], "^srun --mpi=pmix --cpus-per-task=8 .* /opt/evenkeel train --out .*/run --timeout 120 "
                                   "--model resnet20 --data a folder$")

    def test_it_goes_on_with_a_run_that_is_there(self):
        (self.folder / "run").mkdir()
        (self.folder / "run/checkpoint-7.safetensors").touch()
        self.assertIn(" --resume ", self.submit()[1][0])

    def test_a_job_that_was_stopped_in_time_goes_to_the_queue_again(self):
        code, lines = self.submit(srun_exit=143)
        self.assertEqual(code, 143)
        self.assertEqual(lines[1:], ["scontrol requeue 17"])

    def test_a_job_that_failed_does_not(self):
        code, lines = self.submit(srun_exit=6)
        self.assertEqual((code, len(lines)), (6, 1))

    def test_slurm_reads_its_options_before_the_first_command(self):
        lines = self.script.read_text(encoding="utf-8").splitlines()
        first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
        options = [line for line in lines if line.startswith("#SBATCH")]
        self.assertEqual(options, [line for line in lines[:first] if line.startswith("#SBATCH")])
        self.assertIn("#SBATCH --signal=TERM@120", options)


if __name__ == "__main__":
    if len(sys.argv) > 1 and not re.match(r"(MpiJob|Slurm)\b", sys.argv[1]):
        del sys.argv[1]
    unittest.main()
