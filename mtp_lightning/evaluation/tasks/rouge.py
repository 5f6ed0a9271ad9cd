"""ROUGE-L of a fine-tuned summariser, on pairs: rows with `prompt` (document and separator) and `completion`."""

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
        scores = []
        for task_id, own in by_problem(self.prompts, samples).items():
            found = rouge_l([self.references[task_id]] * len(own), [sample.completion for sample in own])
            scores.append(sum(found) / len(found))
        return Judged({"rouge_l": scores})


def rouge_l(references: Sequence[str], summaries: Sequence[str]) -> list[float]:
    """
    Raises:
        InputError: the package is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise InputError("rouge_score is not installed: pip install 'mtp-lightning[evaluation]'") from error
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    pairs = zip(references, summaries, strict=True)
    return [float(scorer.score(reference, summary)["rougeL"].fmeasure) for reference, summary in pairs]
