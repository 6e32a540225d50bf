"""The annotations of the package, which is marked as typed, are those of what it does."""
import pathlib
import shutil
import subprocess

import pytest


PROGRAM = """
import numpy as np
import evenkeel

state = evenkeel.Network("mlp", input_shape=(6,), classes=3).state_dict()
remedy: str = evenkeel.explain("EK109")["remedy"]
codes = [rule["code"] for rule in evenkeel.explain()]
new = evenkeel.recalibrate(state, np.zeros((8, 6), "f4"), architecture="mlp")
print(new["bn1.running_var"], new.report.warnings, evenkeel.fold(state, architecture="mlp")["fc1.weight"])
evenkeel.recalibrate("a.onnx", "cifar10", "b.onnx").to_dict()
evenkeel.fold("a.onnx", "b.onnx").to_dict()
report = evenkeel.inspect(state)
print([report[name].gamma for name in report], "bn1" in report)
"""


@pytest.mark.skipif(shutil.which("mypy") is None, reason="mypy is not installed (apt install mypy)")
def test_annotations_are_strict_and_say_what_programs_get(tmp_path):
    pytest.importorskip("torch")
    package = pathlib.Path(__file__).resolve().parent.parent / "evenkeel"
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(["mypy", "--strict", "--cache-dir", tmp_path, package, program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
