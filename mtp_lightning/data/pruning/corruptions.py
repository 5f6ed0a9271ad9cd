"""Python source made worse on purpose, in five ways (SCIP, arXiv 2312.02418): what a score of documents has to see.

Two break the syntax: closing brackets removed, variables renamed to what is no identifier. Three leave a file that
still parses: comparisons and `and`/`or` altered, assignment operators altered, indices moved by one. Strings and
comments are left alone. Each is a function (text, rng, rate) -> (text, number of edits); no Python has no edits.
"""

import ast
import io
import tokenize
import warnings
from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Annotated, NamedTuple, TypeVar

from mtp_lightning.ranges import Range

Rate = Annotated[float, Range(above=0, most=1)]
"""The share of the places that are edited; one of them at least."""
_CONDITIONS = {
    "==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">", "and": "or", "or": "and",
}  # fmt: skip
_ASSIGNMENTS = ("=", "+=", "-=", "*=")
_LONGEST_INDEX = 2
"""Letters of a name that is taken for an index, as `i` in `rows[i]`: longer ones are as often keys or types."""


Place = TypeVar("Place")
_STRINGS = (getattr(tokenize, "FSTRING_START", None), getattr(tokenize, "FSTRING_END", None))
"""From Python 3.12 on, what stands inside f-strings is tokens, too."""


class Corrupted(NamedTuple):
    text: str
    edits: int


class _Edit(NamedTuple):
    """What takes the place of the characters from `start` to `stop`."""

    start: int
    stop: int
    text: str


def remove_brackets(text: str, rng: Random, rate: float) -> Corrupted:
    """Without some of its closing brackets. It never parses: more are opened than closed."""
    if _parsed(text)[0] is None:
        return Corrupted(text, 0)
    found = [_Edit(a, b, "") for a, b, token in _tokens(text) if token.string in (")", "]", "}")]
    return _applied(text, _chosen(found, rng, rate))


def rename_variables(text: str, rng: Random, rate: float) -> Corrupted:
    """Some variables have a digit before their names, everywhere: `total` is `7total`. The rate is of variables, the
    edits are counted at each place."""
    tree, places = _parsed(text)
    if tree is None:
        return Corrupted(text, 0)
    bound: dict[str, None] = {}
    named = []
    for node in _nodes(tree):
        if isinstance(node, ast.arg) or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)):
            bound[node.arg if isinstance(node, ast.arg) else node.id] = None
        if isinstance(node, ast.arg):
            named.append((node.arg, places(node.lineno, node.col_offset)))
        elif isinstance(node, ast.Name):
            named.append((node.id, places(node.lineno, node.col_offset)))
    renamed = {name: f"{rng.randrange(10)}{name}" for name in _chosen(sorted(bound), rng, rate)}
    edits = [_Edit(at, at + len(name), renamed[name]) for name, at in named if name in renamed]
    return _applied(text, edits)


def alter_conditions(text: str, rng: Random, rate: float) -> Corrupted:
    """Comparisons and `and`/`or` turned into their opposites."""
    if _parsed(text)[0] is None:
        return Corrupted(text, 0)
    found = [_Edit(a, b, _CONDITIONS[token.string]) for a, b, token in _tokens(text) if token.string in _CONDITIONS]
    return _applied(text, _chosen(found, rng, rate))


def alter_assignments(text: str, rng: Random, rate: float) -> Corrupted:
    """`=`, `+=`, `-=` and `*=` of statements with one target turned into another of them."""
    tree, places = _parsed(text)
    if tree is None:
        return Corrupted(text, 0)
    starts = set()
    for node in _nodes(tree):
        if isinstance(node, ast.AugAssign) or (isinstance(node, ast.Assign) and _has_one_target(node)):
            starts.add(places(node.lineno, node.col_offset))
    edits, waiting, depth = [], False, 0
    for a, b, token in _tokens(text):
        waiting, depth = (True, 0) if a in starts else (waiting, depth)
        depth += (token.string in ("(", "[", "{")) - (token.string in (")", "]", "}"))
        if waiting and not depth and token.string in _ASSIGNMENTS:
            edits.append(_Edit(a, b, rng.choice([other for other in _ASSIGNMENTS if other != token.string])))
        if waiting and not depth and token.type == tokenize.OP and token.string.endswith("="):
            waiting = False
    return _applied(text, _chosen(edits, rng, rate))


