#!/usr/bin/env python3
"""What the shared libraries show is what cmake/NAME.symbols lists, no more and no less: that is the interface of compiled programs.

  tests/exported_symbols.py LIBRARY...            compares; exit 77: nm is not installed
  tests/exported_symbols.py --update LIBRARY...   writes the lists anew
LIBRARY: libevenkeel.so, libevenkeel_norm.so, or a folder that holds them, such as build/release.
"""
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def libraries_of(word):
    path = pathlib.Path(word)
    if not path.is_dir():
        return [path]
    found = [next((p for p in (path / "shared" / name, path / name) if p.exists()), None) for name in ("libevenkeel.so", "libevenkeel_norm.so")]
    if None in found:
        sys.exit(f"exported_symbols: '{word}' lacks a library; build the targets evenkeel_shared (or evenkeel_lib) and evenkeel_norm")
    return found


def list_of(library):
    return ROOT / "cmake" / (library.name.split(".")[0].removeprefix("lib") + ".symbols")


def shown_by(library):
    """Functions as nm demangles them. Constructors are two symbols of one name; types' names and tables are shown with their class."""
    out = subprocess.run(["nm", "-DC", "--defined-only", str(library)], check=True, text=True, capture_output=True).stdout
    return sorted({line.split(maxsplit=2)[2] for line in out.splitlines()})


def compare(library):
    listed = [line for line in list_of(library).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    shown = shown_by(library)
    added, removed = sorted(set(shown) - set(listed)), sorted(set(listed) - set(shown))
    if not added and not removed:
        return True
    lines = [f"{library.name} and {list_of(library).relative_to(ROOT)} differ:"]
    lines += [f"  added    {name}" for name in added] + [f"  removed  {name}" for name in removed]
    if removed:
        lines.append("  A symbol that is gone breaks programs that were linked with it: EVENKEEL_SOVERSION in CMakeLists.txt rises (CONTRIBUTING.md).")
    lines.append(f"  If that is meant: tests/exported_symbols.py --update {library}")
    print("\n".join(lines), file=sys.stderr)
    return False


def main():
    words = [word for word in sys.argv[1:] if word != "--update"]
    if not words:
        print(__doc__, file=sys.stderr)
        return 2
    if not shutil.which("nm"):
        return 77
    libraries = [library for word in words for library in libraries_of(word)]
    if "--update" in sys.argv:
        for library in libraries:
            text = f"# What {library.name.split('.')[0]}.so shows; written by tests/exported_symbols.py --update.\n"
            list_of(library).write_text(text + "".join(name + "\n" for name in shown_by(library)), encoding="utf-8")
        return 0
    return 0 if all([compare(library) for library in libraries]) else 1


if __name__ == "__main__":
    sys.exit(main())
