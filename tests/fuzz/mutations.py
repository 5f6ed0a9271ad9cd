"""Random damage: of bytes, of text, of values inside JSON or YAML. Everything follows from one generator."""

import copy
import json
import random
from typing import Any

import yaml

ODD_TEXT = [
    "", " ", "~", "null", "# x", "---", "&a", "*a", "{", "[", "'", '"', "$(touch owned)", "`touch owned`", "a\nb",
    "\x00", "\x1b[31m", "٣", "\u202eabc", "é" * 300, "../../out", "/", "%41", "?", "${trainer.max_steps}",
    "${oc.env:HOME}", "1:30", "010", "0x10", "1e999", "yes", "!!python/object/apply:os.system [id]",
]  # fmt: skip
ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**12, 10**400, 0.0, -0.5, 1e-300, 1e308, float("nan"), float("inf"),
    float("-inf"), [], {}, [[]], {"a": {"b": []}}, [None], *ODD_TEXT,
]  # fmt: skip


DEEP = "@deep@"
"""Stands for more nested lists than a recursive reader or writer can take, until it is text."""


def as_json(tree: Any) -> str:
    return json.dumps(tree).replace(f'"{DEEP}"', "[" * 5000 + "]" * 5000)


def as_yaml(tree: Any) -> str:
    return yaml.safe_dump(tree, allow_unicode=True).replace(f"'{DEEP}'", "[" * 5000 + "]" * 5000)


def bytes_of(data: bytes, chance: random.Random) -> bytes:
    """Flipped bits, a cut end, a hole, a part twice, other bytes in between, or nothing at all."""
    if not data:
        return chance.randbytes(chance.randrange(64))
    at, to = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    how = chance.randrange(7)
    if how == 0:
        changed = bytearray(data)
        for _ in range(chance.choice([1, 1, 3, 30])):
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        return bytes(changed)
    return [
        data[:at],
        data[:at] + data[to:],
        data[:to] + data[at:],
        data[:at] + chance.randbytes(chance.randrange(1, 40)) + data[at:],
        data[:at] + bytes(to - at) + data[to:],
        data[at:],
    ][how - 1]


def text_of(text: str, chance: random.Random) -> str:
    """A line gone, twice, moved or indented; a word replaced by an odd one; or damage of its bytes."""
    lines = text.split("\n")
    at = chance.randrange(len(lines))
    how = chance.randrange(6)
    if how == 0:
        del lines[at]
    elif how == 1:
        lines.insert(chance.randrange(len(lines) + 1), lines[at])
    elif how == 2:
        lines[at] = " " * chance.randrange(1, 5) + lines[at]
    elif how == 3:
        before, colon, _ = lines[at].partition(":")
        lines[at] = f"{before}{colon} {chance.choice(ODD_TEXT)}"
    elif how == 4:
        lines[at] = lines[at].replace(chance.choice(list(lines[at]) or [" "]), chance.choice(ODD_TEXT), 1)
    else:
        return bytes_of(text.encode(), chance).decode("utf-8", errors="replace")
    return "\n".join(lines)


def value_of(tree: Any, chance: random.Random) -> Any:
    """The same tree with one of its values odd, gone, renamed, or in another's place."""
    tree = copy.deepcopy(tree)
    places = list(_places(tree))
    if not places:
        return chance.choice(ODD_VALUES)
    holder, key = chance.choice(places)
    how = chance.randrange(5)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, dict):
        holder[chance.choice(ODD_TEXT) or "x"] = holder.pop(key)
    elif how == 2:
        other, its = chance.choice(places)
        holder[key] = copy.deepcopy(other[its])
    elif how == 3:
        holder[key] = chance.choice([[holder[key]], [[[holder[key]]]], DEEP])
    else:
        holder[key] = chance.choice(ODD_VALUES)
    return tree


def _places(tree: Any) -> Any:
    """(holder, key) of everything in a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield tree, key
        yield from _places(value)