def offset_indices(text: str, rng: Random, rate: float) -> Corrupted:
    """`rows[0]` is `rows[0 + 1]`: of indices that are whole numbers, sums, differences or names of a letter or two."""
    tree, places = _parsed(text)
    if tree is None:
        return Corrupted(text, 0)
    ends = {
        places(node.slice.end_lineno or 0, node.slice.end_col_offset or 0)
        for node in _nodes(tree)
        if isinstance(node, ast.Subscript) and _is_index(node.slice)
    }
    return _applied(text, _chosen([_Edit(b, b, " + 1") for b in sorted(ends)], rng, rate))


Corruption = Callable[[str, Random, float], Corrupted]
CORRUPTIONS: Mapping[str, Corruption] = {
    "brackets": remove_brackets,
    "names": rename_variables,
    "conditions": alter_conditions,
    "assignments": alter_assignments,
    "indices": offset_indices,
}


def corrupt(kind: str, text: str, name: str, seed: int, rate: float) -> Corrupted:
    """A corruption whose chance is of the document's name alone, not of the others'."""
    return CORRUPTIONS[kind](text, Random(f"{kind} {seed} {name}"), rate)


def beginning(text: str, characters: int) -> str:
    """The first statements of Python source that are not longer together, or the first one; of other text so many
    characters."""
    tree, places = _parsed(text)
    if len(text) <= characters or tree is None or not tree.body:
        return text if len(text) <= characters else text[:characters]
    ends = [places(node.end_lineno or 0, node.end_col_offset or 0) for node in tree.body]
    last = max((end for end in ends if end < characters), default=ends[0])
    line_end = text.find("\n", last)
    return text if line_end < 0 else text[: line_end + 1]


def _has_one_target(node: ast.Assign) -> bool:
    return len(node.targets) == 1 and not isinstance(node.targets[0], ast.Tuple | ast.List | ast.Starred)


def _is_index(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    if isinstance(node, ast.Constant):
        return type(node.value) is int
    if isinstance(node, ast.Name):
        return len(node.id) <= _LONGEST_INDEX and node.id.islower()
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub)


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All but those in f-strings, whose places are not those of the text before Python 3.12."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [] if isinstance(node, ast.JoinedStr) else ast.iter_child_nodes(node)


def _parsed(text: str) -> tuple[ast.Module | None, Callable[[int, int], int]]:
    """(the tree, what gives the character at a line and an offset of the tree); None for what is no Python."""
    lines = text.split("\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)

    def place(line: int, offset: int) -> int:
        found = lines[line - 1]
        if not found.isascii():
            offset = len(found.encode("utf-8", errors="replace")[:offset].decode("utf-8", errors="replace"))
        return starts[line - 1] + offset

    if "\r" in text.replace("\r\n", "\n"):
        return None, place  # a line's end to the parser, and none to others
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text), place
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None, place


def _tokens(text: str) -> Iterator[tuple[int, int, tokenize.TokenInfo]]:
    """(first character, the one after the last, token) of all operators, names and numbers; none of what is no
    Python."""
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    try:
        found = list(tokenize.generate_tokens(io.StringIO(text, newline="\n").readline))
    except (tokenize.TokenError, SyntaxError):
        return
    inside = 0
    for token in found:
        inside += (token.type == _STRINGS[0]) - (token.type == _STRINGS[1])
        if not inside and token.type in (tokenize.OP, tokenize.NAME, tokenize.NUMBER):
            yield starts[token.start[0] - 1] + token.start[1], starts[token.end[0] - 1] + token.end[1], token


def _chosen(found: list[Place], rng: Random, rate: float) -> list[Place]:
    return rng.sample(found, max(1, round(rate * len(found)))) if found else []


def _applied(text: str, edits: list[_Edit]) -> Corrupted:
    parts, at = [], 0
    for edit in sorted(edits):
        parts += [text[at : edit.start], edit.text]
        at = edit.stop
    return Corrupted("".join([*parts, text[at:]]), len(edits))
