"""The page of a sweep: answer first, self-contained, honest about what is missing, and fine in a real browser."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from fedpriv.reports.comparison import write_comparison
from tests.unit.comparison.browser import browser
from tests.unit.comparison.simulated import UTILITIES, clippers, collaboration

GAIN = dict(zip(UTILITIES, (0.3, 0.25, 0.2, 0.15, 0.1, 0.1, -0.2, 0.3), strict=True))


@pytest.fixture(scope="module")
def joining_page(tmp_path_factory):
    path = collaboration(gain=GAIN).write(tmp_path_factory.mktemp("joining") / "sweep")
    write_comparison(path)
    return path / "report.html"


def words(html: str) -> str:
    body = html[html.index("<body>") : html.index("<script>")]
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<svg.*?</svg>", "", body, flags=re.DOTALL)).split())


def test_the_page_is_self_contained_and_begins_with_the_answer(clipper_sweep):
    html = (clipper_sweep / "report.html").read_text()
    assert not re.search(r"@import|url\((?!#)|<img|<link(?! rel=\"icon\" href=\"data:,\")|<script src", html)
    outside = set(re.findall(r"https?://[^\s\"'<>]+", html))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(ids)
    svgs = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(svgs) >= 5
    for svg in svgs:
        ElementTree.fromstring(svg)
        assert "#f0e1" not in svg, "every stand-in colour was replaced"
    text = words(html)
    assert text.index("psac is the best of 4:") < text.index("By how much, and how sure")
    for said in (
        "in each private run every client gets epsilon 1 or 8 for one reading over the whole run, at delta 1e-5",
        "holds against the server, the other clients and whoever sees the model",
        "a simulation, not a guarantee",
        "1 failed, 1 refused",
        "the model is not finite after round 7",
        "the budget is spent",
        "Nothing was tuned in this sweep",
        "fedpriv compare",
    ):
        assert said in text, said


def test_every_run_is_linked_and_links_lead_somewhere(clipper_sweep):
    html = (clipper_sweep / "report.html").read_text()
    links = set(re.findall(r'href="(runs/[^"]+)"', html))
    assert len(links) == len(list((clipper_sweep / "runs").iterdir()))
    assert all((clipper_sweep / link).exists() for link in links)


def test_names_out_of_a_file_are_escaped(tmp_path):
    made = clippers(
        gains={"<b>a</b>": 0.0, "$x_1$": 0.1}, wheres=("natural",), epsilons=(8.0,), clients=("<i>", "c&d", "$e$")
    )
    path = made.write(tmp_path / "s")
    write_comparison(path)
    html = (path / "report.html").read_text()
    assert "<b>a</b>" not in html and "<i>" not in html and "&lt;b&gt;a" in html


def test_equals_are_called_equals(tmp_path):
    made = clippers(gains={"flat": 0.0, "auto-s": 0.0, "psac": 0.0}, wheres=("natural",), epsilons=(8.0,), seed=2)
    path = made.write(tmp_path / "s")
    write_comparison(path)
    text = words((path / "report.html").read_text())
    assert "No evidence of a difference between" in text and " wins" not in text


def test_few_seeds_are_warned_of(tmp_path):
    path = clippers(gains={"flat": 0.0, "psac": -0.3}, wheres=("natural",), epsilons=(8.0,), seeds=1).write(
        tmp_path / "s"
    )
    write_comparison(path)
    text = words((path / "report.html").read_text())
    assert "Only 1 seed: how much results vary from run to run is hardly known" in text


@pytest.mark.browser
def test_a_real_browser_shows_it(clipper_sweep, joining_page):
    with browser() as tab:
        for page in (clipper_sweep / "report.html", joining_page):
            for width, phone in ((390, True), (1280, False)):
                for dark in (False, True):
                    tab.open(page, width=width, dark=dark, phone=phone)
                    check(tab, width, dark=dark)


def check(tab, width: int, *, dark: bool) -> None:
    assert tab.problems == []
    assert tab.js("document.documentElement.scrollWidth") <= width, "nothing sticks out sideways"
    background = tab.js("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(18, 22, 28)" if dark else "rgb(255, 255, 255)")
    sizes = tab.js("[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().width)")
    assert len(sizes) >= 4 and min(sizes) > 250, "pictures are there and not squeezed"
    # a click on a heading sorts, a second one turns it round
    script = """(() => {
      const table = [...document.querySelectorAll('table.sortable')].find(t => t.tBodies[0].rows.length > 2);
      const column = [...table.tBodies[0].rows[0].cells].findIndex(c => c.dataset.value !== undefined);
      const head = table.querySelectorAll('th')[column];
      const read = () => [...table.tBodies[0].rows].map(r => +r.cells[column].dataset.value);
      head.click(); const up = read(); head.click(); return [up, read()];
    })()"""
    up, down = tab.js(script)
    assert up == sorted(up) and down == sorted(up, reverse=True)
    assert tab.problems == []


@pytest.mark.browser
def test_it_prints(joining_page):
    with browser() as tab:
        tab.open(joining_page, width=1280)
        document = tab.pdf()
    assert document.startswith(b"%PDF") and 2 <= len(re.findall(rb"/Type\s*/Page\b", document)) <= 26
