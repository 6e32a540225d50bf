"""Builds the extension evenkeel._core with CMake; everything else is in pyproject.toml.

EVENKEEL_CMAKE_ARGS in the environment adds options to CMake's, such as "-DEVENKEEL_MPI=ON".
"""
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = pathlib.Path(__file__).resolve().parent
DEBIAN = ("g++ cmake ninja-build libdnnl-dev ocl-icd-opencl-dev libhwy-dev libcli11-dev nlohmann-json3-dev libtomlplusplus-dev "
          "libfmt-dev zlib1g-dev libpng-dev libjpeg62-turbo-dev libprotobuf-dev protobuf-compiler libonnx-dev libjs-chart.js "
          "pybind11-dev python3-dev")


def version():
    text = (ROOT / "evenkeel/version.h").read_text(encoding="utf-8")
    return re.search(r'#define EVENKEEL_VERSION "([^"]+)"', text).group(1)


def give_up(what):
    sys.exit(f"evenkeel: {what}\nevenkeel's C++ libraries come from the system; on Debian or Ubuntu:\n  apt install {DEBIAN}")


class CMakeBuild(build_ext):
    """One CMake build folder below setuptools' own, of the target evenkeel_python alone."""

    def build_extension(self, ext):
        if shutil.which("cmake") is None:
            give_up("CMake is not installed.")
        folder = pathlib.Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "EVENKEEL_PYTHON": "ON",
            "EVENKEEL_TESTS": "OFF",
            "EVENKEEL_BENCHMARKS": "OFF",
            "EVENKEEL_MPI": "OFF",  # a wheel that is carried elsewhere should not ask for one MPI
            "Python3_EXECUTABLE": sys.executable,
        }
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        configured = subprocess.run(
            ["cmake", "-S", str(ROOT), "-B", str(folder), *generator, *(f"-D{name}={value}" for name, value in options.items()),
             *shlex.split(os.environ.get("EVENKEEL_CMAKE_ARGS", ""))],
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        sys.stdout.write(configured.stdout)
        if configured.returncode != 0:
            missing = re.search(r'package configuration file provided by "([^"]+)"|Could NOT find (\w+)', configured.stdout)
            name = next(filter(None, missing.groups())) if missing else ""
            give_up(f"{name} is not found." if name else "CMake could not configure the build; its last words stand above.")
        if "no Python package" in configured.stdout:
            give_up("pybind11 or Python's headers are not found.")
        jobs = str(self.parallel or os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or len(os.sched_getaffinity(0)))
        subprocess.run(["cmake", "--build", str(folder), "--target", "evenkeel_python", "--parallel", jobs], check=True)
        built = next((folder / "python/evenkeel").glob("_core*.so"))
        target = pathlib.Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(built, target)
        if shutil.which("strip"):
            subprocess.run(["strip", "--strip-unneeded", str(target)], check=True)


setup(version=version(), ext_modules=[Extension("evenkeel._core", sources=[])], cmdclass={"build_ext": CMakeBuild})
