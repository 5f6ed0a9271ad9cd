"""The index of the experiments says what their pages say, and the columns of their numbers are those of a report."""

import csv
import re
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
PAGES = sorted(EXPERIMENTS.glob("[0-9]*/README.md"))
ROW = re.compile(r"^\| \[(\w+)\]\((\w+/README\.md)\) \| ([^|]+) \| ([^|]+) \|$", re.M)


def index() -> dict[str, tuple[str, str]]:
    """Folder -> (link, verdict)."""
    return {name: (link, text) for name, link, _, text in ROW.findall((EXPERIMENTS / "README.md").read_text())}


def test_every_experiment_is_in_the_index_once_and_in_order() -> None:
    rows = [name for name, *_ in ROW.findall((EXPERIMENTS / "README.md").read_text())]
    assert rows == [page.parent.name for page in PAGES]
    assert {name: link for name, (link, _) in index().items()} == {name: f"{name}/README.md" for name in rows}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_verdict_of_the_index_is_the_pages_own(page: Path) -> None:
    """One line of a page begins with `**Verdict:**`, and no other form of it is left."""
    text = page.read_text()
    (verdict,) = re.findall(r"^\*\*Verdict:\*\* (.+)$", text, re.M)
    assert index()[page.parent.name][1] == verdict
    assert text.count("**Verdict") == 1


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*/*.csv")), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_no_column_called_n_counts_seeds(path: Path) -> None:
    with path.open() as file:
        header, *rows = list(csv.reader(file))
    assert not {"n", "n_pairs"} & set(header)
    assert all(len(row) == len(header) for row in rows)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_tables_count_seeds_by_their_name(page: Path) -> None:
    """A column of a setting is headed `n_future=4, 2 seeds`; brackets say `1 of 3 seeds`."""
    tables = [line for line in page.read_text().splitlines() if line.startswith("|")]
    assert not [line for line in tables if re.search(r", n=\d|\(n=\d", line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_files_that_a_page_links_are_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert links
    assert [link for link in links if not (page.parent / link).is_file()] == []
