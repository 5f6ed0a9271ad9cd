import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_backbone

from mtp_lightning.checkpoints.description import describe
from mtp_lightning.checkpoints.initial import Parent
from mtp_lightning.data import SourceConfig, TokenDataModule
from mtp_lightning.data.corpora.account import Account
from mtp_lightning.data.corpora.documents import Document, documents
from mtp_lightning.data.loader import ValidationWindows
from mtp_lightning.data.tokenizers.training import train_bpe
from mtp_lightning.data.tokens.packing import PackedOrder, pack, read_packed
from mtp_lightning.data.tokens.prepare import ShardSettings, prepare_shards
from mtp_lightning.data.tokens.store import TokenStore
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer, HuggingFaceTokenizer
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.objective.targets import make_targets

PAIRS = [(f"What is {i} and {i}?" + "?" * (i % 4), f"{2 * i}!" * (1 + i % 3)) for i in range(40)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in PAIRS))
    return path


def module(path: Path, **changes: Any) -> TokenDataModule:
    settings: dict[str, Any] = {"context": 40, "batch_size": 4, "validation_fraction": 0.2, "val_windows": None}
    source = SourceConfig(kind="pairs", path=str(path), **changes.pop("source", {}))
    data = TokenDataModule(source=source, directory=str(path.parent / "cache"), **settings | changes)
    data.prepare_data()
    data.setup("validate")
    return data


def stored(store: TokenStore) -> list[tuple[str, str]]:
    """(question, answer) of every document, out of the shards."""
    assert store.answer_starts is not None
    ends = [*store.document_starts[1:].tolist(), len(store)]
    found = []
    for start, answer, end in zip(store.document_starts.tolist(), store.answer_starts.tolist(), ends):
        tokens = bytes(store.read(start, end - start).tolist())
        assert tokens[-1] == 255
        found.append((tokens[: answer - start].decode(), tokens[answer - start : -1].decode()))
    return found


def test_bytes_are_of_the_pairs_that_count_in_a_window(file: Path) -> None:
    """Not of the beginning of the next pair, which the next window has again, and not of padding."""
    for context in (40, 20):  # where some pairs are cut
        data = module(file, context=context)
        meta = data.train_store.split_meta
        windows, room, there = 1, context + 1, 0
        for prompt, answer in stored(data.train_store):
            n_bytes = len((prompt + answer).encode())
            size = min(n_bytes, context) + 1
            if size > room:
                windows, room = windows + 1, context + 1
            room, there = room - size, there + size - 1
        assert (there < meta.n_bytes) == (context == 20)
        assert data.bytes_per_token == pytest.approx(there / (windows * context))
    assert module(file).bytes_per_token < 0.9 * meta.n_bytes / meta.n_tokens


def test_one_number_a_document_says_where_its_answer_begins(file: Path) -> None:
    data = module(file)
    found = stored(data.train_store) + stored(data.validation_store)
    assert sorted(found) == sorted(PAIRS)
    assert 3 <= len(stored(data.validation_store)) <= 15
    assert data.train_store.meta.account == {"files": 1, "left_out": []}


def test_questions_begin_as_their_tokenizers_texts_do(file: Path, tmp_path: Path) -> None:
    """As Llama's do; a model that was imported has never seen one without."""
    from tokenizers import Tokenizer, processors

    fast = Tokenizer.from_str(train_bpe(iter([text for pair in PAIRS for text in pair]), 280))
    fast.add_special_tokens(["<s>"])
    begin = fast.token_to_id("<s>")
    fast.save(str(tmp_path / "plain.json"))
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    fast.save(str(tmp_path / "begins.json"))
    files = [str(tmp_path / name) for name in ("plain.json", "begins.json")]
    plain, data = (module(file, tokenizer=name, vocab_size=begin + 1) for name in files)
    store, without = data.train_store, plain.train_store
    starts = store.document_starts
    assert (store.read(0, len(store)) == begin).nonzero()[0].tolist() == starts.tolist()
    assert store.answer_starts is not None
    assert without.answer_starts is not None
    assert (store.answer_starts - starts - 1 == without.answer_starts - without.document_starts).all()
    assert (plain.begin_ids, data.begin_ids) == ([], [begin])
    described = describe(MTPModel(tiny_backbone(), HeadsConfig(1)), data, "none", None)
    assert described["begin_ids"] == [begin]
    parent = Parent("a", "b", (7,))
    described = describe(MTPModel(tiny_backbone(), HeadsConfig(1)), plain, "none", parent)
    assert (described["begin_ids"], described["parent"]) == ([7], {"name": "a", "weights": "b"})


