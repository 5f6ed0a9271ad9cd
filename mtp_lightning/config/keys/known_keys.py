"""Typing errors in keys, found in the sources of the classes without importing them: an answer in a fraction of a
second, where Lightning alone takes several to load.

What the sources do not say for sure is left to the real parser: other people's classes that take `**kwargs`, values
that are no plain dataclass. A test holds this against every key that the real parser knows.
"""

import ast
import importlib.util
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from mtp_lightning.config.keys.key_origins import KeyOrigins, Origin, Path_
from mtp_lightning.errors import InputError, did_you_mean

TOP_LEVEL = ("seed_everything", "trainer", "model", "data", "ckpt_path", "config", "json")
_ROOTS = {"model": "mtp_lightning.module.MTPModule", "trainer": "lightning.pytorch.trainer.trainer.Trainer"}
_SPECIAL = {"class_path", "init_args", "dict_kwargs", "help", "print_config", "__path__"}
"""Parts that the parser itself knows what to do with."""
_DEEPEST = 12

Parameters = dict[str, str | None]
"""Name -> the class of the value, dotted, where the annotation is a single name."""


def check_keys(origins: KeyOrigins) -> None:
    """
    Raises:
        InputError: keys that no configuration can have, each with where it was set and what may be meant.
    """
    wrong: dict[str, None] = {}
    for origin in origins.all:
        refused = refusal(origin, origins.all)
        if origin.path in (("trainer",), ("model",), ("data",)) and origin.value is None:
            refused = f"{origin.path[0]} is empty: give keys below it, or leave it out"
        if refused:
            wrong[f"{refused}{f' ({origin.where})' if origin.where else ''}"] = None
    if wrong:
        raise InputError("\n".join(wrong))


def refusal(origin: Origin, among: Sequence[Origin] = ()) -> str | None:
    """What is wrong with the key; None: nothing that the sources alone could tell.

    Args:
        among: all keys that are set; they say which class `data` is.
    """
    path = origin.path
    if path[0] in ("help", "h") or path[0].startswith("print_"):
        return None
    if path[0] not in TOP_LEVEL:
        return _no_key(path[:1], TOP_LEVEL)
    of_class = _ROOTS.get(path[0])
    for depth in range(1, len(path)):
        part = path[depth]
        if of_class is None:
            of_class = _class_set(path[:depth], origin, among)
            if part == "init_args":
                continue
        elif part == "init_args" and path[depth - 1] != "init_args":
            continue
        known = parameters(of_class) if of_class else None
        if part.isdigit():
            of_class = None
            continue
        if known is None or part in _SPECIAL:
            return None
        if part not in known:
            return _no_key(path[: depth + 1], known)
        inner = known[part]
        of_class = inner if inner is not None and _is_closed(inner) else None
    return None


def _no_key(path: Path_, known: Sequence[str] | Parameters) -> str:
    front = "".join(f"{part}." for part in path[:-1] if not part.isdigit())
    return f"there is no key '{front}{path[-1]}'{did_you_mean(front + path[-1], [front + name for name in known])}"


def _class_set(path: Path_, origin: Origin, among: Sequence[Origin]) -> str | None:
    """The class at `path`, where `origin` is sure to be one of its arguments: set in the same place or earlier."""
    at = path[:-1] if path[-1] == "init_args" else path
    set_ = [other for other in among if other.path == (*at, "class_path")]
    if not set_ or set_[-1].source > origin.source or not isinstance(set_[-1].value, str):
        return None
    return set_[-1].value


@cache
def parameters(path: str, depth: int = 0) -> Parameters | None:
    """Of the class's constructor, or fields of a dataclass; None where the sources do not say."""
    found = _find(path)
    if found is None or depth > _DEEPEST:
        return None
    module, cls = found
    if cls.decorator_list:
        return _fields(module, cls, depth) if _has_dataclass_decorator(cls) else None
    init = next((node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"), None)
    if init is None:
        inherited = [parameters(f"{module}.{base.id}", depth + 1) for base in cls.bases if isinstance(base, ast.Name)]
        return inherited[0] if len(inherited) == len(cls.bases) == 1 else None
    if init.args.kwarg or init.args.vararg:
        return None
    arguments = [*init.args.posonlyargs, *init.args.args, *init.args.kwonlyargs][1:]
    return {arg.arg: _single_name(module, arg.annotation) for arg in arguments}


def _fields(module: str, cls: ast.ClassDef, depth: int) -> Parameters | None:
    fields: Parameters = {}
    for base in cls.bases:
        inherited = parameters(f"{module}.{base.id}", depth + 1) if isinstance(base, ast.Name) else None
        is_abc = isinstance(base, ast.Name) and base.id == "ABC"
        if inherited is None and not is_abc:
            return None
        fields |= inherited or {}
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            fields[node.target.id] = _single_name(module, node.annotation)
    return fields


def _single_name(module: str, annotation: ast.expr | None) -> str | None:
    return f"{module}.{annotation.id}" if isinstance(annotation, ast.Name) else None


def _has_dataclass_decorator(cls: ast.ClassDef) -> bool:
    (decorator, *others) = cls.decorator_list
    decorator = decorator.func if isinstance(decorator, ast.Call) else decorator
    return not others and isinstance(decorator, ast.Name) and decorator.id == "dataclass"


def _is_closed(path: str) -> bool:
    """A plain dataclass, in whose place no other class can be asked for."""
    found = _find(path)
    if found is None or not found[1].decorator_list or not _has_dataclass_decorator(found[1]):
        return False
    return not any(isinstance(base, ast.Name) and base.id == "ABC" for base in found[1].bases)


@cache
def _find(path: str, depth: int = 0) -> tuple[str, ast.ClassDef] | None:
    """(module, definition) of a class, imports followed."""
    module, _, name = path.rpartition(".")
    tree = _tree(module) if module and depth < _DEEPEST else None
    for node in _statements(tree.body if tree else []):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(f"{node.module}.{alias.name}", depth + 1)
    return None


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Of a module, with those under `if TYPE_CHECKING`."""
    for node in body:
        yield from _statements(node.body) if isinstance(node, ast.If) else [node]


@cache
def _tree(module: str) -> ast.Module | None:
    top, *below = module.split(".")
    try:
        spec = importlib.util.find_spec(top)  # of a top-level name: nothing is imported
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    files = [Path(spec.origin)] if spec.origin and not below else []
    for folder in spec.submodule_search_locations or []:
        at = Path(folder, *below)
        files += [at.with_name(f"{at.name}.py"), at / "__init__.py"]
    for file in files:
        if file.suffix == ".py" and file.is_file():
            try:
                return ast.parse(file.read_text(encoding="utf-8"))
            except (SyntaxError, UnicodeDecodeError):
                return None
    return None
