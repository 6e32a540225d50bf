"""The annotations of the package, which is marked as typed, are those of what it does."""
import pathlib
import shutil
import subprocess

import pytest


@pytest.mark.skipif(shutil.which("mypy") is None, reason="mypy is not installed (apt install mypy)")
def test_annotations_are_strict(tmp_path):
    pytest.importorskip("torch")
    package = pathlib.Path(__file__).resolve().parent.parent / "evenkeel"
    done = subprocess.run(["mypy", "--strict", "--cache-dir", tmp_path, package], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