@pytest.mark.parametrize("horizon", [1, 3])
def test_exactly_the_answers_and_their_ends_are_targets(file: Path, horizon: int) -> None:
    """Of every head: the first target that counts is the answer's first token, and no question's token ever counts."""
    data = module(file, horizon=horizon)
    heads = HeadsConfig(n_future=horizon)
    batches = [data._reader()(np.arange(i, i + 1)) for i in range(200)]
    firsts = pack(data.train_store.document_starts, len(data.train_store), 40)
    seen: list[list[bytes]] = [[] for _ in range(horizon)]
    for batch in batches[: len(firsts) - 1]:
        targets = make_targets(heads, batch["tokens"], batch["documents"], batch["loss_mask"])
        for head in range(horizon):
            valid = targets.valid[head, 0]
            seen[head].append(bytes(targets.targets[head, 0][valid].tolist()))
    answers = sorted(answer.encode() for _, answer in stored(data.train_store))
    for joined in seen:
        assert sorted(b"".join(joined).split(b"\xff")[:-1]) == answers


def test_prompts_are_questions(file: Path) -> None:
    data = module(file)
    questions = [question for question, _ in stored(data.validation_store)]
    assert [bytes(prompt.tolist()).decode() for prompt in data.heldout_prompts(100, 64)] == questions
    assert [bytes(prompt.tolist()).decode() for prompt in data.heldout_prompts(2, 5)] == [
        questions[0][-5:], questions[-1][-5:],
    ]  # fmt: skip


def brute_mask(store: TokenStore, first: int, after: int, length: int) -> list[bool]:
    """Token by token."""
    assert store.answer_starts is not None
    start = int(store.document_starts[first])
    mask = []
    for place in range(start, start + length):
        owner = max((d for d, s in enumerate(store.document_starts) if s <= place), default=0)
        mask.append(place < len(store) and owner < after and place >= store.answer_starts[owner])
    return mask


@pytest.mark.parametrize("context", [5, 12, 23, 40, 1000])
def test_windows_hold_whole_documents_each_once(tmp_path: Path, context: int) -> None:
    corpus = [Document(f"d{i}", p + c, len(p)) for i, (p, c) in enumerate(PAIRS)]
    settings = ShardSettings(validation_fraction=0.2)
    prepare_shards(tmp_path / "s", lambda: corpus, ByteTokenizer(), {}, settings, answers=True)
    store = TokenStore(tmp_path / "s", "train")
    firsts = pack(store.document_starts, len(store), context)
    starts = [*store.document_starts.tolist(), len(store)]
    assert [firsts[0], firsts[-1]] == [0, len(starts) - 1]
    order = PackedOrder(firsts, context, 2, seed=None)
    for w, (first, after) in enumerate(itertools.pairwise(firsts)):
        assert starts[after] - starts[first] <= context + 1 or after == first + 1
        assert after == len(starts) - 1 or starts[after + 1] - starts[first] > context + 1, "one more would have fitted"
        batch = read_packed(store, order, np.array([w]))
        assert batch["loss_mask"][0].tolist() == brute_mask(store, first, after, context + 2)
    inputs = [read_packed(store, PackedOrder(firsts, context, h, seed=3), np.arange(9)) for h in (1, 8)]
    for key in ("tokens", "documents", "loss_mask"):
        assert torch.equal(inputs[0][key], inputs[1][key][:, : context + 1]), "the same for every n"
    n = len(firsts) - 1
    windows = PackedOrder(firsts, context, 1, seed=3).windows(np.arange(3 * n)).reshape(3, n)
    assert [sorted(epoch) for epoch in windows.tolist()] == [list(range(n))] * 3
    assert n < 4 or len({tuple(epoch) for epoch in windows.tolist()}) == 3


def test_a_row_that_only_fills_a_batch_never_counts(file: Path) -> None:
    data = module(file, batch_size=2, val_windows=3)
    read, n_windows = data.corpora[0].validating(data.context, data.horizon, data.val_windows)
    assert n_windows == 3
    rows = [ValidationWindows(read, 3, 2, rank, 2)[1] for rank in (0, 1)]
    assert rows[0]["loss_mask"].sum() == read(np.array([2]))["loss_mask"].sum() > 0
    assert not rows[1]["loss_mask"].any()


def test_what_a_window_cuts_is_said_and_nothing_left_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"data\.context is 12: .* their whole answer there; .* larger data\.context"):
        module(file, context=12)
    data = module(file, context=20)
    data.setup("fit")
    assert "data.context is 20: of 3" in (said := capsys.readouterr().err)
    assert "are longer than 21 tokens" in said
    with pytest.raises(InputError, match=r"data\.context is 20"):
        module(file, context=20, source={"strict": True})


def test_another_border_is_other_data_and_plain_shards_are_as_ever(file: Path, tmp_path: Path) -> None:
    prints = []
    for name, at, answers in (("a", 3, True), ("b", 4, True), ("c", None, False)):
        corpus = [Document(f"d{i}", f"text {i}", at) for i in range(9)]
        meta = prepare_shards(tmp_path / name, lambda: corpus, ByteTokenizer(), {}, ShardSettings(), answers=answers)  # noqa: B023
        prints.append(meta.fingerprint)
    assert len(set(prints)) == 3
    assert "answers" not in json.loads((tmp_path / "c" / "meta.json").read_text())
    assert not (tmp_path / "c" / "train-answers.bin").exists()
    assert TokenStore(tmp_path / "c", "train").answer_starts is None
    (tmp_path / "a" / "train-answers.bin").unlink()
    with pytest.raises(InputError, match=r"train-answers\.bin' is missing"):
        TokenStore(tmp_path / "a", "train")


