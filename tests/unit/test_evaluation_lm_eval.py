"""lm-eval on a model of the platform: its numbers are those of lm-eval's own model on the exported Llama."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_checkpoints import save
from test_evaluation_samples import bpe
from tiny import tiny_backbone

from mtp_lightning.cli import main
from mtp_lightning.data.tokens.tokenizer import END_OF_TEXT, HuggingFaceTokenizer, Tokenizer, begin_ids
from mtp_lightning.errors import InputError
from mtp_lightning.evaluation.evaluate import Subject
from mtp_lightning.evaluation.harness.command import check_tasks, flat
from mtp_lightning.interop.hf_config import hf_config
from mtp_lightning.interop.hf_names import to_llama_state_dict
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("shapes_unchecked")]

CONTEXT = 48
TASKS = {
    "choices": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    "texts": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{wanted}}"
generation_kwargs: {until: ["e", " x"], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
""",
}


def begun(tokenizer: Tokenizer) -> HuggingFaceTokenizer:
    """Its file puts <s> before every text, as Llama's does."""
    from tokenizers import Tokenizer as Fast
    from tokenizers.processors import TemplateProcessing

    fast = Fast.from_str(tokenizer.state()["json"])
    fast.add_special_tokens(["<s>"])
    fast.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", fast.token_to_id("<s>"))])
    return HuggingFaceTokenizer(fast.to_str())


@pytest.fixture(scope="module")
def subject() -> Subject:
    return make_subject(bpe())


def make_subject(tokenizer: Tokenizer) -> Subject:
    torch.manual_seed(0)
    model = MTPModel(tiny_backbone(vocab_size=tokenizer.vocab_size, n_layers=4), HeadsConfig(n_future=3)).eval()
    for weight in model.parameters():  # sharper than at random, so that choices differ
        weight.data *= 1.5
    return Subject(model, tokenizer, CONTEXT, 7, tuple(begin_ids(tokenizer)))


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subject: Subject) -> Path:
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    questions = ["def f(x):", "if x:  ", "return é" * 12, "print(", ""] * 3
    choices = [["x", "print x:\n", " y"], ["\n    return", " return x"], ["é", "ç", "x x x"]]
    long = "    return x\n\ndef f(x):\n" * 20
    rows: dict[str, list[dict[str, Any]]] = {
        "choices": [
            {"question": q or "x", "choices": choices[i % 3], "answer": i % len(choices[i % 3])}
            for i, q in enumerate(questions)
        ],
        "rolling": [{"text": text} for text in ("def f(x): return é", long, "x")],
        "texts": [{"question": q or "y", "wanted": ""} for q in questions[:6]],
    }
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, task in TASKS.items():
        data = tmp_path / f"{name}.json"
        data.write_text("\n".join(map(json.dumps, rows[name])))
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ntest_split: test\ndataset_path: json\n"
            f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n{task}"
        )
    return folder


def hf_model(subject: Subject) -> Any:
    from lm_eval.models.huggingface import HFLM
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    model = subject.model
    config = LlamaConfig(
        **hf_config(model.config, len(model.trunk) + 1, CONTEXT)
        | {"bos_token_id": None, "eos_token_id": subject.tokenizer.eos_id, "pad_token_id": subject.tokenizer.eos_id}
    )  # fmt: skip
    llama = LlamaForCausalLM(config).eval()
    llama.load_state_dict(to_llama_state_dict(model, drop_heads=True))
    from tokenizers import Tokenizer as Fast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=Fast.from_str(subject.tokenizer.state()["json"]), eos_token=END_OF_TEXT, pad_token=END_OF_TEXT,
        **({"bos_token": "<s>"} if subject.begin_ids else {}),
    )  # fmt: skip
    # Its cache takes two windows of a text that repeats itself for one question, if the tokens they read are the same.
    settings = {"max_length": CONTEXT, "batch_size": 4, "device": "cpu", "logits_cache": False}
    return HFLM(pretrained=llama, tokenizer=fast, **settings)


