"""The notebook-style examples run as they stand, with tiny settings."""
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FASHION = pathlib.Path("/usr/share/datasets/fashion-mnist")


def test_fashion_mnist(tmp_path):
    pytest.importorskip("matplotlib")
    if not FASHION.exists():
        pytest.skip("the package dataset-fashion-mnist is not installed")
    done = subprocess.run([sys.executable, ROOT / "examples/python/fashion_mnist.py", "--examples", "2000", "--epochs", "1", "--out", tmp_path],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 norms folded" in done.stdout
    names = ["answers.png", "learning_rates.png", "recalibrated.png", "running_statistics.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert all((ROOT / "examples/python/images" / name).stat().st_size < 100_000 for name in names)
