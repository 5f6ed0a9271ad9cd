"""What the manuals say: their code blocks, and the `mtp` commands in them."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
ROOMS = ("conf", "callbacks", "experiments", *(f"mtp_lightning/{room}" for room in (
    "", "model", "data", "decoding", "grid", "interop", "strategies", "tracking", "bench", "evaluation",
    "evaluation/sandbox",
)))  # fmt: skip
MANUALS = [ROOT / "README.md", ROOT / "AGENTS.md", *(ROOT / room / "README.md" for room in ROOMS)]


class Command(NamedTuple):
    """A command line without its `mtp`, and the manual that it stands in."""

    manual: Path
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.manual.parent.relative_to(ROOT)}: {' '.join(self.words)}"


def blocks(manual: Path) -> list[tuple[str, str]]:
    """(language, text) of every code block, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```", manual.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(manual: Path) -> list[Command]:
    """Those of blocks without a language. A line that only lists commands (`mtp fit | validate`) is none."""
    text = "\n".join(body for language, body in blocks(manual) if not language).replace("\\\n", " ")
    lines = [line for line in shell_lines(text) if line[:1] == ["mtp"]]
    return [Command(manual, tuple(line[1:])) for line in lines if "|" not in line and line[2:]]


def commands_of_page(page: Path) -> list[Command]:
    """Those of an experiment's page: in blocks, and in its text."""
    inline = [shlex.split(text) for text in re.findall(r"`(mtp [^`]+)`", page.read_text(encoding="utf-8"))]
    return commands(page) + [Command(page, tuple(line[1:])) for line in inline if line[2:]]


def shell_lines(text: str) -> list[list[str]]:
    """The words of each command, which goes on to the next line inside quotes; `NAME=value` before it is left out."""
    found, begun = [], ""
    for line in text.splitlines():
        begun += line
        try:
            words = shlex.split(begun, comments=True)
        except ValueError:  # a quote is open
            begun += " "
            continue
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        found.append(words)
        begun = ""
    assert not begun, f"a quote that is never closed: {begun}"
    return found


def files(manual: Path) -> dict[str, str]:
    """Name -> text of the blocks that begin with `# name: what it is`."""
    named = (re.match(r"# (\w+\.\w+):", body) for _, body in blocks(manual))
    return {match[1]: match.string for match in named if match}
