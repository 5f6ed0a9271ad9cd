"""Infilling's problems and prompts, and ROUGE against its package."""

import json
import os
import random
from pathlib import Path

import pytest
from spaced import spaced
from test_evaluation_samples import bpe

from mtp_lightning.cli import main
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer, HuggingFaceTokenizer
from mtp_lightning.data.transforms.infilling import infilling_prompt, needed_sentinels
from mtp_lightning.errors import InputError
from mtp_lightning.evaluation.code_benchmark import Running, common_beginning
from mtp_lightning.evaluation.samples import Ended, Sample
from mtp_lightning.evaluation.tasks.infilling import Infilling, Mode, Spans, gaps, read_gaps, sentinels
from mtp_lightning.evaluation.tasks.rouge import AnyScript, Rouge
from mtp_lightning.evaluation.write_samples import _Text

ROW = {
    "task_id": "HumanEval/0", "prompt": "def f(x):\n", "entry_point": "f",
    "canonical_solution": "    y = x\n\n    return y\n", "test": "def check(f):\n    assert f(3) == 3\n",
}  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "HumanEval.jsonl"
    path.write_text(json.dumps(ROW))
    return path


def test_what_is_taken_out() -> None:
    solution = ROW["canonical_solution"]

    def middles(spans: Spans) -> dict[str, str]:
        return {number: gap.middle for number, gap in gaps("HumanEval/0", "p", solution, spans)}

    assert middles("single-line") == {"L0": "    y = x", "L2": "    return y"}
    assert middles("multi-line") == {
        "L0_L0": "    y = x", "L0_L2": "    y = x\n\n    return y", "L2_L2": "    return y",
    }  # fmt: skip
    drawn = list(gaps("HumanEval/0", "p", solution, "random-span"))
    assert len(drawn) == 10
    assert drawn == list(gaps("HumanEval/0", "p", solution, "random-span"))
    for spans in ("single-line", "multi-line", "random-span"):
        for _, gap in gaps("HumanEval/0", "p", solution, spans):  # type: ignore[arg-type]
            assert gap.prefix + gap.middle + gap.suffix == "p" + solution


@pytest.mark.skipif("MTP_DATA_DIR" not in os.environ, reason="needs MTP_DATA_DIR")
def test_there_are_as_many_as_were_published() -> None:
    path = Path(os.environ["MTP_DATA_DIR"]) / "bench/HumanEval.jsonl.gz"
    assert len(read_gaps(path, "single-line")) == 1033
    assert len(read_gaps(path, "multi-line")) == 5815
    assert len(read_gaps(path, "random-span")) == 1640


def with_sentinels(*names: str) -> HuggingFaceTokenizer:
    described = json.loads(bpe().state()["json"])
    first = max(described["model"]["vocab"].values()) + 1
    for number, name in enumerate(names, start=first):
        described["added_tokens"].append({
            "id": number, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": True,
        })  # fmt: skip
    return HuggingFaceTokenizer(json.dumps(described))


