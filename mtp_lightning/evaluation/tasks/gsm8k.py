"""GSM8K (Cobbe et al. 2021): word problems, answered after eight worked examples (Wei et al. 2022, arXiv 2201.11903).

An answer is found twice, as lm-eval's `gsm8k_cot` does: strictly, the first `The answer is N.`; flexibly, the last
number of the text. Both are compared with what follows `#### ` in the reference, after commas, dollar signs and a final
point are removed.
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from math import comb
from pathlib import Path
from random import Random

from typing_extensions import override

from mtp_lightning.errors import InputError
from mtp_lightning.evaluation.benchmark import Benchmark, Judged, by_problem, pass_scores
from mtp_lightning.evaluation.rows import read_rows
from mtp_lightning.evaluation.samples import Sample

EXAMPLES = (
    (
        "There are 15 trees in the grove. Grove workers will plant trees in the grove today. After they are done, "
        "there will be 21 trees. How many trees did the grove workers plant today?",
        "There are 15 trees originally. Then there were 21 trees after some more were planted. So there must have "
        "been 21 - 15 = 6. The answer is 6.",
    ),
    (
        "If there are 3 cars in the parking lot and 2 more cars arrive, how many cars are in the parking lot?",
        "There are originally 3 cars. 2 more cars arrive. 3 + 2 = 5. The answer is 5.",
    ),
    (
        "Leah had 32 chocolates and her sister had 42. If they ate 35, how many pieces do they have left in total?",
        "Originally, Leah had 32 chocolates. Her sister had 42. So in total they had 32 + 42 = 74. After eating 35, "
        "they had 74 - 35 = 39. The answer is 39.",
    ),
    (
        "Jason had 20 lollipops. He gave Denny some lollipops. Now Jason has 12 lollipops. How many lollipops did "
        "Jason give to Denny?",
        "Jason started with 20 lollipops. Then he had 12 after giving some to Denny. So he gave Denny 20 - 12 = 8. "
        "The answer is 8.",
    ),
    (
        "Shawn has five toys. For Christmas, he got two toys each from his mom and dad. How many toys does he have "
        "now?",
        "Shawn started with 5 toys. If he got 2 toys each from his mom and dad, then that is 4 more toys. 5 + 4 = 9. "
        "The answer is 9.",
    ),
    (
        "There were nine computers in the server room. Five more computers were installed each day, from monday to "
        "thursday. How many computers are now in the server room?",
        "There were originally 9 computers. For each of 4 days, 5 more computers were added. So 5 * 4 = 20 computers "
        "were added. 9 + 20 is 29. The answer is 29.",
    ),
    (
        "Michael had 58 golf balls. On tuesday, he lost 23 golf balls. On wednesday, he lost 2 more. How many golf "
        "balls did he have at the end of wednesday?",
        "Michael started with 58 golf balls. After losing 23 on tuesday, he had 58 - 23 = 35. After losing 2 more, "
        "he had 35 - 2 = 33 golf balls. The answer is 33.",
    ),
    (
        "Olivia has $23. She bought five bagels for $3 each. How much money does she have left?",
        "Olivia had 23 dollars. 5 bagels for 3 dollars each will be 5 x 3 = 15 dollars. So she has 23 - 15 dollars "
        "left. 23 - 15 is 8. The answer is 8.",
    ),
)
SHOTS = "".join(f"Q: {question}\nA: {answer}\n\n" for question, answer in EXAMPLES)
STOPS = ("Q:", "</s>", "<|im_end|>")

_STRICT = re.compile(r"The answer is (-?[0-9.,]+)")
"""lm-eval's has one more `.` at its end, with which "The answer is 18", last in a text, gives 1."""
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


_EXACT_SUBSETS = 2000
"""Up to so many subsets are gone through one by one; above, so many are drawn."""


_EXACT_SUBSETS = 2000
"""Up to so many subsets are gone through one by one; above, so many are drawn."""


class GSM8K(Benchmark):
    """The problems of a file of rows with `question` and `answer`."""

    name = "gsm8k"
    domain = "maths"
    stops = STOPS
    max_new_tokens = 256
    shots = SHOTS

    def __init__(self, path: str | Path) -> None:
        rows = read_rows(path, {"question": str, "answer": str}, "GSM8K")
        for number, row in enumerate(rows, start=1):
            if "#### " not in row["answer"]:
                raise InputError(f"data: '{path}', row {number}: a GSM8K answer ends in '#### ' and a number")
        ids = [f"GSM8K/{number}" for number in range(len(rows))]
        super().__init__({i: f"{SHOTS}Q: {row['question']}\nA:" for i, row in zip(ids, rows)})
        self.gold = {i: normal(row["answer"]) for i, row in zip(ids, rows)}

    @override
    def judge(self, samples: Sequence[Sample], ks: Sequence[int]) -> Judged:
        strict: dict[str, list[str | None]] = {}
        right: dict[str, dict[str, list[bool]]] = {"": {}, "flexible/": {}}
        for task_id, own in by_problem(self.prompts, samples).items():
            strict[task_id] = [strict_answer(sample.completion) for sample in own]
            flexible = [flexible_answer(sample.completion) for sample in own]
            right[""][task_id] = [answer == self.gold[task_id] for answer in strict[task_id]]
            right["flexible/"][task_id] = [answer == self.gold[task_id] for answer in flexible]
        scores = {
            kind + name: found for kind, passed in right.items() for name, found in pass_scores(passed, ks).items()
        }
        for k in ks:
            if k > 1:
                scores[f"majority_at_{k}"] = [majority_at(strict[i], self.gold[i], k) for i in strict]
        verdicts = Counter(
            "no answer" if answer is None else "right" if answer == self.gold[i] else "wrong"
            for i, answers in strict.items()
            for answer in answers
        )
        passed = {(i, number): ok for i, found in right[""].items() for number, ok in enumerate(found)}
        return Judged(scores, verdicts, passed)


def strict_answer(text: str) -> str | None:
    found = _STRICT.search(text)
    return normal(found[1]) if found else None


def flexible_answer(text: str) -> str | None:
    found = [match[0] for match in _FLEXIBLE.finditer(text)]
    return normal(found[-1]) if found else None


def normal(answer: str) -> str:
    """Without what precedes `#### `, commas, dollar signs and a final point."""
    after = answer.rpartition("#### ")[2]
    return re.sub(r"\.$", "", after.replace(",", "").replace("$", "")).strip().lower()


def majority_at(answers: Sequence[str | None], gold: str, k: int, seed: int = 0) -> float:
    """How often the most frequent answer of k of these samples is right (self-consistency, Wang et al. 2022): the mean
    over all subsets of size k, or over 2,000 random ones. Of equally frequent ones the first counts; a sample without
    an answer has no vote.

    Args:
        answers: as they were sampled.
    """
    n = len(answers)
    assert 1 <= k <= n
    if comb(n, k) <= _EXACT_SUBSETS:
        subsets = list(combinations(range(n), k))
    else:
        chance = Random(f"{seed} {n} {k}")
        subsets = [tuple(sorted(chance.sample(range(n), k))) for _ in range(_EXACT_SUBSETS)]
    right = sum(_most_frequent([answers[i] for i in subset]) == gold for subset in subsets)
    return right / len(subsets)


def _most_frequent(answers: Sequence[str | None]) -> str | None:
    votes = Counter(answer for answer in answers if answer is not None)  # keeps the order of first sight
    return max(votes, key=votes.__getitem__, default=None)
