"""The report page: complete, self-contained, honest, and legible to a parser and a browser."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from fedpriv.reports.folder import RunFolder
from fedpriv.reports.numbers import at_most, number, rung, small
from fedpriv.reports.page import write_report
from fedpriv.reports.tables import RunView, run_summary

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Reader(HTMLParser):
    """Checks that tags nest, and collects ids, links and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value or "")
            if key in ("href", "src", "xlink:href", "srcset", "action", "data", "poster"):
                self.links.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(path: Path) -> tuple[str, Reader]:
    html = path.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(html)
    assert not reader.open
    return html, reader


def test_the_page_is_whole_and_self_contained(written_run: RunFolder) -> None:
    html, reader = read(written_run.path / "report.html")
    assert len(set(reader.ids)) == len(reader.ids), "ids are unique over all inlined pictures"
    for link in reader.links:
        assert link == "data:," or (link.startswith("#") and link[1:] in reader.ids), link
    assert not re.search(r"@import|url\((?!#)", html)
    outside = set(re.findall(r"https?://[^\s\"'<>]+", html))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}, "only names of XML vocabularies"
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(svg)
        assert 'role="img"' in svg and "var(--fig-" in svg
        assert "#f0e1" not in svg, "every stand-in colour was replaced"


def test_the_page_begins_with_the_answer(written_run: RunFolder) -> None:
    _, reader = read(written_run.path / "report.html")
    text = " ".join(" ".join(reader.text).split())
    assert "Private training beat the seasonal naive forecast on 7 of 8 clients: 14.4 % less error on average" in text
    assert "epsilon at most 7.96 for one reading (9.81 for one day, 19.4 for one week), at delta 1e-5" in text
    assert "Nothing worth calling a promise for one month or meter" in text
    assert "not a guarantee" in text
    assert "Not every client gained: PJM-AE has 5.9 % more error" in text
    assert text.index("Private training beat") < text.index("What is promised")


def test_pictures_decode(written_run: RunFolder) -> None:
    names = sorted(path.stem for path in (written_run.path / "figures").glob("*.png"))
    assert names == ["clients", "commitments", "epsilon", *(f"example-{i}" for i in range(1, 5)), "ladder", "rounds"]
    for path in (written_run.path / "figures").glob("*.png"):
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            image.load()
            assert image.size[0] > 600
            assert len(image.getcolors(maxcolors=1 << 20) or []) > 10, "something is drawn"


@pytest.mark.parametrize("private", [True, False])
def test_secret_statistics_stay_out_of_the_page(make_run: Callable[..., RunFolder], private: bool) -> None:
    folder = make_run(private=private)
    assert {"clip_fraction", "gradient_norm"} <= set(folder.rounds()["metric"])
    html = write_report(folder.path).read_text()
    for leak in ("clip_fraction", "gradient_norm", "0.7312345", "0.731", "73.1", "3.1415926"):
        assert leak not in html
    assert "0.7312345" not in json.dumps(run_summary(folder.path))


def test_without_privacy_nothing_is_promised(make_run: Callable[..., RunFolder]) -> None:
    folder = make_run(private=False)
    html, reader = read(write_report(folder.path))
    assert "Privacy was off: nothing is promised" in html
    assert not {"promise", "epsilon"} & set(reader.ids)
    assert run_summary(folder.path)["privacy"]["enabled"] is False


def test_an_interrupted_run_still_has_a_page(make_run: Callable[..., RunFolder]) -> None:
    folder = make_run(finished=False, upto=120)
    html, reader = read(write_report(folder.path))
    assert "interrupted after round 120 of 300" in html
    assert "--resume" in html
    assert {"rounds", "epsilon"} <= set(reader.ids)
    summary = run_summary(folder.path)
    assert summary["comparison"] is None
    assert summary["rounds"] == {"done": 120, "planned": 300}


