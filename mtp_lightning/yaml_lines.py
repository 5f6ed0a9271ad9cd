"""YAML that knows its line numbers, refuses a key written twice, and reads `3e-4` as the number it is; no larger and no
deeper than a configuration can be, aliases written out."""

import re
from pathlib import Path
from typing import Any

import yaml

from mtp_lightning.errors import InputError
from mtp_lightning.units import size

Lines = dict[tuple[str, ...], int]
"""Path of a key or of a list's item (its index, from 0, as text) -> 1-based line."""


MOST_BYTES, MOST_VALUES, DEEPEST = 4 * 1024**2, 100_000, 50
"""Of a file; keys and values in it, counted each time that an alias repeats them; one inside the other."""


class _Loader(yaml.SafeLoader):
    """PyYAML follows YAML 1.1, where `3e-4` is a string; configurations follow 1.2, where it is a float."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, _TOO_DEEP, self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def place(path: Path, lines: Lines, *key: str | int) -> str:
    """`grid.yaml:7: axes.model.heads.n_future`, for the front of an error message. An item of a list (an index) lends
    its line and not its name: the message quotes the item."""
    line = lines.get(tuple(map(str, key)))
    return f"{path}{f':{line}' if line else ''}: {'.'.join(part for part in key if isinstance(part, str))}"


def read_yaml(path: Path) -> tuple[Any, Lines]:
    """The document and where everything in it stands: `lines["axes", "model.n"]`, `lines["exclude", "0"]`."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(
                f"{path}: has {size(path.stat().st_size)}, and a configuration has {size(MOST_BYTES)} at most"
            )
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text") from error
    return parse_yaml(text, path)


def parse_yaml(text: str, path: Path | str) -> tuple[Any, Lines]:
    """
    Args:
        path: what messages call the text.

    Raises:
        InputError: it is no YAML, has a key twice, or is too large or too deep.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines: Lines = {}
        if node is None:
            return None, lines
        _collect(path, node, (), lines, [MOST_VALUES])
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{at}: not valid YAML: {error.problem or error.context}") from error
    except InputError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # a date that is none, a number of a million digits
        raise InputError(f"{path}: not valid YAML: {error}") from error
    finally:
        loader.dispose()


_TOO_DEEP = f"more than {DEEPEST} values lie one inside the other"


def _collect(path: Path | str, node: yaml.Node, at: tuple[str, ...], lines: Lines, left: list[int]) -> None:
    """
    Args:
        left: how many more values there may be, in a list of its own to be counted down.
    """
    left[0] -= 1
    if left[0] < 0 or len(at) > DEEPEST:
        what = _TOO_DEEP if left[0] >= 0 else f"more than {MOST_VALUES:,} values, with those that aliases (*) repeat"
        raise InputError(f"{path}:{node.start_mark.line + 1}: {what}")
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            where = (*at, str(index))
            lines[where] = item.start_mark.line + 1
            _collect(path, item, where, lines, left)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        where, line = (*at, str(key.value)), key.start_mark.line + 1
        if where in lines:
            raise InputError(f"{path}:{line}: {'.'.join(where)}: written twice, first on line {lines[where]}")
        lines[where] = line
        _collect(path, value, where, lines, left)
