#!/usr/bin/env python3
"""The examples and the guide of the kernel API run as they are written, against the library of the tree and an installed one.

  tests/examples_test.py c LIBRARY COMPILER              examples/c and tests/norm_c99.c; what the library shows
  tests/examples_test.py python LIBRARY                  examples/python; exit 77: no Python with NumPy here
  tests/examples_test.py guide LIBRARY COMPILER          the programs of docs/kernel_api.md, and what they print
  tests/examples_test.py install LIBRARY COMPILER BUILD  examples/c by pkg-config, a C++ program by find_package

LIBRARY: libevenkeel_norm.so; COMPILER: that of C++, whose name gives that of C.
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs/kernel_api.md"
C_FLAGS = ["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror"]
CPP_FLAGS = ["-std=c++20", "-Wall", "-Wextra", "-Wconversion", "-Werror"]


def fail(message):
    sys.exit(f"examples_test: {message}")


def run(command, folder=None, **environment):
    """What a command prints; its failure is the test's."""
    done = subprocess.run([str(word) for word in command], cwd=folder, env={**os.environ, **environment}, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        fail(f"exit code {done.returncode} of {' '.join(str(word) for word in command)}:\n{done.stdout}")
    return done.stdout


def c_compiler(cpp_compiler):
    name = re.sub(r"clang\+\+", "clang", re.sub(r"g\+\+", "gcc", pathlib.Path(cpp_compiler).name))
    beside = pathlib.Path(cpp_compiler).with_name(name)
    return str(beside) if beside.exists() and name != pathlib.Path(cpp_compiler).name else "cc"


def link_flags(library):
    folder = pathlib.Path(library).parent
    return [f"-I{ROOT}", f"-L{folder}", f"-Wl,-rpath,{folder}", "-levenkeel_norm"]


def check_example(printed, where):
    """Rows 1 to 4 are 1 to 4 and 10 to 40: (x - mean) / std is -1.3416, -0.4472, 0.4472, 1.3416 in both columns."""
    y = [[float(v) for v in re.findall(r"y +(\S+) +(\S+)", line)[0]] for line in printed.splitlines() if "dx" in line]
    expected = [[0, 0], [0, 0.1056], [0.4472, 1.8944], [1.3416, 3.6833]]
    if len(y) != 4 or any(abs(a - b) > 2e-4 for row, row_expected in zip(y, expected) for a, b in zip(row, row_expected)):
        fail(f"{where} printed\n{printed}")


def test_c(library, compiler):
    with tempfile.TemporaryDirectory() as folder:
        example, c99 = (pathlib.Path(folder) / name for name in ("norm", "norm_c99"))
        run([c_compiler(compiler), *C_FLAGS, ROOT / "examples/c/norm.c", "-o", example, *link_flags(library)])
        check_example(run([example]), "examples/c/norm.c")
        # -rdynamic: its malloc is the library's, too.
        run([c_compiler(compiler), *C_FLAGS, "-rdynamic", ROOT / "tests/norm_c99.c", "-o", c99, *link_flags(library), "-lm"])
        run([c99])
    lines = (ROOT / "examples/c/norm.c").read_text(encoding="utf-8").count("\n")
    if lines > 35:
        fail(f"examples/c/norm.c has {lines} lines: it is to be read at a glance")
    if shutil.which("nm"):
        shown = {line.split(maxsplit=2)[2] for line in run(["nm", "-DC", "--defined-only", library]).splitlines()}
        wrong = [name for name in shown if not re.match(r"ek_norm_|evenkeel::(norm_|version\(\))", name)]
        if wrong:
            fail(f"the library shows more than its functions: {wrong}")
        declared = set(re.findall(r"\b(ek_norm_\w+)\(", (ROOT / "evenkeel_norm.h").read_text(encoding="utf-8")))
        if declared != {name for name in shown if name.startswith("ek_")}:
            fail(f"declared and shown differ: {declared ^ {name for name in shown if name.startswith('ek_')}}")


def python_with(modules):
    """Debian's Python sees Debian's packages; the one that runs this may be another."""
    for interpreter in dict.fromkeys((sys.executable, "/usr/bin/python3")):
        if shutil.which(interpreter) and subprocess.run([interpreter, "-c", f"import {modules}"],
                                                        stderr=subprocess.DEVNULL).returncode == 0:
            return interpreter
    return None


def test_python(library):
    interpreter = python_with("numpy, torch") or python_with("numpy")
    if interpreter is None:
        print("examples_test: no Python with NumPy here", file=sys.stderr)
        sys.exit(77)
    printed = run([interpreter, ROOT / "examples/python/norm_ctypes.py", library])
    print(printed)
    if "from NumPy in double" not in printed or "refused, as it should be" not in printed:
        fail("norm_ctypes.py left checks out")
    if "from PyTorch" not in printed and "no PyTorch: skipped that check" not in printed:
        fail("norm_ctypes.py neither compares with PyTorch nor says that it does not")


def test_guide(library, compiler):
    """Every c, cpp and python block is a whole program; a text block behind it is what it prints."""
    text = GUIDE.read_text(encoding="utf-8")
    count = 0
    for match in re.finditer(r"^```(c|cpp|python)\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?", text, re.MULTILINE | re.DOTALL):
        language, program, expected = match.groups()
        where = f"docs/kernel_api.md:{text[:match.start()].count(chr(10)) + 1}"
        with tempfile.TemporaryDirectory() as folder:
            source = pathlib.Path(folder) / f"program.{language}"
            source.write_text(program, encoding="utf-8")
            if language == "python":
                interpreter = python_with("numpy")
                if interpreter is None:
                    print(f"{where}: no Python with NumPy here: left out")
                    continue
                command = [interpreter, source]
            else:
                command = [source.with_suffix("")]
                tool = [c_compiler(compiler), *C_FLAGS] if language == "c" else [compiler, *CPP_FLAGS]
                run([*tool, source, "-o", command[0], *link_flags(library), "-lm"])
            printed = run(command, folder, LD_LIBRARY_PATH=str(pathlib.Path(library).parent))
        count += 1
        print(f"{where}: a program in {language}, {len(program.splitlines())} lines")
        if expected is not None and printed != expected:
            fail(f"{where}: expected\n{expected}\nfound\n{printed}")
    if count == 0:
        fail("docs/kernel_api.md has no programs")


def test_install(compiler, build):
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(temporary)
        run(["cmake", "--install", build, "--prefix", work / "first", "--component", "evenkeel_norm"])
        prefix = (work / "first").rename(work / "moved")  # nothing in it may know where it was
        headers = sorted(p.relative_to(prefix).as_posix() for p in prefix.rglob("*.h"))
        if headers != [f"include/{name}" for name in
                       ("evenkeel/export.h", "evenkeel/norm.h", "evenkeel/version.h", "evenkeel_norm.h")]:
            fail(f"installed headers: {headers}")
        library = next(prefix.rglob("libevenkeel_norm.so")).parent
        environment = {"LD_LIBRARY_PATH": str(library), "PKG_CONFIG_PATH": str(library / "pkgconfig")}
        (work / "consumer").mkdir()
        (work / "consumer/CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.25)\nproject(consumer LANGUAGES CXX)\n"
            "find_package(evenkeel_norm 0.1 CONFIG REQUIRED)\nset(CMAKE_CXX_STANDARD 20)\n"
            "add_executable(consumer main.cc)\ntarget_link_libraries(consumer PRIVATE evenkeel::norm)\n")
        (work / "consumer/main.cc").write_text(
            "#include <evenkeel/norm.h>\n#include <evenkeel/version.h>\n#include <cstdio>\n"
            "int main() {\n  const float x[] = {1, 3};\n  evenkeel::NormMoments m[1];\n"
            "  evenkeel::norm_moments({.n = 2, .c = 1}, x, m);\n"
            '  std::printf("%s %g %g\\n", evenkeel::version(), m[0].mean, m[0].m2);\n}\n')
        run(["cmake", "-S", work / "consumer", "-B", work / "build", "-G", "Ninja", f"-DCMAKE_CXX_COMPILER={compiler}",
             f"-DCMAKE_PREFIX_PATH={prefix}"])
        run(["cmake", "--build", work / "build"])
        version = re.search(r'EVENKEEL_VERSION "(.*)"', (ROOT / "evenkeel/version.h").read_text(encoding="utf-8"))[1]
        printed = run([work / "build/consumer"], **environment)
        if printed != f"{version} 2 2\n":
            fail(f"the consumer by find_package printed {printed!r}")
        if not shutil.which("pkg-config"):
            print("examples_test: pkg-config is not here: its half was left out", file=sys.stderr)
            sys.exit(77)
        flags = run(["pkg-config", "--cflags", "--libs", "evenkeel_norm"], **environment).split()
        run([c_compiler(compiler), *C_FLAGS, ROOT / "examples/c/norm.c", "-o", work / "norm", *flags])
        check_example(run([work / "norm"], **environment), "examples/c/norm.c by pkg-config")


def main():
    words = sys.argv[1:]
    if len(words) == 3 and words[0] == "c":
        test_c(*words[1:])
    elif len(words) == 2 and words[0] == "python":
        test_python(words[1])
    elif len(words) == 3 and words[0] == "guide":
        test_guide(*words[1:])
    elif len(words) == 4 and words[0] == "install":
        test_install(*words[2:])
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
