"""YAML that knows its line numbers, refuses a key written twice, and has one meaning of numbers everywhere; no larger
and no deeper than a configuration can be, aliases written out."""

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

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, _TOO_DEEP, self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


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
_Dumper.add_multi_representer(float, _Dumper.represent_float)
_Dumper.add_multi_representer(int, _Dumper.represent_int)
for _cls in (Loader, _Loader):
    _cls.add_constructor("tag:yaml.org,2002:int", _whole_number)


def read_value(text: str) -> Any:
    """A single value; text that is no YAML as it is."""
    try:
        return yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError):
        return text


def dump_yaml(value: Any, flow: bool = False) -> str:
    """What is read back as the same, by whatever reader of YAML.

    Args:
        flow: in braces, as in `{a: 1}`.
    """
    return yaml.dump(value, Dumper=_Dumper, default_flow_style=flow, sort_keys=False, allow_unicode=True)


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
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(f"{path}:{line}: not valid YAML: the character U+{error.character:04X}") from error
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