def test_an_empty_run_still_has_a_page(tmp_path: Path, finished_run: RunFolder) -> None:
    folder = RunFolder.create(tmp_path / "empty", finished_run.scenario)
    assert "before its first checkpoint" in write_report(folder.path).read_text()
    assert run_summary(folder)["clients"] == []


def test_names_from_the_data_cannot_break_the_page(make_run: Callable[..., RunFolder]) -> None:
    nasty = ("<script>alert(1)</script>", "$x^2$ & co", 'a"b', "an extremely long name of a distribution utility", "e")
    html, _ = read(write_report(make_run(clients=nasty).path))
    assert "<script>alert" not in html


def test_many_clients_fit(make_run: Callable[..., RunFolder]) -> None:
    folder = make_run(clients=tuple(f"utility-{i:03d}" for i in range(118)))
    html, _ = read(write_report(folder.path))
    assert html.count(">utility-") >= 118
    with Image.open(folder.path / "figures" / "clients.png") as image:
        assert image.size[1] < 6 * image.size[0]


def test_the_summary_is_strict_json_and_stable(written_run: RunFolder) -> None:
    summary = run_summary(written_run.path)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    reduction = summary["comparison"].pop("reduction")
    assert reduction == pytest.approx(0.144218, rel=1e-4)
    assert summary["comparison"] == {"metric": "mse", "baseline": "seasonal-naive", "better": 7, "clients": 8}
    assert summary["privacy"]["max_epsilon"] == 7.96
    assert set(summary["averages"]) == {"federated", "seasonal-naive", "last-value"}


def test_a_loss_is_called_a_loss(make_run: Callable[..., RunFolder]) -> None:
    folder = make_run()
    rows = folder.metrics()
    for row in rows:
        if row["model"] == "federated":
            row["value"] *= 3
    folder.write_metrics(rows)
    found = RunView.of(RunFolder.open(folder.path)).compare()
    assert found is not None and found.better == 0 and found.reduction < 0
    assert "did not beat the seasonal naive forecast on any client" in run_summary(folder.path)["answer"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0, "0"),
        (7.96, "7.96"),
        (1203.4, "1,203"),
        (0.09381, "0.0938"),
        (1e-7, "1e-07"),
    ],
)
def test_numbers_are_for_people(value: float | None, text: str) -> None:
    assert number(value) == text


def test_a_promise_is_never_rounded_to_a_stronger_one() -> None:
    shown = [at_most(v) for v in (7.9999, 7.961, 7.96, 12.001, 1203.4, 0.01231, None)]
    assert shown == ["8.00", "7.97", "7.96", "12.1", "1,210", "0.0124", "–"]
    assert [rung(v) for v in (7.961, None, float("inf"))] == ["7.97", "no finite one", "no finite one"]


def test_deltas_are_for_people() -> None:
    assert [small(v) for v in (1e-5, 2.5e-7, 0.01, 1e-12)] == ["1e-5", "2.5e-7", "0.01", "1e-12"]


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_real_browser_sorts_the_table_and_reports_no_errors(written_run: RunFolder, tmp_path: Path) -> None:
    page = written_run.path / "report.html"
    probe = """<script>
    const head = [...document.querySelectorAll('table.sortable th')].find(h => h.textContent.includes('against naive'));
    const first = () => document.querySelector('table.sortable tbody tr td').textContent;
    head.click(); const up = first(); head.click(); const down = first();
    const wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
    document.title = JSON.stringify({up, down, wide, pictures: document.querySelectorAll('figure svg').length});
    </script>"""
    copy = tmp_path / "probe.html"
    copy.write_text(page.read_text().replace("</body>", probe + "</body>"))
    assert CHROMIUM is not None
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    done = subprocess.run(
        [
            CHROMIUM,
            *flags.split(),
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=500,900",
            "--dump-dom",
            copy.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    seen = json.loads(title.group(1))
    assert seen == {"up": "SWPP-OKGE", "down": "PJM-AE", "wide": False, "pictures": 9}
