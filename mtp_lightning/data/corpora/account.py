"""What became of everything that a source holds: what was read, and what was left out, and why."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_EXAMPLES = 3
"""Names that are given for each reason."""


@dataclass
class Account:
    """Filled while a source is read; a source that is read again begins anew."""

    files: int = 0
    documents: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason -> how many."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> the first of them."""
    harmless: set[str] = field(default_factory=set)
    """Reasons that lose no text."""
    refusal: str | None = None
    """What is wrong with the first row that has no text: the message where no row has any."""

    def begin(self) -> None:
        self.files, self.documents, self.refusal = 0, 0, None
        for kept in (self.left_out, self.examples, self.harmless):
            kept.clear()

    def leave_out(self, reason: str, example: str, *, harmless: bool = False) -> None:
        """
        Args:
            reason: what it is, in the plural: `empty rows`.
            harmless: no text is lost by it, and `data.source.strict` does not refuse it.
        """
        self.left_out[reason] += 1
        if len(found := self.examples.setdefault(reason, [])) < _EXAMPLES:
            found.append(example)
        if harmless:
            self.harmless.add(reason)

    @property
    def losses(self) -> list[str]:
        return [reason for reason in self.left_out if reason not in self.harmless]

    def missing(self) -> str:
        """`empty rows: 2 (a.jsonl, line 3; a.jsonl, line 9), files of .zst: 1 (b.zst)`; empty where nothing was left
        out."""
        return ", ".join(
            f"{reason}: {count:,} ({'; '.join(self.examples[reason])}{'; ...' if count > _EXAMPLES else ''})"
            for reason, count in self.left_out.items()
        )

    def plain(self) -> dict[str, Any]:
        """For files; `from_plain` reads it."""
        return {
            "files": self.files,
            "left_out": [
                {
                    "reason": reason,
                    "count": count,
                    "examples": self.examples[reason],
                    "harmless": reason in self.harmless,
                }
                for reason, count in self.left_out.items()
            ],
        }


@dataclass(frozen=True)
class LeftOutMeta:
    """A reason in `AccountMeta`."""

    reason: str
    count: int
    examples: Sequence[str]
    harmless: bool


@dataclass(frozen=True)
class AccountMeta:
    """What `Account.plain` gives."""

    files: int
    left_out: Sequence[LeftOutMeta]


def from_plain(plain: dict[str, Any]) -> Account:
    found = plain["left_out"]
    return Account(
        files=plain["files"],
        left_out=Counter({part["reason"]: part["count"] for part in found}),
        examples={part["reason"]: part["examples"] for part in found},
        harmless={part["reason"] for part in found if part["harmless"]},
    )
