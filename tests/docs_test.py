#!/usr/bin/env python3
"""The documents are true: shell blocks of README.md and of the pages below run and print what they show, their C++ compiles; equations, tests
and files that are cited exist.

  tests/docs_test.py [PROGRAM [PAGE.md...]]     PROGRAM (else EVENKEEL_PROGRAM): the built evenkeel; exit 77: something it needs is not here

Pages: README.md, those of PAGES, or "others": PAGES without the guide; without any, all of them.

A block is executed when its fence says ```sh; "```sh exit=2" expects that exit code of its last command. All blocks of a page run in order
in one empty folder; those of the README in a copy of the house as a reader has it after the build, whose `train` stops after two
steps. "```sh needs=torch" is left out where no
python3 has PyTorch. A fence ```text output behind a block holds lines that it prints, in this order; "..." stands for any number of others.
DOCS_TEST_VERBOSE=1 shows what they print.
"""
import functools
import os
import pathlib
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
# Pages whose shell blocks run. The others have tests of their own (embedding.md, kernel_api.md, python.md), or need data of ../shared.
PAGES = ["guide.md", "start.md", "how-it-works.md", "for-pytorch-users.md", "for-keras-users.md", "for-cpp-users.md", "recipes.md", "faq.md"]
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?")
failures = []
written_here = True  # this machine has the instruction set of the one that the pages' outputs come from


def fail(message):
    failures.append(message)
    print(f"docs_test: {message}", file=sys.stderr)


def sources(pattern):
    return sorted((ROOT / "evenkeel").rglob(pattern))


def check_equations():
    """Every number that a comment cites is that of an equation in docs/math.md."""
    text = (DOCS / "math.md").read_text(encoding="utf-8")
    defined = [int(n) for n in re.findall(r"^ {4}.*\((\d+)\)$", text, re.MULTILINE)]
    if defined != list(range(1, len(defined) + 1)):
        fail(f"docs/math.md: the equations are not numbered 1, 2, 3, ...: {defined}")
    for file in sources("*.h") + sources("*.cc"):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            for cited in re.findall(r"\beqs?\. ([0-9][0-9, \-]*)", line):
                for n in re.findall(r"\d+", cited):
                    if int(n) not in defined:
                        fail(f"{file.relative_to(ROOT)}:{number}: cites eq. {n}, which docs/math.md does not have")
    return len(defined)


def check_named_tests():
    """Every `Suite.test_name` and `tests/file` in the documents exists."""
    known = set()
    for file in sources("*_test.cc"):
        for suite, name in re.findall(r"\bTEST(?:_F|_P)?\(\s*(\w+),\s*(\w+)\s*\)", file.read_text(encoding="utf-8")):
            known.add(f"{suite}.{name}")
    for file in (ROOT / "tests").glob("*_test.py"):
        known.update(re.findall(r"def (test_\w+)\(self", file.read_text(encoding="utf-8")))
    count = 0
    for file in sorted(DOCS.glob("*.md")):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            for name in re.findall(r"`([A-Z]\w+\.[a-z]\w*_\w+|test_\w+(?:_\w+){3,})`", line):
                count += 1
                if name not in known:
                    fail(f"{file.relative_to(ROOT)}:{number}: there is no test {name}")
            for path in re.findall(r"`((?:tests|docs|scripts|cmake|evenkeel|bench)/[\w./-]+)`", line):
                if not (ROOT / path).exists() and "/x" not in path:
                    fail(f"{file.relative_to(ROOT)}:{number}: there is no {path}")
    return count


