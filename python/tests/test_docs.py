"""docs/python.md is true: its ```python blocks run, in order and in one namespace, and print what the ```text block behind them says."""
import contextlib
import io
import pathlib
import re

import pytest

pytest.importorskip("numpy")
pytest.importorskip("torch")

PAGE = pathlib.Path(__file__).resolve().parent.parent.parent / "docs/python.md"
# A block, and what it prints where that follows.
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)


def test_the_blocks_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    space, count = {}, 0
    for match in BLOCK.finditer(text):
        line = text[:match.start()].count("\n") + 2
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile("\n" * (line - 1) + match.group(1), str(PAGE), "exec"), space)
        count += 1
        if match.group(2) is not None:
            assert out.getvalue() == match.group(2), f"docs/python.md:{line}"
    assert count >= 4
