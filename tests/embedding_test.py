#!/usr/bin/env python3
"""Inference in programs of others: examples/ and the programs of docs/embedding.md run as they are written, on a shared library.

  tests/embedding_test.py shown LIBRARY COMPILER PROGRAM   what the library shows is what the headers declare
  tests/embedding_test.py c LIBRARY COMPILER PROGRAM       examples/c/inference.c and tests/inference_c99.c
  tests/embedding_test.py cpp LIBRARY COMPILER PROGRAM     examples/cpp/inference.cc
  tests/embedding_test.py guide LIBRARY COMPILER PROGRAM   the programs of docs/embedding.md, and what they print

LIBRARY: libevenkeel.so; COMPILER: that of C++, whose name gives that of C; PROGRAM: evenkeel, which makes the model.
"""
import pathlib
import random
import re
import shutil
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from examples_test import C_FLAGS, CPP_FLAGS, ROOT, c_compiler, fail, run  # noqa: E402

GUIDE = ROOT / "docs/embedding.md"
MOST_LINES = 40  # of an example: it is to be read at a glance


def make_models(program, folder):
    """model.safetensors, model.onnx and weights.safetensors: a network for images of 3 x 32 x 32, trained for a moment."""
    numbers = random.Random(1)
    (folder / "images.bin").write_bytes(b"".join(bytes([i % 10]) + numbers.randbytes(3072) for i in range(80)))
    run([program, "train", "--data", folder / "images.bin", "--model", "cnn", "--batch-size", "20", "--max-steps", "4",
         "--out", folder / "run", "--quiet"])
    shutil.copy(folder / "run/model.safetensors", folder / "model.safetensors")
    for name in ("model.onnx", "weights.safetensors"):
        run([program, "convert", folder / "model.safetensors", "-o", folder / name])


def link_flags(library):
    folder = pathlib.Path(library).resolve().parent
    return [f"-I{ROOT}", f"-L{folder}", f"-Wl,-rpath,{folder}", "-levenkeel"]


def compiled(source, target, library, compiler, *more):
    c = pathlib.Path(source).suffix == ".c"
    tool = [c_compiler(compiler), *C_FLAGS] if c else [compiler, *CPP_FLAGS]
    run([*tool, *more, source, "-o", target, *link_flags(library), "-lm", "-pthread"])
    return target


def few_lines(source):
    lines = source.read_text(encoding="utf-8").count("\n")
    if lines > MOST_LINES:
        fail(f"{source} has {lines} lines: it is to be read at a glance")


def values(line):
    name, numbers = line.split(":")
    if name != "logits":
        fail(f"expected logits, found {line!r}")
    return [float(v) for v in numbers.split()]


def check_same(printed, rows):
    lines = printed.splitlines()
    if len(lines) != rows or len(set(lines)) != 1 or len(values(lines[0])) != 10 or len(set(values(lines[0]))) < 5:
        fail(f"expected {rows} equal rows of 10 logits, found\n{printed}")
    return values(lines[0])


def test_shown(library, compiler, program, folder):
    if not shutil.which("nm"):
        sys.exit(77)
    shown = {line.split(maxsplit=2)[2] for line in run(["nm", "-DC", "--defined-only", library]).splitlines()}
    public = r"ek_|evenkeel::(norm_\w+|version|train_network|(inspect|fold|recalibrate|diff|convert)_model\w*|inspect_tensors|explain(_all)?|(SavedModel|InferenceModel|InferenceContext)::(?!State)[~\w=]+)(\[abi:\w+\])?\("
    wrong = sorted(name for name in shown if not re.match(public, name.replace("operator=", "=")))
    if wrong:
        fail(f"the library shows {len(wrong)} names that are not public, the first {wrong[:8]}")
    declared = set()
    for header in ("evenkeel.h", "evenkeel_norm.h"):
        text = re.sub(r"//.*", "", (ROOT / header).read_text(encoding="utf-8"))
        declared |= set(re.findall(r"\b(ek_\w+)\(", text))
    found = {name for name in shown if name.startswith("ek_")}
    if declared != found:
        fail(f"declared and shown differ: {sorted(declared ^ found)}")
    for name in ("SavedModel::predict", "InferenceModel::InferenceModel", "InferenceContext::run", "train_network", "norm_moments"):
        if not any(symbol.startswith(f"evenkeel::{name}(") for symbol in shown):
            fail(f"the library does not show evenkeel::{name}")


def test_c(library, compiler, program, folder):
    few_lines(ROOT / "examples/c/inference.c")
    make_models(program, folder)
    example = compiled(ROOT / "examples/c/inference.c", folder / "example", library, compiler)
    one = check_same(run([example, folder / "model.onnx"]), 1)
    four = check_same(run([example, folder / "model.safetensors", "4"]), 1)
    if any(abs(a - b) > 2e-4 for a, b in zip(one, four)):
        fail(f"one and four examples, ONNX and safetensors: {one} and {four}")
    # In C99, but for the threads of POSIX.
    c99 = compiled(ROOT / "tests/inference_c99.c", folder / "c99", library, compiler, "-D_POSIX_C_SOURCE=200112L")
    run([c99, folder / "model.onnx", folder / "weights.safetensors"])


def test_cpp(library, compiler, program, folder):
    few_lines(ROOT / "examples/cpp/inference.cc")
    make_models(program, folder)
    example = compiled(ROOT / "examples/cpp/inference.cc", folder / "example", library, compiler)
    check_same(run([example, folder / "model.onnx", "3"]), 2)


def test_guide(library, compiler, program, folder):
    """Every c and cpp block is a whole program that finds the models beside it; a text block behind it is what it prints."""
    make_models(program, folder)
    text = GUIDE.read_text(encoding="utf-8")
    count = 0
    for match in re.finditer(r"^```(c|cpp)\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?", text, re.MULTILINE | re.DOTALL):
        language, source, expected = match.groups()
        where = f"docs/embedding.md:{text[:match.start()].count(chr(10)) + 1}"
        path = folder / f"program{count}.{language}"
        path.write_text(source, encoding="utf-8")
        printed = run([compiled(path, path.with_suffix(""), library, compiler)], folder)
        count += 1
        print(f"{where}: a program in {language}, {len(source.splitlines())} lines")
        if expected is not None and printed != expected:
            fail(f"{where}: expected\n{expected}\nfound\n{printed}")
    if count == 0:
        fail("docs/embedding.md has no programs")


def main():
    tests = {"shown": test_shown, "c": test_c, "cpp": test_cpp, "guide": test_guide}
    words = sys.argv[1:]
    if len(words) != 4 or words[0] not in tests:
        print(__doc__, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        tests[words[0]](*words[1:], pathlib.Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
