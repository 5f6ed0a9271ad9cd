"""Which file, on which line, or which flag set a key of the configuration: the last one that did."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mtp_lightning.config.config_files import CONF_DIR, find_config
from mtp_lightning.errors import InputError
from mtp_lightning.yaml_lines import dump_yaml, parse_yaml, read_value, read_yaml

Path_ = tuple[str, ...]
"""A key's parts as written; an item of a list has its index, from 0, as text."""
_KEY = re.compile(r"[A-Za-z_]\w*(?:\.\w+)+|\bseed_everything\b|\bckpt_path\b")


class Origin(NamedTuple):
    """One key set in one place."""

    path: Path_
    value: Any
    where: str
    """`in base.yaml:7`, `on the command line`; empty: whoever sets it says where."""
    source: int
    """Files and flags are numbered in their order; a later one wins."""

    @property
    def names(self) -> Path_:
        """The parts without what a message may leave out: `init_args`, places in lists."""
        return tuple(part for part in self.path if part != "init_args" and not part.isdigit())

    @property
    def dotted(self) -> str:
        return ".".join(part for part in self.path if not part.isdigit())


class KeyOrigins:
    """All keys that command-line arguments set, in order.

    Args:
        flags: what to say of keys that a flag sets.

    Raises:
        InputError: a file that is not there, is no YAML, or has a key twice.
    """

    def __init__(self, args: Sequence[str], flags: str = "on the command line") -> None:
        self.all: list[Origin] = []
        rest, source = list(args), 0
        while rest:
            arg, source = rest.pop(0), source + 1
            name, equals, value = arg.partition("=")
            if not equals and rest and not (rest[0].startswith("--") or name == "--print_config"):
                value = rest.pop(0) if arg.startswith("-") else value
            if name in ("-c", "--config") and value:
                self.all += _of_text(value, flags, source) if is_text(value) else _of_file(find_config(value), source)
            elif name.startswith("--"):
                path = _parts(name.removeprefix("--"))
                self.all += [Origin(at, v, flags, source) for at, v in _walk(path, _loaded(value))]

    def where(self, message: str) -> str:
        """` (in base.yaml:7)`: where the key or keys that the message is about were set; else an empty string."""
        about = message.split("; did you mean")[0]
        found = {key: origin for key in _KEY.findall(about) if (origin := self.find(key, about)) is not None}
        places = {key: origin.where for key, origin in found.items() if origin.where}
        if len(set(places.values())) < 2:
            return "".join(f" ({place})" for place in [*places.values()][:1])
        return f" ({', '.join(f'{key} {place}' for key, place in places.items())})"

    def find(self, key: str, message: str = "") -> Origin | None:
        """The last to set `key`, which may leave out `init_args` and may begin with a class's name.

        Args:
            message: of several items of a list that set the key, it is about the one whose value it quotes.
        """
        names = tuple(part for part in key.split(".") if part != "init_args")
        flag = ("trainer", "callbacks", *names[1:]) if key[:1].isupper() else names  # of a callback, without its class
        found = [o for o in self.all if names in (o.names, self._by_class(o), _short(o)) or flag == o.names]
        if any(part.isdigit() for origin in found for part in origin.path):
            found = [origin for origin in found if _quoted(origin.value, message)] or found
        return found[-1] if found else None

    def _by_class(self, origin: Origin) -> Path_:
        """`PeriodicCheckpoint.keep` for what is set inside an item of a list."""
        places = [i for i, part in enumerate(origin.path) if part.isdigit()]
        if not places:
            return ()
        item = origin.path[: places[-1] + 1]
        classes = [o.value for o in self.all if o.path == (*item, "class_path") and o.source == origin.source]
        inside = tuple(part for part in origin.path[len(item) :] if part != "init_args")
        return (str(classes[-1]).rpartition(".")[2], *inside) if classes else ()


def arguments(configs: Sequence[Path], overrides: Mapping[str, Any]) -> list[str]:
    """Files, and overrides as the text of one more: a value is what it is, where a flag is read for what it may be."""
    files = [part for path in configs for part in ("-c", str(path))]
    return [*files, f"--config={dump_yaml(dict(overrides), flow=True)}"] if overrides else files


def is_text(config: str) -> bool:
    """Whether what follows `-c` is the text of a configuration, as `arguments` writes it, and no file's name."""
    return config.startswith("{")


def _short(origin: Origin) -> Path_:
    """`--trainer.callbacks+ callbacks.decoding.DecodingProbe` sets a class_path."""
    return (*origin.names, "class_path") if isinstance(origin.value, str) else ()


def _quoted(value: Any, message: str) -> bool:
    return not isinstance(value, (dict, list)) and bool(re.search(rf"(?<![\w.]){re.escape(str(value))}(?!\w)", message))


def shown_file(path: Path) -> str:
    """As short as it can be: from the working directory, or among the shipped ones."""
    for folder in (Path.cwd(), CONF_DIR.parent):
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
    return str(path)


def _of_text(text: str, where: str, source: int) -> Iterator[Origin]:
    document, _ = parse_yaml(text, "the text of a configuration")
    return (Origin(at, value, where, source) for at, value in _walk((), document))


def _of_file(path: Path, source: int) -> Iterator[Origin]:
    document, lines = read_yaml(path)
    if document is not None and not isinstance(document, dict):
        raise InputError(f"{shown_file(path)}: a configuration file holds keys and values, as in `trainer: {{...}}`")
    for at, value in _raw(document or {}, ()):
        line = lines.get(at)
        where = f"in {shown_file(path)}{f':{line}' if line else ''}"
        yield Origin(tuple(part for name in at for part in _parts(name)), value, where, source)


def _raw(value: Any, at: Path_) -> Iterator[tuple[Path_, Any]]:
    """(path as written, value) of everything in a document, groups too."""
    if at:
        yield at, value
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _raw(inner, (*at, str(key)))


def _walk(path: Path_, value: Any) -> Iterator[tuple[Path_, Any]]:
    for at, inner in _raw(value, path):
        yield tuple(part for name in at for part in _parts(name)), inner


def _parts(key: str) -> Path_:
    return tuple(key.removesuffix("+").split("."))


def _loaded(text: str) -> Any:
    """A flag's value; no larger and no deeper than what a file may hold."""
    try:
        value = read_value(text)
    except RecursionError:
        value = None
    if isinstance(value, dict | list) or value is None:
        parse_yaml(text, "a flag's value")
    return value
