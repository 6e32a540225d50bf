#!/usr/bin/env python3
"""Completions in the shells themselves, and the man pages: every command and every option of docs/cli.md is there, and no other.

  tests/completion_test.py PROGRAM      a shell that is not installed is left out, by name (exit 77 where none is)
"""
import os
import pathlib
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def fail(message):
    sys.exit(f"completion_test: {message}")


def printed(*words):
    return subprocess.run([str(word) for word in words], text=True, capture_output=True, check=True).stdout


def options_by_command():
    """Command, "" for the program itself -> its options, as docs/cli.md shows them."""
    found = {}
    for section in re.split(r"^## evenkeel", (ROOT / "docs/cli.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        section = section.split("\n## ")[0]
        labels = re.findall(r"^\| `(-[^`]*)` \|", section, re.MULTILINE)
        found[section.split("\n")[0].strip()] = {word for label in labels for word in re.findall(r"(?:^|, )(--?[\w-]+)", label)}
    if len(found) < 15 or "--learning-rate" not in found["train"] or "-l" not in found["train"]:
        fail(f"docs/cli.md is not what this test expects: {found}")
    return found


def check(shell, command, offered, options):
    if set(offered) != options:
        fail(f"{shell}, `evenkeel {command} -`: not offered {sorted(options - set(offered))}, offered for nothing {sorted(set(offered) - options)}")


def check_choices(shell, complete, commands):
    top = {name.split()[0] for name in commands if name}
    schedules = {"constant", "step", "cosine", "one-cycle", "plateau"}
    codes = {f"EK11{digit}" for digit in range(10)}
    for line, expected in (("", top), ("tr", {"train"}), ("help ", top), ("data i", {"info"}), ("train --schedule co", {"constant", "cosine"}),
                           ("train --schedule=co", {"constant", "cosine"}), ("train --schedule=", schedules), ("explain EK11", codes),
                           ("explain EK101 EK11", codes), ("lab learning-r", {"learning-rate"})):
        # Of --option=value fish offers the whole word.
        found = {word.removeprefix("--schedule=") for word in complete(line)}
        if found != expected:
            fail(f"{shell}, `evenkeel {line}`: expected {sorted(expected)}, found {sorted(found)}")


def test_bash(program, commands, folder):
    script = folder / "evenkeel.bash"
    script.write_text(printed(program, "generate", "completion-bash"), encoding="utf-8")

    def complete(line):
        # Bash splits a word at =, which is a word of its own, and has no empty word behind it.
        pieces = [piece for word in line.split(" ") for piece in (re.split("(=)", word.removesuffix("=")) + ["="] * word.endswith("="))]
        words = " ".join(f"'{piece}'" for piece in ["evenkeel", *pieces])
        code = f"source {script}; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _evenkeel; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        return set(printed("bash", "-c", code).split())

    check_choices("bash", complete, commands)
    for line in ("--color=never tr", "--color never tr", "train --schedule=step --last-batch=m"):
        expected = {"merge"} if "=m" in line else {"train"}
        if complete(line) != expected:
            fail(f"bash, `evenkeel {line}`: expected {sorted(expected)}, found {sorted(complete(line))}")
    if "--data" not in complete("--color=never train --da"):
        fail("bash does not find the command behind --color=never")
    for command, options in commands.items():
        check("bash", command, complete(f"{command} -".strip()), options)


def test_fish(program, commands, folder):
    script = folder / "evenkeel.fish"
    script.write_text(printed(program, "generate", "completion-fish"), encoding="utf-8")

    def complete(line):
        out = printed("env", f"HOME={folder}", "fish", "--no-config", "-c", f"source {script}; complete -C 'evenkeel {line}'")
        return {row.split("\t")[0] for row in out.splitlines()}

    check_choices("fish", complete, commands)
    for command, options in commands.items():
        # fish offers long names behind -- and letters behind -.
        check("fish", command, complete(f"{command} --".strip()) | {w for w in complete(f"{command} -".strip()) if len(w) == 2}, options)


class Zsh:
    """A zsh at a terminal, whose completion system writes what it offers to a file: what a key press shows cannot be asked for otherwise."""

    def __init__(self, script, folder):
        self.offers = folder / "offers"
        (folder / ".zshrc").write_text(
            f"fpath=({script.parent} $fpath)\nautoload -Uz compinit\ncompinit -D -u\nPS1=READY\nzstyle ':completion:*' list-prompt ''\nLISTMAX=10000\n"
            # Calls that only sort into arrays (-O, -A, -D) are the system's own bookkeeping.
            "compadd() {\n  if [[ ${@[1,(i)(-|--)]} != *-(O|A|D)\\ * ]]; then\n    local -a offered\n"
            f"    builtin compadd -O offered \"$@\"\n    print -rl -- $offered >>{self.offers}\n  fi\n  builtin compadd \"$@\"\n}}\n"
            # The key marks the end of what it wrote.
            f"done-widget() {{ zle complete-word; print -r -- END >>{self.offers}; zle kill-whole-line }}\n"
            "zle -N done-widget\nbindkey '^I' done-widget\n", encoding="utf-8")
        pid, self.terminal = pty.fork()
        if pid == 0:
            os.environ.update(ZDOTDIR=str(folder), HOME=str(folder), TERM="dumb")
            os.execvp("zsh", ["zsh", "-d", "-i"])
        self.await_(lambda text: "READY" in text, from_file=False)

    def await_(self, is_done, from_file=True):
        seen, end = "", time.monotonic() + 60
        while time.monotonic() < end:
            if select.select([self.terminal], [], [], 0.02)[0]:
                seen += os.read(self.terminal, 65536).decode(errors="replace")
            text = (self.offers.read_text(encoding="utf-8") if self.offers.exists() else "") if from_file else seen
            if is_done(text):
                return text
        fail(f"zsh does not answer; on its terminal stands {seen!r}")

    def complete(self, line):
        self.offers.write_text("", encoding="utf-8")
        os.write(self.terminal, f"evenkeel {line}\t".encode())
        return {word for word in self.await_(lambda text: "END\n" in text).split() if word != "END"}


def test_zsh(program, commands, folder):
    script = folder / "functions/_evenkeel"
    script.parent.mkdir()
    script.write_text(printed(program, "generate", "completion-zsh"), encoding="utf-8")
    shell = Zsh(script, folder)
    check_choices("zsh", shell.complete, commands)
    for command, options in commands.items():
        # The = of options with a value is zsh's suffix.
        check("zsh", command, {word.rstrip("=") for word in shell.complete(f"{command} -".strip())}, options)


def test_man(program, commands):
    pages = printed(program, "generate", "man-pages").split()
    expected = {"evenkeel"} | {f"evenkeel-{name.replace(' ', '-')}" for name in [*commands, "data"] if name}
    if set(pages) != expected or len(pages) != len(expected):
        fail(f"man pages: expected {sorted(expected)}, found {pages}")
    for page in pages:
        command = page.removeprefix("evenkeel").replace("-", " ").split()
        source = printed(program, "generate", "man", *command)
        if not source.startswith(f".TH {page.upper()} 1 ".replace("-", "\\-")):
            fail(f"{page} begins with {source[:60]!r}")
        options = {word.replace("\\-", "-") for label in re.findall(r'^\.B "(\\-.*)"$', source, re.MULTILINE)
                   for word in re.findall(r"(?:^|, )((?:\\-){1,2}[\w\\-]+)", label)}
        if " ".join(command) in commands and options != commands[" ".join(command)]:
            fail(f"{page}: its options and those of docs/cli.md differ in {sorted(options ^ commands[' '.join(command)])}")
        if shutil.which("man"):
            done = subprocess.run(["man", "--warnings", "-E", "UTF-8", "-l", "-"], input=source, text=True, capture_output=True,
                                  env={**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8"}, check=False)
            if done.returncode != 0 or done.stderr or page.upper() not in done.stdout:
                fail(f"man has something to say of {page}: {done.stderr or done.stdout[:200]}")


def main():
    program = pathlib.Path(sys.argv[1]).resolve()
    commands = options_by_command()
    test_man(program, commands)
    tests = {"bash": test_bash, "fish": test_fish, "zsh": test_zsh}
    left_out = [shell for shell in tests if not shutil.which(shell)]
    for shell, test in tests.items():
        if shell not in left_out:
            with tempfile.TemporaryDirectory() as folder:
                test(program, commands, pathlib.Path(folder))
    if left_out:
        print(f"completion_test: left out, not installed: {', '.join(left_out)} (scripts/install_deps.sh packages)", file=sys.stderr)
    return 77 if len(left_out) == len(tests) else 0


if __name__ == "__main__":
    sys.exit(main())
