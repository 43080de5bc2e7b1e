"""The page: complete in itself, of text that stays text, and at work in a real browser."""

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fwrnn.comparison import chart
from fwrnn.comparison.found import Run, find
from fwrnn.comparison.page import page
from fwrnn.comparison.rows import by_task
from tests.comparison.runs import write_game, write_run

EVIL = '"><img src=x onerror="document.title=1"><script>document.title=2</script>'
NO_NAME = str.maketrans("", "", "/" if os.name == "posix" else '<>:"/|?*')  # of a folder
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def written(tmp_path) -> Path:
    """A page on runs whose names, settings and metrics are HTML."""
    for size, error in ((8, 0.3), (16, 0.1), (200, 0.2)):
        write_run(
            tmp_path / f"{size}-{EVIL.translate(NO_NAME)}", ("model.hidden_size", size),
            ("model.x", f"{EVIL}{size}"), ("model.<img src=x>", size), error=error, stopped=EVIL,
        )  # fmt: skip
    write_game(tmp_path / "game", 0.5, ("model.name", EVIL))
    (write_run(tmp_path / "<b>broken</b>".translate(NO_NAME)) / "metrics.json").write_text("{")
    found = list(find([tmp_path]))
    comparisons = by_task([each for each in found if isinstance(each, Run)])
    curves, _ = chart.read_curves(run for each in comparisons for run in each.runs)
    troubles = [each for each in found if not isinstance(each, Run)]
    text = page(comparisons, troubles, chart.svg(comparisons, curves), f"fwrnn report {EVIL}")
    file = tmp_path / "page.html"
    file.write_text(text, encoding="utf-8")
    return file


def test_what_files_hold_is_text_and_nothing_is_loaded(written):
    tags: dict[str, int] = {}

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            tags[tag] = tags.get(tag, 0) + 1
            for name, value in attributes:
                assert not name.startswith("on")
                assert name not in ("src", "srcset", "data", "action")
                assert not name.endswith("href") or value.startswith("#")

    Reader().feed(written.read_text(encoding="utf-8"))
    assert tags["script"] == 1
    assert tags["svg"] == 1
    assert not {"img", "b", "link", "iframe"} & set(tags)
    assert "default-src 'none'" in written.read_text(encoding="utf-8")


def browse(file: Path, *options: str) -> subprocess.CompletedProcess:
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
    ]
    command += [f"--user-data-dir={file.parent / 'profile'}", "--v=0", *options, file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


needs_browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")


@needs_browser
def test_browser_runs_the_page_and_nothing_that_files_brought(written, tmp_path):
    dumped = browse(written, "--dump-dom")
    assert "<title>fwrnn report" in dumped.stdout
    assert "Refused" not in dumped.stderr + dumped.stdout
    assert "Content Security Policy" not in dumped.stderr
    picture = tmp_path / "page.png"
    browse(written, f"--screenshot={picture}", "--window-size=1200,1500")
    assert picture.stat().st_size > 30_000


@pytest.mark.slow
@needs_browser
def test_tables_are_sorted_by_a_click(written):
    text = written.read_text(encoding="utf-8")

    def sizes(clicks: str) -> list[str]:
        clicking = f"<script>{clicks}</script></body>"
        text_ = re.sub(r"<meta http-equiv.*?>", "", text).replace("</body>", clicking)
        other = written.with_name("clicked.html")
        other.write_text(text_, encoding="utf-8")
        shown = browse(other, "--dump-dom").stdout
        table = re.search(r"<tbody>.*?</tbody>", shown[shown.index("<h2>3 runs") :], re.S).group()
        rows = re.findall(r"<tr>(.*?)</tr>", table, re.S)
        return [re.findall(r'data-value="(\d+)"', row)[1] for row in rows]

    click = "[...document.querySelectorAll('th button')].find(b => b.innerText == 'hidden_size')"
    assert sizes("") == ["16", "200", "8"]
    assert sizes(f"{click}.click();") == ["8", "16", "200"]  # as numbers, not as texts
    assert sizes(f"{click}.click();{click}.click();") == ["200", "16", "8"]
