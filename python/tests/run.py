#!/usr/bin/env python3
"""Runs the tests of the Python package; ctest's python_test.

  PYTHONPATH=build/release/python python/tests/run.py [OPTIONS OF PYTEST]

Exit 77: pytest or NumPy is not there. Without PyTorch its tests are skipped, and named.
"""
import importlib.util
import pathlib
import sys


def main():
    for module, package in (("pytest", "python3-pytest"), ("numpy", "python3-numpy")):
        if importlib.util.find_spec(module) is None:
            print(f"python_test: {module} is not installed (apt install {package})", file=sys.stderr)
            return 77
    import pytest
    folder = pathlib.Path(__file__).resolve().parent
    # -rs names what was skipped. No cache: the source folder stays as it is.
    return pytest.main(["-q", "-rs", "-p", "no:cacheprovider", str(folder), *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
