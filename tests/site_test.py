#!/usr/bin/env python3
"""The documentation site holds together: every link and anchor leads somewhere, every picture is there, nothing comes from a network.

  tests/site_test.py [PROGRAM]     PROGRAM is not used; exit 77: MkDocs is not installed

Builds the site by scripts/build_site into a folder of its own.
"""
import html.parser
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest
import urllib.parse

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from devtools import Browser, find_chromium  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
ELSEWHERE = re.compile(r"(?:[a-z]+:)?//")
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src", "audio": "src", "object": "data"}


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.names, self.links, self.loads = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        of = dict(attributes)
        self.names.update(of[key] for key in ("id", "name") if of.get(key))
        if tag == "a" and of.get("href"):
            self.links.append(of["href"])
        if tag in LOADED and of.get(LOADED[tag]) and of.get("rel") != "canonical":
            self.loads.append(of[LOADED[tag]])


def faults_of(site):
    """What is wrong with the pages and styles of a folder, a sentence each."""
    faults = []
    pages = {file: Page(file.read_text(encoding="utf-8")) for file in sorted(site.rglob("*.html"))}
    for file, page in pages.items():
        where = file.relative_to(site)
        for target in page.loads:
            if ELSEWHERE.match(target):
                faults.append(f"{where}: loads {target} from a network")
            elif not target.startswith("data:") and not (file.parent / urllib.parse.unquote(target.partition("?")[0])).is_file():
                faults.append(f"{where}: {target} is not there")
        for target in page.links:
            if re.match(r"[a-z]+:|//", target):
                continue
            path, _, part = target.partition("#")
            other = (file.parent / urllib.parse.unquote(path)).resolve() if path not in ("", ".") else file
            if other.is_dir():
                other = other / "index.html"
            if not other.is_file():
                faults.append(f"{where}: the link {target} leads nowhere")
            elif part and other in pages and urllib.parse.unquote(part) not in pages[other].names:
                faults.append(f"{where}: the link {target} names no place of its page")
    for file in sorted(site.rglob("*.css")):
        for target in re.findall(r"url\(\s*['\"]?([^'\")]+)", file.read_text(encoding="utf-8")):
            if ELSEWHERE.match(target):
                faults.append(f"{file.relative_to(site)}: loads {target} from a network")
    return faults


class Checks(unittest.TestCase):
    """The checks themselves: each finds what it is for."""

    def faults_in(self, body):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder).resolve()
            (folder / "index.html").write_text(f"<h1 id='top'>x</h1>{body}")
            return faults_of(folder)

    def test_a_good_page_has_no_fault(self):
        self.assertEqual(self.faults_in("<a href='index.html#top'>a</a><a href='#top'>b</a><a href='https://example.org'>c</a>"), [])

    def test_each_kind_of_fault_is_found(self):
        for body, words in (("<a href='no.html'>a</a>", "leads nowhere"), ("<a href='#no'>a</a>", "names no place"),
                            ("<img src='no.svg'>", "is not there"), ("<script src='https://cdn.example/x.js'></script>", "from a network"),
                            ("<link rel='stylesheet' href='//fonts.example/x.css'>", "from a network")):
            found = self.faults_in(body)
            self.assertEqual(len(found), 1, found)
            self.assertIn(words, found[0])


class Site(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="evenkeel-site-test-")
        cls.site = pathlib.Path(cls.folder.name).resolve() / "site"
        done = subprocess.run([sys.executable, ROOT / "scripts/build_site", cls.site], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode == 77:
            print(done.stdout, file=sys.stderr)
            sys.exit(77)
        if done.returncode != 0:
            raise AssertionError(done.stdout)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_links_anchors_and_pictures_are_there_and_nothing_comes_from_a_network(self):
        self.assertEqual(faults_of(self.site), [])

    def test_every_page_is_in_the_navigation(self):
        text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
        for file in sorted((ROOT / "docs").glob("*.md")):
            self.assertRegex(text, rf": {re.escape(file.name)}\n", f"mkdocs.yml does not name {file.name}")

    def test_every_public_function_of_the_headers_is_on_its_page(self):
        for header, page in (("evenkeel/norm.h", "api-norm.html"), ("evenkeel/model.h", "api-model.html"), ("evenkeel/network.h", "api-network.html"),
                             ("evenkeel.h", "api-c.html"), ("evenkeel_norm.h", "api-c-norm.html")):
            source = re.sub(r"//.*", "", (ROOT / header).read_text(encoding="utf-8"))
            shown = (self.site / page).read_text(encoding="utf-8")
            names = set(re.findall(r"\b((?:ek|norm|train)_\w+|run|predict|probabilities)\s*\(", source))
            self.assertGreater(len(names), 0, header)
            for name in sorted(names):
                self.assertIn(name, shown, f"{header}: {name} is not on {page}")

    def test_every_heading_is_one_on_the_site_and_no_other_line(self):
        for file in sorted((ROOT / "docs").glob("*.md")):
            text = re.sub(r"^```.*?^```$", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
            wanted = [len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)]
            page = (self.site / f"{file.stem}.html").read_text(encoding="utf-8")
            shown = [int(level) for level in re.findall(r"<h([1-6])[ >]", page.partition('role="main"')[2])]
            self.assertEqual(shown, wanted, file.name)

    def test_contents_of_a_page_name_all_its_sections_in_order(self):
        for file in sorted((ROOT / "docs").glob("*.md")):
            text = re.sub(r"^```.*?^```$", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
            contents = re.findall(r"^\d+\. \[(.*)\]\(#.*\)$", text, re.MULTILINE)
            if contents:
                self.assertEqual(contents, re.findall(r"^## (.*)$", text, re.MULTILINE), file.name)

    def test_lists_are_lists(self):
        for file in sorted(self.site.glob("*.html")):
            page = re.sub(r"<pre.*?</pre>", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
            for text in re.findall(r"<p>(.*?)</p>", page, re.DOTALL):
                self.assertNotRegex(text, r"(?m)^(?:- |\d\. )", f"{file.name}: needs an empty line before the list")

    def test_fences_that_tests_read_are_code(self):
        for file in sorted(self.site.glob("*.html")):
            self.assertNotIn("```", re.sub(r"<code>.*?</code>", "", file.read_text(encoding="utf-8")), f"{file.name}: a fence is shown as text")

    def test_the_search_has_every_page_and_needs_no_server(self):
        index = (self.site / "search/search_index.js").read_text(encoding="utf-8")
        for file in (ROOT / "docs").glob("*.md"):
            self.assertIn(f'"{file.stem}.html', index)
        script = (self.site / "search/main.js").read_text(encoding="utf-8")
        for word in ("fetch(", "XMLHttpRequest", "Worker(", "getJSON"):
            self.assertNotIn(word, script)

    @unittest.skipIf(find_chromium() is None, "chromium is not here")
    def test_the_search_finds_words_in_a_page_from_a_disk(self):
        with Browser() as browser:
            page = browser.open(self.site / "search.html", width=1000, height=800)
            found = page.evaluate("""(async () => {
              const field = document.getElementById('mkdocs-search-query'), results = document.getElementById('mkdocs-search-results');
              for (let i = 0; i < 100 && typeof evenkeel_search_index === 'undefined'; ++i) await new Promise((done) => setTimeout(done, 50));
              await new Promise((done) => setTimeout(done, 500));  // the index is made of it
              field.value = 'ghost batch'; field.dispatchEvent(new Event('input'));
              return results.innerText; })()""")
            self.assertIn("--ghost-batch", found)
            self.assertEqual([c for c in page.complaints() if not c.startswith("request: file://")], [])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
