"""The page: whole in itself, nothing in it runs, and every text is escaped."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from test_grid_report import DIFFERENCES, LOSSES, filled, three_seeds

from mtp_lightning.grid.report.comparison import Report
from mtp_lightning.grid.report.forms.html_page import html_page
from mtp_lightning.grid.report.judge import verdict

PNG = b"\x89PNG and more"
ATTACK = '<script src="https://example.org/x.js">alert("x")</script> & \'more\''
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Texts and tags; an AssertionError where tags do not close in the order in which they opened."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(page.replace("<wbr>", ""))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style" and data.strip():
            self.texts.append(data.strip())


def test_the_verdict_stands_on_top_then_notices_tables_and_the_figure(tmp_path: Path) -> None:
    report = filled(tmp_path, {key: loss for key, loss in LOSSES.items() if key != (4, 1)})
    page = html_page(report, PNG)
    texts = Page(page).texts
    order = ["head-count", verdict(report).sentence, "Compared", "Picture", "Other metrics"]
    positions = [texts.index(text) for text in order]
    assert positions == sorted(positions)
    assert "Incomplete: 1 of 6 cells missing: n_future=4 seed=1 (missing)" in texts
    assert {"no difference", "provisional"} <= set(texts)
    assert "3 settings, 2 seeds; 5 of 6 cells finished" in texts
    for text in ("val/loss/head_1 ↓", "n_future=1", "baseline, 2 seeds", "1 of 2 seeds", "2.1000 ± 0.1414", "123 k"):
        assert text in texts
    seeds = texts[texts.index("seed 1") + 1 :]
    assert seeds[:9] == [
        "n_future=1",
        "2.0000",
        "2.2000",
        "n_future=2",
        "1.9000",
        "2.2000",
        "n_future=4",
        "2.5000",
        "missing",
    ]


def test_the_picture_is_inside_and_nothing_comes_from_elsewhere(tmp_path: Path) -> None:
    page = Page(html_page(filled(tmp_path), PNG))
    sources = [value for name, value in page.attributes if name == "src"]
    assert sources == [f"data:image/png;base64,{base64.b64encode(PNG).decode()}"]
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    links = [value or "" for name, value in page.attributes if name == "href"]
    assert all(re.fullmatch(r"[a-z]+\.[a-z]+", link) for link in links), "beside the page"
    assert "Picture" not in Page(html_page(filled(tmp_path), None)).texts


def test_labels_messages_and_metrics_are_text(tmp_path: Path) -> None:
    report = hostile(filled(tmp_path))
    page = html_page(report, PNG)
    assert "<script" not in page
    parsed = Page(page)
    assert "script" not in parsed.tags
    assert ATTACK in parsed.texts, "as it is, and read as text"
    for text in (f"Incomplete: 1 of 6 cells missing: {ATTACK}", f"Warning: {ATTACK}", f"{ATTACK}: report"):
        assert text in parsed.texts
    assert any(ATTACK in (value or "") for name, value in parsed.attributes if name == "alt")


def hostile(report: Report) -> Report:
    """Every text of the report that somebody may choose is an attack."""
    compare = (ATTACK, *report.spec.compare)
    results = {seed: {ATTACK: 1.0 + seed, "val/loss/head_1": 2.0} for seed in (0, 1)}
    groups = [replace(group, label=ATTACK, results=results) for group in report.groups]
    spec = replace(report.spec, name=ATTACK, compare=compare, overridden={ATTACK: ATTACK}, better={ATTACK: "lower"})
    changed = {"spec": spec, "groups": groups, "missing": [ATTACK], "warnings": [ATTACK]}
    return replace(report, metrics=[*compare, f"{ATTACK}/other"], **changed)  # type: ignore[arg-type]


def test_a_difference_is_coloured_only_where_its_interval_leaves_out_0(tmp_path: Path) -> None:
    assert DIFFERENCES[0] < 0
    page = html_page(three_seeds(tmp_path), PNG)
    assert '<small class="better">-0.3750 [-0.6855, -0.0645] better</small>' in page
    assert '<small class="worse">+1.8750 [' in page
    wide = html_page(three_seeds(tmp_path, (-0.1, -0.3, -0.5)), PNG)
    assert "<small>-0.3000 [-0.7968, +0.1968]</small>" in wide
    assert 'class="better"' not in html_page(filled(tmp_path, {**LOSSES, (2, 0): 0.1, (2, 1): 0.2}), PNG)
