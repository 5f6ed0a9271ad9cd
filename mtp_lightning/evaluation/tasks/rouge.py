"""ROUGE-L of a fine-tuned summariser, on pairs: rows with `prompt` (document and separator) and `completion`.

The package `rouge_score` sees nothing but a-z and 0-9. Where most letters of a reference are others (Cyrillic, Greek,
Chinese ...), its pair is split into words here, and the package compares these; results say of how many samples.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from typing_extensions import override

from mtp_lightning.data.tokens.tokenizer import Tokenizer
from mtp_lightning.errors import InputError
from mtp_lightning.evaluation.benchmark import Benchmark, Judged, by_problem
from mtp_lightning.evaluation.rows import check_distinct, read_rows
from mtp_lightning.evaluation.samples import Sample


class Rouge(Benchmark):
    """F1 by the package `rouge_score`, without its stemmer: the paper does not say whether it was used."""

    name = "rouge"
    domain = "prose"
    max_new_tokens = 256

    def __init__(self, path: str | Path) -> None:
        rows = read_rows(path, {"prompt": str, "completion": str}, "pairs")
        ids = [str(row.get("task_id", f"pairs/{number}")) for number, row in enumerate(rows)]
        check_distinct(path, ids)
        super().__init__({task_id: row["prompt"] for task_id, row in zip(ids, rows)})
        self.references = {task_id: row["completion"] for task_id, row in zip(ids, rows)}

    @override
    def check(self, tokenizer: Tokenizer) -> None:
        rouge_l([], [])

    @override
    def judge(self, samples: Sequence[Sample], ks: Sequence[int]) -> Judged:
        scores, verdicts = [], Counter[str]()
        for task_id, own in by_problem(self.prompts, samples).items():
            found = rouge_l([self.references[task_id]] * len(own), [sample.completion for sample in own])
            scores.append(sum(found) / len(found))
            if not is_latin(self.references[task_id]):
                verdicts["compared by words of any script"] += len(own)
        return Judged({"rouge_l": scores}, verdicts)


def rouge_l(references: Sequence[str], summaries: Sequence[str]) -> list[float]:
    """
    Raises:
        InputError: the package is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise InputError("rouge_score is not installed: pip install 'mtp-lightning[evaluation]'") from error
    scorers = {True: RougeScorer(["rougeL"], use_stemmer=False), False: RougeScorer(["rougeL"], tokenizer=AnyScript())}
    pairs = [(scorers[is_latin(reference)], reference, summary) for reference, summary in zip(references, summaries)]
    return [float(scorer.score(reference, summary)["rougeL"].fmeasure) for scorer, reference, summary in pairs]


def is_latin(text: str) -> bool:
    """Whether at least half of its letters are A-Z, a-z; also where it has none."""
    letters = [character.isascii() for character in text if character.isalpha()]
    return 2 * sum(letters) >= len(letters)


class AnyScript:
    """What `rouge_score` takes as a tokenizer: runs of letters, marks and digits, in lower case. Chinese and Japanese
    have no blanks between words: each of their characters is one."""

    def tokenize(self, text: str) -> list[str]:
        """On ASCII what the package's own does."""
        return "".join(map(self._spaced, unicodedata.normalize("NFC", text.lower()))).split()

    def _spaced(self, character: str) -> str:
        if unicodedata.category(character)[0] not in "LMN":
            return " "
        return f" {character} " if "\u3040" <= character <= "\u9fff" else character
