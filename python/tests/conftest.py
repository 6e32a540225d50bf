"""Tests of the Python package. Run by ctest (python_test), or: PYTHONPATH=build/release/python python3 -m pytest python/tests"""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))  # norm_oracle
