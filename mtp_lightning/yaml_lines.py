"""YAML that knows its line numbers, refuses a key written twice, and has one meaning of numbers everywhere."""

import re
from pathlib import Path
from typing import Any

import yaml

from mtp_lightning.errors import InputError

Lines = dict[tuple[str, ...], int]
"""Path of a key or of a list's item (its index, from 0, as text) -> 1-based line."""


_NUMBERS = (
    ("int", r"[-+]?(?:0x[0-9a-fA-F_]+|0b[01_]+|[0-9][0-9_]*)"),
    ("float", r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"),
)
"""What reads as a number, in configuration files, in flags and in grid files: `010` is ten, `1e3` is a thousand, and
`1:30` and `0o10` are text. PyYAML follows YAML 1.1, where these are 8, text and 90."""


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Of values: a date is text."""


class _Loader(yaml.SafeLoader):
    """Of documents whose lines are of interest."""


class _Dumper(yaml.SafeDumper):
    """Quotes text that either reads as something else: ours, or anybody's."""


def _whole_number(loader: Any, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    return int(text, 10 if text.lstrip("+-")[:2].lower() not in ("0x", "0b") else 0)


def _set_numbers(cls: Any, dropped: tuple[str, ...]) -> None:
    tags = tuple(f"tag:yaml.org,2002:{name}" for name in dropped)
    cls.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in tags]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for name, pattern in _NUMBERS:
        cls.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(f"^(?:{pattern})$"), list("-+.0123456789"))


_set_numbers(Loader, ("int", "float", "timestamp"))
_set_numbers(_Loader, ("int", "float"))
_set_numbers(_Dumper, ())
for _cls in (Loader, _Loader):
    _cls.add_constructor("tag:yaml.org,2002:int", _whole_number)


def read_value(text: str) -> Any:
    """A single value; text that is no YAML as it is."""
    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError:
        return text


def dump_yaml(value: Any) -> str:
    """What is read back as the same, by whatever reader of YAML."""
    return yaml.dump(value, Dumper=_Dumper, default_flow_style=False, sort_keys=False, allow_unicode=True)


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
