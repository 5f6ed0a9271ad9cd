"""GSM8K's prompts and answers, the majority vote, and which temperature a score is reported at."""

import itertools
import json
import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mtp_lightning.errors import InputError
from mtp_lightning.evaluation.results.temperatures import choose, fixed_temperatures
from mtp_lightning.evaluation.samples import Sample
from mtp_lightning.evaluation.tasks.gsm8k import GSM8K, flexible_answer, majority_at, normal, strict_answer

ROWS = [
    {"question": "Tom has 3 eggs and eats 1. How many are left?", "answer": "3 - 1 = <<3-1=2>>2\n#### 2"},
    {"question": "A car costs $1,200. What do two cost?", "answer": "2 * 1200 = 2400\n#### 2,400"},
]


@pytest.fixture
def benchmark(tmp_path: Path) -> GSM8K:
    path = tmp_path / "gsm8k.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return GSM8K(path)


def test_the_prompt_word_by_word(benchmark: GSM8K) -> None:
    prompt = benchmark.prompts["GSM8K/0"]
    assert prompt.startswith(
        "Q: There are 15 trees in the grove. Grove workers will plant trees in the grove today. After they are done, "
        "there will be 21 trees. How many trees did the grove workers plant today?\n"
        "A: There are 15 trees originally. Then there were 21 trees after some more were planted. So there must have "
        "been 21 - 15 = 6. The answer is 6.\n\nQ: If there are 3 cars"
    )
    assert prompt.endswith("23 - 15 is 8. The answer is 8.\n\nQ: Tom has 3 eggs and eats 1. How many are left?\nA:")
    assert prompt.count("Q: ") == 9


def test_the_prompt_is_lm_evals(benchmark: GSM8K) -> None:
    """Its `gsm8k_cot`, whose examples stand in a file that is read here, and not run."""
    import lm_eval
    import yaml

    text = (Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k-cot.yaml").read_text()
    task = yaml.safe_load(text)
    shots = [f"Q: {shot['question']}\nA: {shot['target']}\n\n" for shot in task["fewshot_config"]["samples"]]
    assert benchmark.prompts["GSM8K/0"] == "".join(shots) + f"Q: {ROWS[0]['question']}\nA:"
    assert [*benchmark.stops] == task["generation_kwargs"]["until"]


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("3 - 1 = 2. The answer is 2.\n\n", "2", "2"),
        ("The answer is 18", "18", "18"),
        ("The answer is -1,234.50.", "-1234.50", "-1234.50"),
        ("The answer is $5.", None, "5"),
        ("The answer is 1. No, The answer is 3.", "1", "3"),
        ("so 4 + 5 = 9 dollars", None, "9"),
        ("no number", None, None),
    ],
)
def test_answers(text: str, strict: str | None, flexible: str | None) -> None:
    assert (strict_answer(text), flexible_answer(text)) == (strict, flexible)


def test_judging(benchmark: GSM8K) -> None:
    assert benchmark.gold == {"GSM8K/0": "2", "GSM8K/1": "2400"}
    texts = {"GSM8K/0": ["The answer is 2.", "2", "The answer is 3."], "GSM8K/1": ["The answer is 2,400.", "?", "?"]}
    samples = [Sample(i, n, text, "stop") for i, own in texts.items() for n, text in enumerate(own)]
    judged = benchmark.judge(samples[::-1], [1, 2])
    assert judged.scores == {
        "pass_at_1": pytest.approx([1 / 3, 1 / 3]),
        "pass_at_2": pytest.approx([2 / 3, 2 / 3]),
        "flexible/pass_at_1": pytest.approx([2 / 3, 1 / 3]),
        "flexible/pass_at_2": pytest.approx([1, 2 / 3]),
        "majority_at_2": pytest.approx([2 / 3, 2 / 3]),
    }
    assert judged.verdicts == {"right": 2, "no answer": 3, "wrong": 1}
    assert judged.passed["GSM8K/0", 0]
    assert not judged.passed["GSM8K/0", 1]


def test_majority_votes_against_all_subsets() -> None:
    chance = random.Random(0)
    for _ in range(30):
        answers = [chance.choice(["1", "2", "3", None]) for _ in range(7)]
        for k in range(1, 8):
            right = 0
            subsets = list(itertools.combinations(answers, k))
            for subset in subsets:
                counts = Counter(a for a in subset if a is not None)
                tied = [a for a in counts if counts[a] == max(counts.values())]
                right += bool(tied) and min(tied, key=subset.index) == "1"
            assert majority_at(answers, "1", k) == pytest.approx(right / len(subsets))
    many = ["1"] * 60 + ["2"] * 40
    assert majority_at(many, "1", 1) == pytest.approx(0.6)
    assert majority_at(many, "1", 51) == pytest.approx(0.99, abs=0.02)  # of random subsets
    assert majority_at(many, "1", 51) == majority_at(many, "1", 51)


def test_the_temperature_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    values = {t: rng.random(40).tolist() for t in (0.1, 0.4, 0.8)}
    found = choose(values)
    means = {t: sum(v) / 40 for t, v in values.items()}
    assert found.temperature == max(means, key=means.__getitem__)
    assert found.value == pytest.approx(max(means.values()))
    maxima = []
    for _ in range(4000):
        picked = rng.integers(40, size=40)
        maxima.append(max(np.mean([v[i] for i in picked]) for v in values.values()))
    assert found.low == pytest.approx(np.quantile(maxima, 0.05), abs=0.01)
    assert found.high == pytest.approx(np.quantile(maxima, 0.95), abs=0.01)
    alone = choose(values, only=found.temperature)
    assert alone.value == found.value
    assert alone.low < found.low, "choosing the best is optimistic, and the interval knows"
    assert choose({0.8: [1.0, 0.0], 0.2: [0.0, 1.0]}).temperature == 0.2


def test_fixed_temperatures() -> None:
    assert fixed_temperatures("oracle", [0.2, 0.8], [1]) == {}
    assert fixed_temperatures("fixed", [0.2], [1, 10]) == {1: 0.2, 10: 0.2}
    assert fixed_temperatures("fixed", [0.2, 0.8], [1, 10]) == {1: 0.2, 10: 0.8}
    with pytest.raises(InputError, match="give one, or one for each k"):
        fixed_temperatures("fixed", [0.2, 0.8], [1])


@pytest.mark.skipif("MTP_DATA_DIR" not in os.environ, reason="needs MTP_DATA_DIR")
def test_the_real_file() -> None:
    benchmark = GSM8K(Path(os.environ["MTP_DATA_DIR"]) / "bench/gsm8k_test.jsonl")
    assert len(benchmark.prompts) == 1319
    assert all(float(gold) == float(normal(gold)) for gold in benchmark.gold.values())