def check_cpp(path):
    """The C++ blocks compile against the public headers."""
    compiler = next((c for c in ("g++", "clang++", "c++") if shutil.which(c)), None)
    text = path.read_text(encoding="utf-8")
    for match in re.finditer(r"^```cpp\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if compiler is None:
            continue
        command = [compiler, "-std=c++20", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{ROOT}", "-x", "c++", "-"]
        done = subprocess.run(command,
                              input=match.group(1), text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            fail(f"{path.relative_to(ROOT)}:{text[:match.start()].count(chr(10)) + 1}: does not compile:\n{done.stdout}")


def anchor(heading):
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def check_links():
    for file in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]:
        text = re.sub(r"^```.*?^```", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, part = target.partition("#")
            other = (file.parent / path).resolve() if path else file
            if not other.exists():
                fail(f"{file.relative_to(ROOT)}: the link {target} leads nowhere")
            elif part and other.suffix == ".md":
                headings = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), re.MULTILINE)
                if part not in [anchor(h) for h in headings]:
                    fail(f"{file.relative_to(ROOT)}: the link {target} names no heading")


def check_options():
    """Every --option of a command of evenkeel in a document is one that the command line has."""
    known = set(re.findall(r"--[a-z][a-z0-9-]*", (DOCS / "cli.md").read_text(encoding="utf-8")))
    commands = "train|eval|recalibrate|inspect|diff|fold|explain|predict|convert|data|plan|report|lab"
    for file in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            for command in re.findall(rf"\bevenkeel (?:{commands})\b([^`|;#]*)", line):
                for option in re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", command):
                    if option not in known:
                        fail(f"{file.relative_to(ROOT)}:{number}: evenkeel has no option {option}")


def blocks_of(path):
    """(line, expected exit code, module of Python that it needs, commands, lines it prints) of each shell block."""
    text = path.read_text(encoding="utf-8")
    for match in re.finditer(r"^```sh(?: exit=(\d+))?(?: needs=(\w+))?\n(.*?)^```$(?:\n+^```text output\n(.*?)^```$)?", text, re.MULTILINE | re.DOTALL):
        yield text[:match.start()].count("\n") + 1, int(match.group(1) or 0), match.group(2), match.group(3), (match.group(4) or "").splitlines()


def same_number(shown, found, word, next_word):
    """Runs have the same bits on one class of instruction sets. On another they drift apart by rounding, a short run by points: 4 points of a
    percentage, a quarter of any other number that has a fraction. Times and speeds are those of a machine, and not compared. Whole numbers
    (counts, and which channel is the furthest) are equal where the pages were written, on AVX-512."""
    if re.search(r"\d(m|n|u|µ)?s$|/s$", word) or next_word in ("s", "ms", "images/s", "s,", "s)"):
        return True
    if not re.search(r"[.e]", shown + found):
        return shown == found or not written_here
    a, b = float(shown), float(found)
    if word.endswith("%") or next_word.startswith("%"):
        return abs(a - b) <= 4
    return abs(a - b) <= 0.25 * max(abs(a), abs(b)) + 0.03


def same_line(shown, found):
    """The same words, and numbers that are close."""
    words, others = shown.split(), found.split()
    if [NUMBER.sub("#", w) for w in words] != [NUMBER.sub("#", w) for w in others]:
        return False
    return all(same_number(a, b, word, following)
               for word, other, following in zip(words, others, [*words[1:], ""])
               for a, b in zip(NUMBER.findall(word), NUMBER.findall(other)))


def first_missing(shown, printed):
    """The first line of `shown` that is not among `printed`, in order and without gaps but at "..."; None: all are there."""
    places = [-1]  # where the last line may have stood
    gap = True
    for line in shown:
        if line.strip() == "...":
            gap = True
            continue
        fits = [i for i, other in enumerate(printed) if same_line(line, other)]
        places = [i for i in fits if any((i > place) if gap else (i == place + 1) for place in places)]
        if not places:
            return line
        gap = False
    return None


def check_the_comparison():
    """What the comparison of outputs is for: it finds what differs."""
    printed = ["training 3.1 s", "", "running 0.51 81.62 %", "batch 0.49 82.00 %"]
    for shown, missing in ((["running 0.50 83.1 %", "batch 0.49 82.00 %"], None), (["training 9.9 s", "...", "batch 0.49 82.00 %"], None),
                           (["running 0.50 89.1 %"], "running 0.50 89.1 %"), (["training 3.1 s", "batch 0.49 82.00 %"], "batch 0.49 82.00 %"),
                           (["walking 0.51 81.62 %"], "walking 0.51 81.62 %"), (["batch 0.80 82.00 %"], "batch 0.80 82.00 %")):
        if first_missing(shown, printed) != missing:
            fail(f"the comparison of outputs says {first_missing(shown, printed)!r} of {shown}")


def png_bytes(width, height):
    """A grey picture with a bright square."""
    rows = b"".join(b"\0" + bytes(200 if 8 <= x < 20 and 8 <= y < 20 else 0 for x in range(width)) for y in range(height))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def lay_out_house(folder, program):
    """What the README speaks of: ./run, build/release/evenkeel, a picture and a table."""
    folder = pathlib.Path(folder)
    (folder / "build/release").mkdir(parents=True)
    short = folder / "build/release/evenkeel"
    short.write_text(f'#!/bin/bash\nif [[ $1 == train ]]; then set -- "$@" --max-steps 2; fi\nexec {shlex.quote(str(program))} "$@"\n')
    run = folder / "run"
    run.write_text('#!/bin/bash\nexec build/release/evenkeel train "$@"\n')
    for script in (short, run):
        script.chmod(0o755)
    (folder / "shirt.png").write_bytes(png_bytes(28, 28))
    rows = [f"{5 + i % 3},{3 + i % 2},{1 + i % 5},{i % 4},{('setosa', 'versicolor', 'virginica')[i % 3]}" for i in range(60)]
    (folder / "iris.csv").write_text("\n".join(["sl,sw,pl,pw,species", *rows]) + "\n")


@functools.cache
def python_with(module):
    """A python3 that has the module: that of the tests, or Debian's; None: neither."""
    for python in (sys.executable, "/usr/bin/python3"):
        if os.access(python, os.X_OK) and subprocess.run([python, "-c", f"import {module}"], stderr=subprocess.DEVNULL, check=False).returncode == 0:
            return python
    return None


def run_blocks(path, program, prepare=lambda folder: None):
    folder = tempfile.mkdtemp(prefix="evenkeel-docs-")
    prepare(folder)
    environment = {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "LC_ALL": "C.UTF-8",
                   "OMP_WAIT_POLICY": "passive"}  # other tests run beside this one
    count = 0
    try:
        for line, expected, module, commands, shown in blocks_of(path):
            if module:
                if python_with(module) is None:
                    print(f"docs_test: SKIPPED {path.relative_to(ROOT)}:{line}: no python3 here has {module}", file=sys.stderr)
                    continue
                commands = f"python3() {{ {python_with(module)} \"$@\"; }}\n" + commands
            start = time.monotonic()
            # pipefail is off on purpose: `head` ends early and the writer before it gets SIGPIPE.
            done = subprocess.run(["bash", "-eu", "-c", commands], cwd=folder, env=environment, text=True, timeout=300,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
            count += 1
            print(f"{path.relative_to(ROOT)}:{line}: exit {done.returncode}, {time.monotonic() - start:.1f} s")
            if os.environ.get("DOCS_TEST_VERBOSE"):
                print(done.stdout)
            if done.returncode != expected:
                fail(f"{path.relative_to(ROOT)}:{line}: expected exit code {expected}, found {done.returncode}:\n"
                     f"{commands}\n{done.stdout}")
                break  # what follows may need what this made
            missing = first_missing(shown, done.stdout.splitlines())
            if missing is not None:
                fail(f"{path.relative_to(ROOT)}:{line}: shows the line\n{missing}\nand prints\n{done.stdout}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return count


def main():
    equations, tests = check_equations(), check_named_tests()
    check_links()
    check_options()
    check_the_comparison()
    pages = sys.argv[2:] or ["README.md", *PAGES]
    if pages == ["others"]:
        pages = PAGES[1:]
    paths = [ROOT / page if page == "README.md" else DOCS / page for page in pages]
    for path in paths:
        check_cpp(path)
    print(f"docs_test: {equations} equations, {tests} tests named in the documents")
    program = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("EVENKEEL_PROGRAM", "")
    missing = ""
    if not program or not os.access(program, os.X_OK):
        missing = f"no program '{program}'"
    elif not pathlib.Path("/usr/share/datasets/fashion-mnist").is_dir():
        missing = "Fashion-MNIST is not installed"
    if not missing:
        program = pathlib.Path(program).resolve()
        global written_here
        written_here = "AVX3" in subprocess.run([program, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
        house = {"README.md": lambda folder: lay_out_house(folder, program)}
        blocks = sum(run_blocks(path, program, house.get(path.name, lambda folder: None)) for path in paths)
        print(f"docs_test: {blocks} blocks of {', '.join(pages)} run")
    if failures:
        return 1
    if missing:
        print(f"docs_test: {missing}: the blocks were left out", file=sys.stderr)
        return 77
    return 0


if __name__ == "__main__":
    sys.exit(main())
