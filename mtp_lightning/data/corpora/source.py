"""What a corpus is, as a configuration says it; `documents.py` reads it."""

import re
from dataclasses import dataclass, fields
from typing import Literal

from mtp_lightning.errors import InputError
from mtp_lightning.ranges import Count, check_ranges

SourceKind = Literal["python_stdlib", "stories", "text", "json", "parquet", "hub", "pairs", "story_pairs", "shards"]
PAIRS: tuple[SourceKind, ...] = ("pairs", "story_pairs")
"""Kinds whose documents are a question with its answer, of which the answer alone is trained on."""
GENERATED: tuple[SourceKind, ...] = ("python_stdlib", "stories", "story_pairs")
"""Kinds that need no path."""
LOCAL: tuple[SourceKind, ...] = ("text", "json", "parquet", "pairs")
"""Kinds that read files of the user's."""
_READ_BY: dict[str, tuple[SourceKind, ...]] = {
    "path": (*LOCAL, "hub", "shards"),
    "glob": LOCAL,
    "separator": ("text",),
    "text_column": ("json", "parquet", "hub"),
    "name": ("hub",),
    "split": ("hub",),
    "revision": ("hub",),
    "invented_names": ("stories", "story_pairs"),
    "chat_template": ("pairs",),
}
"""Key -> the kinds that it goes with: to another kind it would say nothing."""
_REGEX = "re:"


@dataclass(frozen=True)
class SourceConfig:
    """A corpus.

    Raises:
        InputError: a kind that needs a path and has none; a key that the kind does not read.
    """

    kind: SourceKind = "python_stdlib"
    """`python_stdlib`: the source code of the running interpreter's standard library; `stories`: children's stories of
    our own generator; `text`, `json` (also JSON lines) and `parquet`: local files; `hub`: a data set on the Hugging
    Face hub, streamed; `pairs`: JSON rows with `prompt` and `completion`, or with `messages`, for fine-tuning;
    `story_pairs`: questions about stories of our own generator, with their answers; `shards`: a folder made by
    `mtp data prepare`."""
    path: str | None = None
    """File, folder or glob pattern of local files; name of a hub data set; folder of shards. What is there under this
    very name is no pattern. Links to folders are followed, and each file is read once."""
    glob: str | None = None
    """Which files of the folder `path` to read, as in `**/*.md`; by default those with a suffix of the kind."""
    separator: str | None = None
    """Splits a text file into documents; by default a file is a document. `\\n` in it means a line break, LF
    or CR LF. After `re:` it is a regular expression, as `re:(?<!\\n)\\n(?!\\n)` for single line breaks (LF alone)."""
    text_column: str = "text"
    """The column of json, parquet and hub data that holds the text."""
    name: str | None = None
    """Configuration of a hub data set, where it has several."""
    split: str = "train"
    """Split of a hub data set to read. Training and validation are split here, by document."""
    revision: str | None = None
    """Commit of a hub data set, so that it cannot change while an experiment runs."""
    max_documents: Count | None = None
    """Read only so many documents. Of `stories` and `story_pairs` there are so many, 20,000 by default."""
    invented_names: bool = False
    """For `stories` and `story_pairs`: characters have names out of some two million, which a model can only copy from
    the story."""
    chat_template: str | None = None
    """For `pairs` with `messages`: a file with the chat template (Jinja, or a tokenizer_config.json); by default the
    one that lies beside the tokenizer.json."""
    deduplicate: bool = False
    """Leave out documents whose text occurred before, letter for letter; they are counted as left out. Needs some 100
    bytes of memory a document."""
    keep: str | None = None
    """A list of documents to read alone, as `mtp data prune` writes it for this corpus. Documents that it leaves out
    are counted as left out; no validation document is."""
    strict: bool = False
    """Refuse a corpus of which anything is left out: files of other suffixes, empty rows, rows without text."""

    def __post_init__(self) -> None:
        check_ranges("data.source", SourceConfig, vars(self))
        if self.kind not in GENERATED and not self.path:
            raise InputError(f"data.source.path is missing: data.source.kind = '{self.kind}' reads from there")
        for field in fields(self):
            value, kinds = getattr(self, field.name), _READ_BY.get(field.name)
            if kinds is not None and self.kind not in kinds and value != field.default:
                one = "one of " if len(kinds) > 1 else ""
                raise InputError(
                    f"data.source.{field.name} is '{value}', and data.source.kind = '{self.kind}' does not read it: it "
                    f"goes with {one}{', '.join(kinds)}"
                )
        if self.keep is not None and self.kind == "shards":
            raise InputError("data.source.keep is for text, and shards have no names: give it when they are prepared")
        if self.separator == "":
            raise InputError("data.source.separator is empty: leave it out to keep a file as one document")
        if self.separator is not None:
            separator_pattern(self.separator)


PYTHON_STDLIB = SourceConfig(kind="python_stdlib")


def separator_pattern(separator: str) -> re.Pattern[str]:
    """
    Raises:
        InputError: what follows `re:` is no regular expression.
    """
    if not separator.startswith(_REGEX):
        lines = separator.replace("\\n", "\n").split("\n")
        return re.compile("\r?\n".join(map(re.escape, lines)))
    try:
        return re.compile(separator.removeprefix(_REGEX))
    except re.error as error:
        raise InputError(f"data.source.separator: '{separator}' is no regular expression: {error}") from error
