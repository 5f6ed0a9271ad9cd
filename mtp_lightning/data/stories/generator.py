"""Children's stories from templates: a corpus that needs no download, in which names come again and again.

A story follows one plot from beginning to end, so that what was lost is what is found:

    Once upon a time, there was a kind little girl named Lily. ... One day, Lily could not find the kite anywhere. ...

Story i is a function of (seed, i), whatever the machine and the version of Python: the only thing drawn is
`random.Random.random`, seeded with a string, which the standard library promises not to change.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from typing_extensions import override

from mtp_lightning.data.stories.templates import Plot, templates

DEFAULT_COUNT = 20_000
"""Stories of the corpus `stories` unless data.source.max_documents says otherwise."""
_SENTENCE_START = re.compile(r'(^"?|[.!?] "?|[.!?]" ")([a-z])')

_CONSONANTS = (*"bdfghjklmnprstvwz", "br", "ch", "dr", "fl", "gr", "kl", "pl", "sh", "st", "th", "tr")
_VOWELS = (*"aeiou", "ai", "ee", "oa", "oo")
_ENDS = ("", "", "", "l", "m", "n", "r", "s", "x")

T = TypeVar("T")


@dataclass(frozen=True)
class Word:
    """An entry of the vocabulary: "kite", "apple|apples" or "sing|sang|singing"."""

    forms: tuple[str, ...]

    @override
    def __str__(self) -> str:
        return self.forms[0]

    @property
    def a(self) -> str:
        article = "an" if self.forms[0][0] in "aeiou" and not self.forms[0].startswith(("uk", "uni")) else "a"
        return f"{article} {self.forms[0]}"

    @property
    def s(self) -> str:
        return self.forms[1]

    @property
    def ed(self) -> str:
        return self.forms[1]

    @property
    def ing(self) -> str:
        return self.forms[2]


@dataclass(frozen=True)
class Character:
    name: str
    kind: Word
    """What it is: "girl", "fox"."""
    female: bool

    @override
    def __str__(self) -> str:
        return self.name

    @property
    def he(self) -> str:
        return "she" if self.female else "he"

    @property
    def him(self) -> str:
        return "her" if self.female else "him"

    @property
    def his(self) -> str:
        return "her" if self.female else "his"

    @property
    def himself(self) -> str:
        return "herself" if self.female else "himself"


class Story(NamedTuple):
    text: str
    plot: Plot
    characters: tuple[Character, ...]


def stories(count: int, seed: int = 0, invented_names: bool = False) -> Iterator[str]:
    """The texts of stories 0 to count - 1."""
    for index in range(count):
        yield tell(index, seed, invented_names).text


def tell(index: int, seed: int = 0, invented_names: bool = False) -> Story:
    """Story `index`; the same one but for its names where these are invented."""
    rng = random.Random(f"{seed}/{index}")
    plot = _choose(rng, tuple(templates().plots.values()))
    cast = _cast(rng, plot.roles)
    if invented_names:
        cast = _renamed(random.Random(f"{seed}/{index}/names"), cast)
    slots = _Slots(rng, cast)
    paragraphs = []
    for paragraph in plot.paragraphs:
        sentences = (_choose(rng, beat) for beat in paragraph)
        paragraphs.append(" ".join(sentence.format_map(slots) for sentence in sentences if sentence))
    capitalised = (_SENTENCE_START.sub(lambda found: found[1] + found[2].upper(), p) for p in paragraphs)
    return Story("\n\n".join(capitalised), plot, cast)


class _Slots(dict[str, Character | Word]):
    """What a template's slots are filled with; words are drawn when they are first needed."""

    def __init__(self, rng: random.Random, cast: Sequence[Character]) -> None:
        super().__init__(zip("ABC", cast))
        self.rng, self.words, self.fresh = rng, templates().words, templates().fresh
        self.used: dict[str, list[str]] = {}

    def __missing__(self, slot: str) -> Word:
        kind = slot.rstrip("123456789")
        kept = kind in self.words
        entries = self.words[kind] if kept else self.fresh[kind]
        used = self.used.setdefault(kind, [])
        entry = _choose(self.rng, [entry for entry in entries if entry not in used] or entries)
        used.append(entry)
        word = Word(tuple(entry.split("|")))
        if kept:
            self[slot] = word
        return word


def _cast(rng: random.Random, roles: Sequence[str]) -> tuple[Character, ...]:
    """No two of them have the same name, and no two animals are of the same kind."""
    cast: list[Character] = []
    for role in roles:
        female = _choose(rng, (False, True))
        names, kinds = _names_and_kinds(role, female)
        name = _choose(rng, [name for name in names if all(name != other.name for other in cast)])
        other_kinds = [kind for kind in kinds if all(kind != str(other.kind) for other in cast)]
        cast.append(Character(name, Word((_choose(rng, other_kinds or kinds),)), female))
    return tuple(cast)


def _renamed(rng: random.Random, cast: Sequence[Character]) -> tuple[Character, ...]:
    """The same characters with names of two or three syllables, of which there are some two million."""
    names: list[str] = []
    while len(names) < len(cast):
        count = _choose(rng, (2, 2, 3))
        name = "".join(_choose(rng, _CONSONANTS) + _choose(rng, _VOWELS) for _ in range(count)) + _choose(rng, _ENDS)
        if name.title() not in names:
            names.append(name.title())
    return tuple(replace(character, name=name) for character, name in zip(cast, names))


def _names_and_kinds(role: str, female: bool) -> tuple[Sequence[str], Sequence[str]]:
    data = templates()
    if role == "child":
        return (data.girls, ("girl",)) if female else (data.boys, ("boy",))
    if role == "elder":
        title, kind = ("Mrs.", "woman") if female else ("Mr.", "man")
        return [f"{title} {name}" for name in data.surnames], (kind,)
    return data.creatures, data.kinds[role]


def _choose(rng: random.Random, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]
