"""What the commands on data print and write."""

import sys
from pathlib import Path
from typing import Any

from mtp_lightning.errors import InputError
from mtp_lightning.files import write_bytes


def partial_folder(out: Path) -> Path:
    """Beside what a command makes: what it has so far, until it is done."""
    return out.with_name(f".{out.name}.partial")


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console, table = Console(width=None if sys.stdout.isatty() else 200), Table()
    for key in rows[0]:
        table.add_column(key, justify="left" if isinstance(rows[0][key], str) else "right", overflow="fold")
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    console.print(title, soft_wrap=True, highlight=False, markup=False)
    console.print(table)


def write_whole(path: Path, content: str | bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise InputError(f"cannot write '{path}': {error.strerror}") from error
