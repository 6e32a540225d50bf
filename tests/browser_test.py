#!/usr/bin/env python3
"""Pages in a real browser, without a window: nothing on the console, nothing fetched, charts drawn, usable on a phone and in print.

  tests/browser_test.py [PROGRAM] [PAGE.html...]     PROGRAM: build/release/evenkeel, or what EVENKEEL_PROGRAM says

Without pages: the reports of a run with all that a log can hold, of one that was killed at its beginning, of three runs, and of a table; with
pages, those. Exit 77: chromium is not here.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from command_line import write_csv  # noqa: E402
from devtools import Browser, BrowserError, find_chromium  # noqa: E402
from report_test import write_log  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = os.environ.get("EVENKEEL_PROGRAM") or str(ROOT / "build/release/evenkeel")
WIDTHS = (400, 1600)

# Colours of a canvas: how many, and a sum over its pixels by which two drawings are told apart. One that is not drawn has none.
LOOK = """
  const look = (canvas) => {
    if (canvas.width === 0 || canvas.height === 0) return {colours: 0, sum: 0};
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', {willReadFrequently: true});
    copy.drawImage(canvas, 0, 0);
    const pixels = new Uint32Array(copy.getImageData(0, 0, canvas.width, canvas.height).data.buffer);
    let sum = 0;
    for (const p of pixels) sum = (sum * 31 + p) >>> 0;
    return {colours: new Set(pixels).size, sum};
  };
  const canvases = [...document.querySelectorAll('canvas')];
  const drawn = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 20))));
