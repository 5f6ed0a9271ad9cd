"""A report's ladders as markdown and for the terminal. numpy is loaded only where there are some."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from mtp_lightning.grid.report.ladder.of_grid import Ladder


def ladder_blocks(ladders: "Sequence[Ladder]") -> list[str]:
    """Of markdown: the heading, a table and the lines beside it for each, and how to read them."""
    if not ladders:
        return []
    from mtp_lightning.grid.report.ladder import texts

    blocks = [f"## {texts.HEADING}"]
    for ladder in ladders:
        blocks.append(headed_table(texts.rows(ladder)))
        blocks.append("\n".join(f"- {line}" for line in texts.lines(ladder)))
    return [*blocks, texts.LEGEND]


def ladder_tables(ladders: "Sequence[Ladder]") -> list[Table]:
    if not ladders:
        return []
    from mtp_lightning.grid.report.ladder import texts

    tables = []
    for ladder in ladders:
        head, *rest = texts.rows(ladder)
        caption = Text("\n".join([*texts.lines(ladder), texts.LEGEND]))
        title = f"{texts.HEADING}, against {ladder.baseline.name}"
        table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
        for index, name in enumerate(head):
            table.add_column(Text(name), justify="right" if index else "left")
        for row in rest:
            table.add_row(*map(Text, row))
        tables.append(table)
    return tables


def headed_table(rows: Sequence[Sequence[str]]) -> str:
    """Numbers to the right; the head is the first row."""
    head, *rest = rows
    return pipe_table([head, ["---"] + ["---:"] * (len(head) - 1), *rest])


def pipe_table(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)