@pytest.mark.parametrize(
    "names", [("<fim_prefix>", "<fim_suffix>", "<fim_middle>"), ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")]
)
def test_prompts(data: Path, names: tuple[str, ...]) -> None:
    tokenizer = with_sentinels(*names)
    marks = sentinels(tokenizer)
    assert marks is not None
    pre, suf, mid = marks[:3]
    assert (marks.end == tokenizer.eos_id) == (len(names) == 3)
    task_id = "SingleLineInfilling/HumanEval/0/L0"
    before, after = tokenizer.encode("def f(x):\n"), tokenizer.encode("\n\n    return y\n")

    def prompt(mode: Mode, room: int | None = None) -> tuple[list[int], bool]:
        found = Infilling(data, "single-line", mode, Running()).prompt(tokenizer, task_id, room)
        return found.ids, found.cut

    assert prompt("psm") == ([pre, *before, suf, *after, mid], False)
    assert prompt("spm") == ([pre, suf, *after, mid, *before], False)
    assert prompt("prefix") == (before, False)
    whole = len(before) + len(after) + 3
    assert prompt("psm", whole) == prompt("psm")
    for room in range(4, whole):
        ids, cut = prompt("psm", room)
        assert cut
        assert len(ids) == room
        assert ids[0] == pre
        assert ids[-1] == mid
        kept_before, kept_after = ids[1 : ids.index(suf)], ids[ids.index(suf) + 1 : -1]
        assert before[len(before) - len(kept_before) :] == kept_before
        assert after[: len(kept_after)] == kept_after


@pytest.mark.parametrize("mode", ["psm", "spm"])
def test_a_space_before_every_text_is_no_part_of_a_middle(data: Path, mode: Mode) -> None:
    """Neither in what is asked nor in what is written, with a tokenizer such as Code Llama's."""
    tokenizer, task_id = spaced(), "SingleLineInfilling/HumanEval/0/L0"
    marks = needed_sentinels(tokenizer)
    asked = Infilling(data, "single-line", mode, Running()).prompt(tokenizer, task_id, None).ids
    texts = ("def f(x):\n", "def f(x):\n    y = x", "def f(x):\n    y = x\n\n    return y\n")
    before, joined, whole = map(tokenizer.encode, texts)
    middle, after = joined[len(before) :], whole[len(joined) :]
    assert tokenizer.decode(middle) == "   y = x", "a decoder takes the first space of a text"
    assert asked == infilling_prompt(before, after, marks, mode)
    text = _Text(tokenizer, asked, ("\n",))
    text.take([*middle, marks.end])
    assert text.completion == "    y = x"


def test_models_without_infilling_tokens_are_refused(data: Path) -> None:
    for tokenizer in (ByteTokenizer(), bpe()):
        with pytest.raises(InputError, match="`--mode prefix` asks for the baseline"):
            Infilling(data, "single-line", "psm", Running()).check(tokenizer)


def test_middles_are_run_in_their_place(data: Path) -> None:
    benchmark = Infilling(data, "multi-line", "prefix", Running(workers=1))
    texts = {
        "L0_L0": ["    y = x", "    y = 1 * x", "    y = 2"],
        "L0_L2": ["    return x", "?", "    y = x\n\n    return y"],
        "L2_L2": ["    return y"] * 3,
    }
    samples = [
        Sample(f"MultiLineInfilling/HumanEval/0/{number}", i, text, "stop")
        for number, own in texts.items()
        for i, text in enumerate(own)
    ]
    judged = benchmark.judge(samples, [1])
    assert benchmark.name == "infilling-multi-line-prefix"
    assert judged.scores["pass_at_1"] == pytest.approx([2 / 3, 2 / 3, 1])
    assert judged.scores["exact_match"] == pytest.approx([1 / 3, 1 / 3, 1])
    assert judged.verdicts["passed"] == 7
    assert "joined" not in judged.scores, "a text that goes on after a prefix alone has nothing to join"


def test_middles_that_came_to_their_end(data: Path) -> None:
    benchmark = Infilling(data, "multi-line", "psm", Running(workers=1))
    ends: list[Ended] = ["end", "length", "stop", "length"]
    samples = [
        Sample(f"MultiLineInfilling/HumanEval/0/{number}", i, "?", ends[(i + shift) % 4])
        for shift, number in enumerate(("L0_L0", "L0_L2", "L2_L2"))
        for i in range(3)
    ]
    assert benchmark.judge(samples, [1]).scores["joined"] == pytest.approx([2 / 3, 1 / 3, 2 / 3])


def test_rouge_is_the_packages(tmp_path: Path) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    chance, words = random.Random(0), ["the", "cat", "Cats", "sat", "on", "a", "mat."]
    references = [" ".join(chance.choices(words, k=9)) for _ in range(20)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"prompt": "x", "completion": text}) + "\n" for text in references))
    benchmark = Rouge(path)
    samples = [
        Sample(f"pairs/{i}", number, " ".join(chance.choices(words, k=7)), "end")
        for i in range(20)
        for number in (0, 1)
    ]
    scorer = RougeScorer(["rougeL"])
    wanted = [
        sum(scorer.score(references[i], samples[2 * i + n].completion)["rougeL"].fmeasure for n in (0, 1)) / 2
        for i in range(20)
    ]
    assert benchmark.judge(samples, [1]).scores == {"rouge_l": pytest.approx(wanted)}


@pytest.mark.parametrize(
    ("reference", "summary", "score"),
    [
        ("Кот сидел на окне.", "кот сидел дома", 4 / 7), ("Η γάτα κάθεται", "η γάτα τρέχει", 2 / 3),
        ("我爱北京。", "我爱上海", 1 / 2), ("हिन्दी भाषा", "हिन्दी", 2 / 3), ("Кот", "a cat", 0.0),
        ("In 2024 the café closed", "in 2024 the cafe closed", 8 / 10), ("\u2026", "\u2026", 0.0),
    ],
)  # fmt: skip
def test_rouge_of_any_script(tmp_path: Path, reference: str, summary: str, score: float) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": reference}) + "\n")
    judged = Rouge(path).judge([Sample("pairs/0", 0, summary, "end")], [1])
    assert judged.scores == {"rouge_l": [pytest.approx(score)]}
    assert bool(judged.verdicts) == (reference[0] in "КΗ我ह")


def test_words_of_any_script_are_the_packages_in_english() -> None:
    from rouge_score.tokenizers import DefaultTokenizer

    text = "".join(map(chr, range(128))) + " don't snake_case 3.5 A-b"
    assert AnyScript().tokenize(text) == DefaultTokenizer().tokenize(text)


def test_rouge_from_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from test_evaluation_command import checkpoint

    monkeypatch.chdir(tmp_path)
    checkpoint()
    rows = [{"prompt": "a cat sat. In short: ", "completion": "a cat", "task_id": f"s/{i}"} for i in range(2)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["evaluate", "rouge", "a.ckpt", "--data", "pairs.jsonl", "--max_new_tokens", "8", "--json", "out.json"]
    assert main(command) == 0
    found = json.loads(Path("out.json").read_text())
    assert found["metrics"]["eval/rouge/rouge_l"] == 0
    assert found["metrics"]["eval/rouge/rouge_l/temperature"] == 0
    assert found["domain"] == "prose"
    Path("pairs.jsonl").write_text("".join(json.dumps(rows[0]) + "\n" for _ in range(2)))
    assert main(command) == 2
    assert "data: 'pairs.jsonl' has the problem 's/0' twice" in capsys.readouterr().err


def test_what_prompts_have_in_common() -> None:
    assert common_beginning(["abcd", "abxy", "abc"]) == "ab"
    assert common_beginning(["ab", "abc"]) == "ab"
    assert common_beginning(["x", "y"]) == ""