"""
# As a reader comes upon them.
LOOK_AT_ALL = "(async () => {" + LOOK + """
  const found = [];
  for (const canvas of canvases) {
    canvas.scrollIntoView({block: 'center'});
    await drawn();
    found.push({...look(canvas), title: canvas.getAttribute('aria-label'), width: canvas.getBoundingClientRect().width,
                right: canvas.getBoundingClientRect().right});
  }
  scrollTo(0, 0);
  await drawn();
  return found;
})()"""
LOOK_AT_ONCE = "(() => {" + LOOK + "return canvases.map(look); })()"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"

failures = []


def check(good, message):
    if not good:
        failures.append(message)
        print(f"browser_test: {message}", file=sys.stderr)


def brightness(colour):
    """Of 'rgb(r, g, b)', from 0 to 255."""
    return sum(float(x) for x in colour[colour.index("(") + 1:-1].split(",")[:3]) / 3


def check_charts(page, name):
    looks = page.evaluate(LOOK_AT_ALL)
    for look in looks:
        # Axes, grid and text with their smoothed edges are dozens of colours; a page of another program's fault would be one.
        check(look["colours"] > 8, f"{name}: the chart '{look['title']}' has {look['colours']} colours")
    return looks


def check_width(page, width, name):
    page.resize(width, 900)
    page.settle()
    wide = page.evaluate("document.documentElement.scrollWidth")
    check(wide <= width, f"{name}: {wide} pixels wide where there are {width}")
    looks = check_charts(page, f"{name} at {width}")
    for look in looks:
        check(look["right"] <= width and look["width"] > 200,
              f"{name} at {width}: the chart '{look['title']}' is {look['width']} wide and ends at {look['right']}")
    small = page.evaluate("""[...document.querySelectorAll('p, td, th, figcaption, a, summary, button')]
        .filter((e) => e.offsetParent !== null && parseFloat(getComputedStyle(e).fontSize) < 11).length""")
    check(small == 0, f"{name} at {width}: {small} texts are smaller than 11 pixels")


def check_dark(page, name):
    """In dark the page is dark, and its charts are drawn anew."""
    page.media()
    page.settle()
    light, before = page.evaluate(BACKGROUND), page.evaluate(LOOK_AT_ONCE)
    page.media(dark=True)
    page.settle()
    dark, after = page.evaluate(BACKGROUND), page.evaluate(LOOK_AT_ONCE)
    check(brightness(light) > 200 and brightness(dark) < 60, f"{name}: the background is {light}, in dark {dark}")
    text = page.evaluate("getComputedStyle(document.body).color")
    check(brightness(text) > 180, f"{name}: in dark the text is {text}")
    check(all(b["sum"] != a["sum"] for b, a in zip(before, after) if b["colours"] > 0), f"{name}: a chart keeps its light colours in dark")


def check_print(page, name):
    """Even where the screen is dark, paper is white, and all charts are on it."""
    page.media("print", dark=True)
    page.settle()
    paper = page.evaluate(BACKGROUND)
    check(brightness(paper) > 200, f"{name}: paper is {paper}")
    looks = page.evaluate(LOOK_AT_ONCE)
    check(all(look["colours"] > 8 for look in looks), f"{name}: {sum(look['colours'] <= 8 for look in looks)} charts are not printed")
    pdf = page.send("Page.printToPDF")["data"]
    check(len(pdf) > 10000, f"{name}: the PDF has {len(pdf)} characters")
    page.media()
    page.settle()


def check_legend(page, name):
    """A click on a name takes its curve away, another brings it back."""
    found = page.evaluate("(async () => {" + LOOK + """
      const button = document.querySelector('.legend button');
      if (!button) return null;
      const canvas = button.closest('figure').querySelector('canvas');
      canvas.scrollIntoView({block: 'center'});
      await drawn();
      const sums = [look(canvas).sum];
      for (let i = 0; i < 2; ++i) {
        button.click();
        await drawn();
        sums.push(look(canvas).sum);
      }
      return sums;
    })()""")
    if found is not None:
        check(found[0] != found[1] and found[0] == found[2], f"{name}: a click on a legend does not take a curve away and bring it back")


def check_contents(page, name):
    check(page.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 0)"), f"{name}: a picture cannot be shown")
    empty = page.evaluate("[...document.querySelectorAll('figure.chart')].filter((f) => !f.querySelector('tbody td')).length")
    check(empty == 0, f"{name}: {empty} charts have no numbers below them")
    check(page.evaluate("[...document.querySelectorAll('nav a')].every((a) => document.querySelector(a.getAttribute('href')))"),
          f"{name}: a link leads nowhere")
    size = os.path.getsize(name)
    check(size < 3 << 20, f"{name}: {size} bytes")


def check_page(browser, path):
    name = str(path)
    page = browser.open(path)
    check_contents(page, name)
    for width in WIDTHS:
        check_width(page, width, name)
    check_legend(page, name)
    check_dark(page, name)
    check_print(page, name)
    for complaint in page.complaints():
        check(False, f"{name}: {complaint}")
    return page.evaluate("document.querySelectorAll('canvas').length")


def write_table_run(folder):
    """The log of a network for a table, by a program that wrote neither layers nor answers; with values that are not finite."""
    folder.mkdir(parents=True)
    lines = [{"kind": "start", "step": 0, "unix_time_s": 1.7e9, "model": "mlp", "data": "a <b>table</b>.csv", "settings": {"model": "mlp"}}]
    lines += [{"kind": "step", "step": s, "epoch": 1, "loss": "NaN" if s % 5 == 0 else 1 / s, "learning_rate": 0.1, "images_per_s": 10.0,
               "examples": 8} for s in range(1, 41)]
    lines += [{"kind": "end", "status": "not finite", "step": 40, "epoch": 1, "seconds": 1.0, "message": "dw of </script>fc1"}]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_pages(folder):
    def run(*words):
        done = subprocess.run([PROGRAM, *words], capture_output=True, text=True, cwd=folder)
        if done.returncode != 0:
            raise SystemExit(f"browser_test: evenkeel {words[0]} exits with {done.returncode}: {done.stderr}")

    def report(out, *runs):
        run("report", *runs, "--out", folder / out)
        return folder / out

    write_log(folder / "whole", steps=3000, layers=20, classes=10)
    write_log(folder / "other", steps=1500)
    write_log(folder / "a run with a long name that has to go somewhere, on a phone as well", steps=200)
    write_table_run(folder / "table")
    log = (folder / "other/log.jsonl").read_text().splitlines(keepends=True)
    (folder / "killed").mkdir()
    (folder / "killed/log.jsonl").write_text(log[0])
    run("lab", "identity", "--data", write_csv(folder / "rows.csv", rows=400), "--seeds", "1", "--out", folder / "lab")
    return [folder / "lab/lab.html", report("whole.html", "whole"), report("several.html", "other", "whole", "a run with a long name that has to go somewhere, on a phone as well"),
            report("table.html", "table"), report("killed.html", "killed")]


def self_check(browser, folder):
    """A page with the faults that are looked for: each must be found."""
    (folder / "bad.html").write_text("""<!doctype html><title>bad</title><body style="background: white"><div style="width: 2000px">wide</div>
      <canvas aria-label="empty"></canvas><img src="http://example.invalid/x.png"><script>console.error('said'); missing();</script>""")
    before = len(failures)
    with open(os.devnull, "w") as nowhere:
        stderr, sys.stderr = sys.stderr, nowhere
        try:
            page = browser.open(folder / "bad.html")
            check_width(page, 400, "bad")
            check_dark(page, "bad")
            for complaint in page.complaints():
                check(False, complaint)
        finally:
            sys.stderr = stderr
    found = " ".join(failures[before:])
    del failures[before:]
    for fault in ("pixels wide where there are 400", "'empty' has 1 colours", "request: http://example.invalid", "console.error: said",
                  "missing is not defined", "in dark rgb(255, 255, 255)"):
        check(fault in found, f"a page with faults was looked at, and this was not seen: {fault}")


def main():
    global PROGRAM
    words = sys.argv[1:]
    if words and not words[0].endswith(".html"):
        PROGRAM = os.path.abspath(words.pop(0))
    if find_chromium() is None:
        print("browser_test: skipped: chromium is not here (scripts/install_deps.sh browser)")
        return 77
    with tempfile.TemporaryDirectory(prefix="evenkeel-browser-") as folder:
        folder = pathlib.Path(folder)
        pages = [pathlib.Path(word) for word in words] or make_pages(folder)
        charts = 0
        try:
            with Browser() as browser:
                self_check(browser, folder)
                for page in pages:
                    charts += check_page(browser, page)
        except BrowserError as error:
            check(False, f"the browser: {error}")
    print(f"browser_test: {len(pages)} pages with {charts} charts, {len(failures)} faults")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