def test_a_tokenizer_never_joins_question_and_answer(tmp_path: Path) -> None:
    corpus = [Document(f"d{i}", "abab" * 3, 2 * (i % 5) + 1) for i in range(20)]
    tokenizer = HuggingFaceTokenizer(train_bpe(iter(["abab" * 50] * 9), 270))
    prepare_shards(tmp_path / "s", lambda: corpus, tokenizer, {}, ShardSettings(), answers=True)
    store = TokenStore(tmp_path / "s", "train")
    assert store.answer_starts is not None
    ends = [*store.document_starts[1:].tolist(), len(store)]
    for start, answer, end in zip(store.document_starts.tolist(), store.answer_starts.tolist(), ends):
        question = store.read(start, answer - start).tolist()
        assert question == tokenizer.encode(tokenizer.decode(question)), "as it is when it is asked"
        assert tokenizer.decode(store.read(start, end - start).tolist()) == "abab" * 3


ROWS: list[tuple[object, str]] = [
    ({"prompt": "a", "completion": ""}, "rows with an empty prompt or completion"),
    ({"prompt": "", "completion": "b"}, "rows with an empty prompt or completion"),
    ({"prompt": "a"}, "rows whose prompt or completion is missing or no text"),
    ({"prompt": ["a"], "completion": "b"}, "rows whose prompt or completion is missing or no text"),
    ({"text": "a"}, "rows without prompt, completion and messages"),
    ("a", "rows that are no objects"),
    ({"messages": [{"role": "user", "content": "a"}]}, "rows with fewer than two messages"),
    ({"messages": [{"role": "user", "content": "a"}] * 2}, "rows whose last message is not the assistant's"),
    (
        {"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "b"}]},
        "rows with a message whose role or content is no text",
    ),
    (
        {"messages": [{"role": "user", "content": "a", "tool": 1}, {"role": "assistant", "content": "b"}]},
        "rows with a message that has more than a role and a content",
    ),
    (
        {"messages": [{"role": "villain", "content": "a"}, {"role": "assistant", "content": "b"}]},
        "rows that the chat template refuses",
    ),
]
TEMPLATE = """{%- for m in messages -%}
{%- if m.role == 'villain' %}{{ raise_exception('no villains') }}{% endif -%}
<|{{ m.role }}|>{{ m.content }}{{ eos_token }}
{%- endfor -%}
{%- if add_generation_prompt %}<|assistant|>{% endif -%}"""


def test_bad_rows_are_counted_and_strict_refuses_them(tmp_path: Path) -> None:
    path, template = tmp_path / "p.jsonl", tmp_path / "t.jinja"
    template.write_text(TEMPLATE)
    good = {"prompt": "a", "completion": "b"}
    path.write_text("\n".join(json.dumps(row) for row in [good, *(row for row, _ in ROWS), good]))
    source = SourceConfig(kind="pairs", path=str(path), chat_template=str(template))
    account = Account()
    assert [document.name for document in documents(source, account)] == ["p.jsonl#0", f"p.jsonl#{len(ROWS) + 1}"]
    counted: dict[str, int] = {}
    for _, reason in ROWS:
        counted[reason] = counted.get(reason, 0) + 1
    assert dict(account.left_out) == counted
    assert account.examples["rows that the chat template refuses"] == [f"p.jsonl, line {len(ROWS) + 1}: no villains"]
    with pytest.raises(InputError, match=r"data\.source\.strict: .*line 12: no villains"):
        list(documents(SourceConfig(kind="pairs", path=str(path), chat_template=str(template), strict=True)))
    path.write_text('{"text": "a"}\n')
    with pytest.raises(InputError, match=r"no pair in it: a row needs 'prompt' and 'completion', or .*line 1"):
        list(documents(SourceConfig(kind="pairs", path=str(path))))
    path.write_text('{"prompt": "a", "completion": "b", "prompt": "c"}\n')
    with pytest.raises(InputError, match="line 1: 'prompt' is written twice"):
        list(documents(SourceConfig(kind="pairs", path=str(path))))
    path.write_text('{"messages": [{"role": "user", "content": "a", "content": "b"}]}\n')
    with pytest.raises(InputError, match="line 1: 'content' is written twice"):
        list(documents(SourceConfig(kind="pairs", path=str(path), chat_template=str(template))))


def chat_tokenizer(folder: Path, **config: object) -> Path:
    """A BPE with the special tokens of the template, in a folder as it is published."""
    raw = json.loads(train_bpe(iter(["user assistant hello"] * 3), 258))
    for i, name in enumerate(("<|user|>", "<|assistant|>")):
        flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
        raw["added_tokens"].append({"id": 258 + i, "content": name, **flags})
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def conversation(*turns: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]}