@pytest.mark.parametrize("make_tokenizer", [bpe, lambda: begun(bpe())], ids=["texts alone", "after <s>"])
def test_its_numbers_are_those_of_lm_evals_own_model(make_tokenizer: Callable[[], Tokenizer], tasks: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    from mtp_lightning.evaluation.harness.model import MTPLanguageModel

    subject = make_subject(make_tokenizer())
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    settings: dict[str, Any] = {"tasks": [*TASKS], "task_manager": manager, "bootstrap_iters": 0}
    own_model, their_model = MTPLanguageModel(subject, 4, heads_used=3), hf_model(subject)
    ours = lm_eval.simple_evaluate(model=own_model, **settings)
    theirs = lm_eval.simple_evaluate(model=their_model, **settings)
    assert ours is not None
    assert theirs is not None
    found, wanted = flat(ours["results"]), flat(theirs["results"])
    assert found.keys() == wanted.keys()
    exact = ("acc", "acc_norm", "exact_match")
    assert {k: v for k, v in found.items() if k.endswith(exact)} == {
        k: v for k, v in wanted.items() if k.endswith(exact)
    }
    assert found == pytest.approx(wanted, rel=1e-6)
    assert {"choices/acc", "choices/acc_norm", "rolling/bits_per_byte", "texts/exact_match"} <= found.keys()
    assert 0 < found["choices/acc"] < 1
    for name in TASKS:
        pairs = zip(ours["samples"][name], theirs["samples"][name])
        for own, their in pairs:
            for a, b in zip(own["resps"], their["resps"]):
                assert a == (pytest.approx(b, rel=1e-5) if name == "rolling" else b) or close(a[0], b[0])
    assert own_model.counts["turns_2"] > 0, "texts are drafted"
    assert any(sample["resps"][0][0] for sample in ours["samples"]["texts"])


def close(ours: Any, theirs: Any) -> bool:
    """(log-likelihood, whether greedy) of a choice."""
    return bool(ours[0] == pytest.approx(theirs[0], rel=1e-5) and ours[1] == theirs[1])


def test_the_command(subject: Subject, tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(1)
    content = torch.load(save(Path("a.ckpt"), subject.model), weights_only=True)
    content["mtp_lightning"] |= {"tokenizer": subject.tokenizer.state(), "context": CONTEXT}
    torch.save(content, "a.ckpt")
    asked = ["evaluate", "lm-eval", "a.ckpt", "--tasks", "[choices, texts]", "--include_path", str(tasks)]
    assert main([*asked, "--limit", "4", "--json", "out.json"]) == 0
    found = json.loads(Path("out.json").read_text())
    assert {"eval/choices/acc", "eval/texts/exact_match", "eval/texts/bytes_per_forward"} <= found["metrics"].keys()
    assert "eval/choices/tokens_per_forward" not in found["metrics"]
    assert "eval/choices/acc_norm" in capsys.readouterr().out
    words = (tasks / "choices.yaml").read_text().replace("choices\n", "long\n", 1)
    (tasks / "long.yaml").write_text(words.replace('"{{choices}}"', json.dumps(["x", "no " * 99])))
    assert main([*asked, "--tasks", "[choices, long]", "--limit", "2", "--json", "out.json"]) == 1
    assert json.loads(Path("out.json").read_text())["left_out"] == ["long"]
    shown = capsys.readouterr()
    assert re.search(r"tasks: 'long' cannot be asked: .* continuation of \d+ tokens, .* at most the 48 of", shown.err)
    assert "eval/choices/acc" in shown.out, "what was found before is not lost"
    found = json.loads(Path("out.json").read_text())["metrics"]
    assert "eval/choices/acc" in found
    assert not any(name.startswith(("eval/long", "eval/texts")) for name in found)
    (tasks / "unsafe.yaml").write_text(
        (tasks / "texts.yaml").read_text().replace("texts\n", "unsafe\n") + "unsafe_code: true"
    )
    for arguments, says in (
        (["--tasks", "[unsafe]", "--include_path", "tasks"], "'unsafe' runs what a model wrote outside of any sandbox"),
        (["--tasks", "[texts]", "--include_path", "nowhere"], "include_path: there is no folder 'nowhere'"),
        (["--tasks", "[humaneval_plus]"], "use `mtp evaluate humaneval`"),
        (["--batch_size", "0", "--tasks", "[texts]"], "batch_size is 0"),
        ([], "--tasks is missing"),
    ):
        assert main(["evaluate", "lm-eval", "a.ckpt", *arguments]) == 2
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("humaneval", "humaneval"),
        ("mbpp_instruct", "mbpp"),
        ("cruxeval_i", "cruxeval"),
        ("humaneval_infilling", "infilling"),
    ],
)
def test_tasks_that_run_code_are_refused(name: str, ours: str) -> None:
    with pytest.raises(InputError, match=f"use `mtp evaluate {ours}"):
        check_tasks(["arc_easy", name])


def test_requests_that_sample_have_seeds_of_their_own(subject: Subject) -> None:
    from mtp_lightning.evaluation.harness.model import MTPLanguageModel

    settings = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    requests = [SimpleNamespace(args=("def f", settings))] * 3 + [SimpleNamespace(args=("x", {"max_gen_toks": 4}))]
    first = MTPLanguageModel(subject).generate_until(requests)
    assert len(set(first)) == 4
    assert MTPLanguageModel(subject, batch_size=1, heads_used=1).generate_until(requests) == first
    with pytest.raises(InputError, match="a continuation of 0 tokens, which has to have at least 1"):
        MTPLanguageModel(subject)._loglikelihood_tokens([(None, [1], [])])
    with pytest.raises(InputError, match="ask for num_beams"):
        MTPLanguageModel(subject).generate_until([SimpleNamespace(args=("x", {"num_beams": 4}))])
