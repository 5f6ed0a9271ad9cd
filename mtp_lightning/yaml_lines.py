"""YAML that knows its line numbers, refuses a key written twice, and reads `3e-4` as the number it is."""

import re
from pathlib import Path
from typing import Any

import yaml

from mtp_lightning.errors import InputError

Lines = dict[tuple[str, ...], int]
"""Path of a key or of a list's item (its index, from 0, as text) -> 1-based line."""


class _Loader(yaml.SafeLoader):
    """PyYAML follows YAML 1.1, where `3e-4` is a string; configurations follow 1.2, where it is a float."""


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
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text") from error
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines: Lines = {}
        if node is None:
            return None, lines
        _collect(path, node, (), lines)
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{at}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from error
    finally:
        loader.dispose()


def _collect(path: Path, node: yaml.Node, at: tuple[str, ...], lines: Lines) -> None:
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            where = (*at, str(index))
            lines[where] = item.start_mark.line + 1
            _collect(path, item, where, lines)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        where, line = (*at, str(key.value)), key.start_mark.line + 1
        if where in lines:
            raise InputError(f"{path}:{line}: {'.'.join(where)}: written twice, first on line {lines[where]}")
        lines[where] = line
        _collect(path, value, where, lines)
