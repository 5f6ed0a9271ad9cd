"""Samples on disk: the same bytes however they were made, and nothing lost, whatever happens meanwhile."""

import fcntl
import json
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_backbone

from mtp_lightning.data.tokens.tokenizer import END_OF_TEXT, ByteTokenizer, HuggingFaceTokenizer, Tokenizer
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.generate import generate
from mtp_lightning.errors import InputError
from mtp_lightning.evaluation.benchmark import fit_prompt
from mtp_lightning.evaluation.evaluate import Subject
from mtp_lightning.evaluation.samples import Prompt, Sample, SampleFile, read_samples, sample_seed
from mtp_lightning.evaluation.write_samples import Writing, _Text, prompt_room, write_batch, write_samples
from mtp_lightning.files import write_text
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel

BYTES = ByteTokenizer()
PROMPTS = [fit_prompt(f"P/{i}", BYTES.encode(text), BYTES, None) for i, text in enumerate(["def f(", "a", "return "])]
MADE_WITH = {"task": "test", "temperature": 0.8}

pytestmark = pytest.mark.usefixtures("shapes_unchecked")


@pytest.fixture(scope="module")
def engine() -> Engine:
    """Its texts have drafts that are right, and ones that are not."""
    torch.manual_seed(0)
    return Engine(MTPModel(tiny_backbone(vocab_size=256, n_layers=4), HeadsConfig(n_future=3)).eval())


def make(path: Path, engine: Engine, samples: int = 3, prompts: Any = None, **changes: Any) -> bytes:
    settings = {"temperature": 0.8, "top_p": 0.95, "seed": 0, "max_new_tokens": 12, "stops": ("e", "9")} | changes
    with SampleFile(path, MADE_WITH) as file:
        writing = Writing(**settings)
        write_samples(
            file, partial(write_batch, engine, BYTES, writing), prompts or PROMPTS, samples, writing.batch_size
        )
        file.put_in_order([prompt.task_id for prompt in PROMPTS])
    return path.read_bytes()


def test_the_file_is_the_same_with_drafts_and_without_and_in_any_batches(tmp_path: Path, engine: Engine) -> None:
    plain = make(tmp_path / "plain.jsonl", engine, heads_used=1, batch_size=1)
    assert len(set(plain.splitlines())) == 9
    for heads, batch in ((3, 1), (2, 4), ("auto", 9), (1, 5)):
        assert make(tmp_path / f"{heads}_{batch}.jsonl", engine, heads_used=heads, batch_size=batch) == plain
    assert make(tmp_path / "seed.jsonl", engine, seed=1) != plain
    ended = {json.loads(line)["ended"] for line in plain.splitlines()}
    assert ended == {"stop", "end", "length"}


def test_more_samples_and_more_problems_change_nothing_that_is_there(tmp_path: Path, engine: Engine) -> None:
    whole = make(tmp_path / "whole.jsonl", engine)
    grown = tmp_path / "grown.jsonl"
    make(grown, engine, samples=2, prompts=PROMPTS[:1])
    make(grown, engine, samples=1, prompts=PROMPTS[::-1])
    assert make(grown, engine) == whole
    inode = grown.stat().st_ino
    assert make(grown, engine) == whole
    assert grown.stat().st_ino == inode, "nothing was missing, so nothing was written"


def test_a_killed_evaluation_goes_on(tmp_path: Path, engine: Engine) -> None:
    whole = make(tmp_path / "whole.jsonl", engine)
    for kept in range(0, len(whole), 97):
        path = tmp_path / f"{kept}.jsonl"
        make(path, engine, samples=1)
        path.write_bytes(whole[:kept])
        assert make(path, engine) == whole


def test_counts_are_of_the_heads_that_wrote_and_say_of_how_many_samples(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"

    def counts(heads_used: int | str) -> dict[str, int]:
        file = SampleFile(path, MADE_WITH, heads_used)
        file.check()
        return file.counts

    with SampleFile(path, MADE_WITH) as file:
        file.append([Sample("P/0", 0, "a", "end")], {"forwards": 3})
        file.append([Sample("P/1", 0, "a", "end"), Sample("P/2", 0, "a", "end")], {"forwards": 4})
    with SampleFile(path, MADE_WITH, 4) as file:
        file.append([Sample("P/0", 1, "a", "end")], {"forwards": 1})
        monkeypatch.setattr(SampleFile, "_write_side", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):  # as if killed between the lines and their counts
            file.append([Sample("P/1", 1, "a", "end")], {"forwards": 1})
    monkeypatch.undo()
    assert counts("auto") == {"samples": 3, "forwards": 7}
    assert counts(4) == {"samples": 1, "forwards": 1}, "and five lines in the file"
    assert counts(1) == {}
    old = {"made_with": MADE_WITH, "counts": {"forwards": 9}}
    (tmp_path / "a.made_with.json").write_text(json.dumps(old))
    assert counts("auto") == {}, "of nobody knows which heads"


def test_samples_of_something_else_are_refused(tmp_path: Path, engine: Engine) -> None:
    path = tmp_path / "a.jsonl"
    make(path, engine, samples=1)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def refused(made_with: dict[str, Any], says: str) -> None:
        with pytest.raises(InputError, match=says), SampleFile(path, made_with):
            pass

    refused(MADE_WITH | {"temperature": 0.2}, "was made with temperature 0.8, and now it is 0.2: give another --out")
    refused(MADE_WITH | {"dtype": "bf16"}, "was made with dtype None, and now it is 'bf16'")
    with SampleFile(path, MADE_WITH):
        refused(MADE_WITH, "is in use by another evaluation")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    path.write_bytes(path.read_bytes() + b'{"task_id": "P/9"}\n')
    refused(MADE_WITH, "line 4: no sample of ours")
    (tmp_path / "a.made_with.json").unlink()
    refused(MADE_WITH, "is there without 'a.made_with.json'")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"task_id": "P/1", "sample": "0", "completion": "", "ended": "end"}\n', "its 'sample' is '0'"),
        ("a.jsonl", '{"task_id": null, "sample": 0, "completion": "", "ended": "end"}\n', "its 'task_id' is None"),
        ("a.jsonl", '{"task_id": "P/1", "sample": 0, "completion": "", "ended": "so"}\n', "its 'ended' is 'so'"),
        ("a.jsonl", '{"task_id": "a", "sample": 0, "completion": "", "ended": "end", "earlier": "bc"}\n', "'earlier'"),
        ("a.jsonl", "[" * 5000 + "\n", "line 1: no sample of ours .nested too deeply"),
        ("a.jsonl", None, r"a\.jsonl: cannot be read"),
        (
            "a.made_with.json",
            '{"made_with": {}, "counts_by_heads": {"2": {"tokens": "many"}}}',
            "its 'counts_by_heads' is {'2': {'tokens': 'many'}}",
        ),
        ("a.made_with.json", f'{{"made_with": {{}}, "counts_by_heads": {{"2": {{"a": 1{"0" * 400}}}}}}}', "its 'cou"),
        ("a.made_with.json", '{"made_with": []}', "its 'made_with' is .*move both files away"),
        ("a.made_with.json", None, r"a\.made_with\.json: cannot be read"),
    ],
)
def test_files_that_may_hold_anything(tmp_path: Path, name: str, content: str | None, says: str) -> None:
    with SampleFile(tmp_path / "a.jsonl", MADE_WITH):
        pass
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir() if content is None else (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=says), SampleFile(tmp_path / "a.jsonl", MADE_WITH):
        pass


def test_a_file_that_its_owner_replaced_before_the_lock_was_free_is_not_written_to(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    make(path, engine, samples=1)

    def too_late(file: Any, how: int) -> None:
        write_text(path, path.read_text())
        flock(file, how)

    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", too_late)
    with pytest.raises(InputError, match="is in use by another evaluation"), SampleFile(path, MADE_WITH):
        pass


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_on_a_full_disk_what_was_sampled_stays(tmp_path: Path, engine: Engine) -> None:
    whole = make(tmp_path / "whole.jsonl", engine)
    path = tmp_path / "a.jsonl"
    size = len(whole.splitlines()[0]) + 40
    with no_file_larger_than(max(size, 250)), pytest.raises(OSError, match="File too large") as caught:
        make(path, engine, batch_size=1)
    assert caught.value.filename == str(path)
    left = path.read_bytes()
    assert left
    assert whole.startswith(left)
    assert left.endswith(b"\n")
    assert make(path, engine) == whole


def test_others_can_score_the_file(tmp_path: Path, engine: Engine) -> None:
    """EvalPlus's tools read `task_id` and `completion`."""
    rows = [json.loads(line) for line in make(tmp_path / "a.jsonl", engine).splitlines()]
    assert [list(row)[:2] for row in rows] == [["task_id", "completion"]] * 9
    assert next(iter(read_samples(tmp_path / "a.jsonl"))) == Sample(
        "P/0", 0, rows[0]["completion"], rows[0]["ended"], False
    )


def test_a_sample_depends_on_seed_problem_and_number_alone() -> None:
    seeds = {sample_seed(seed, f"HumanEval/{p}", s) for seed in (0, 1) for p in range(164) for s in range(20)}
    assert len(seeds) == 2 * 164 * 20
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert sample_seed(0, "HumanEval/1", 2) == 4038477793, "samples on people's disks would not be continued"


def test_tokens_and_forwards_are_counted(engine: Engine) -> None:
    asked = [(prompt, 0) for prompt in PROMPTS]
    drafted, counts = write_batch(engine, BYTES, Writing(0.2, None, 0, 40, heads_used=3), asked)
    plain, of_plain = write_batch(engine, BYTES, Writing(0.2, None, 0, 40, heads_used=1), asked)
    assert drafted == plain
    sampling = Writing(0.2, None, 0, 40).sampling(asked)
    texts = generate(engine, [torch.tensor(p.ids) for p in PROMPTS], 40, 3, (BYTES.eos_id,), sampling)
    assert counts["forwards"] == sum(len(text.steps) for text in texts) < counts["accepted"]
    assert counts["accepted"] == sum(len(step.tokens) for text in texts for step in text.steps)
    assert counts["tokens"] == sum(len(text.tokens) for text in texts)
    ends = sum(step.tokens.count(BYTES.eos_id) for text in texts for step in text.steps)
    assert counts["bytes"] == counts["accepted"] - ends
    assert of_plain["accepted"] == of_plain["forwards"]
    assert of_plain["tokens"] == counts["tokens"]
    assert 0 < counts["right_2"] <= counts["turns_2"]


def test_what_all_texts_began_with_goes_before_prompts(engine: Engine) -> None:
    (begun,), _ = write_batch(engine, BYTES, Writing(0, None, 0, 20, begin_ids=(7, 9)), [(Prompt("a", [10, 11]), 0)])
    (asked,), _ = write_batch(engine, BYTES, Writing(0, None, 0, 20), [(Prompt("a", [7, 9, 10, 11]), 0)])
    (other,), _ = write_batch(engine, BYTES, Writing(0, None, 0, 20), [(Prompt("a", [10, 11]), 0)])
    assert begun == asked != other
    assert Subject(MTPModel(tiny_backbone(), HeadsConfig()), BYTES, 16, 0, (7, 9)).prompt_room(10) == 4


def bpe() -> Tokenizer:
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers, trainers

    fast = Fast(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[END_OF_TEXT], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    fast.train_from_iterator(["    return x\n\ndef f(x):\n    if x:\n        print(x)\n"] * 20, trainer)
    return HuggingFaceTokenizer(fast.to_str())


def byte_fallback() -> Tokenizer:
    """As Llama's: bytes that are no UTF-8 together are unreadable together."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models

    vocabulary = {END_OF_TEXT: 0} | {f"<0x{byte:02X}>": 1 + byte for byte in range(256)}
    fast = Fast(models.BPE({**vocabulary, "x": 257}, [], byte_fallback=True))
    fast.add_special_tokens([END_OF_TEXT])
    fast.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return HuggingFaceTokenizer(fast.to_str())


def test_half_a_character_that_was_drafted_takes_no_stop_back() -> None:
    tokenizer = byte_fallback()
    newline, half, x = 1 + 0x0A, 1 + 0xE4, 257
    assert "\n" not in tokenizer.decode([newline, half])
    for drafts in ([[x, newline, half]], [[x], [newline], [half]]):
        text = _Text(tokenizer, [x], ("\n",))
        for tokens in drafts:
            if text.stopped_at is None:
                text.take(tokens)
        assert (text.completion, text.ids, text.how_ended({0})) == ("x", [x, newline], "stop")


@pytest.mark.parametrize("make_tokenizer", [ByteTokenizer, bpe])
def test_stops_are_found_across_tokens_and_whatever_was_drafted(make_tokenizer: Callable[[], Tokenizer]) -> None:
    """Against an oracle that looks at the text after every single token."""
    tokenizer = make_tokenizer()
    stops = ("\ndef", "\nif", "int(", "é", "\n\ndef f")
    chance = random.Random(0)
    pieces = ["\n", "d", "ef", " f", "i", "f", "x", " print", "(", "é", "ç", " "]
    straddled = 0
    for _ in range(150):
        text = "".join(chance.choices(pieces, k=30))
        prompt, ids = tokenizer.encode("x = é"), tokenizer.encode(text)
        wanted, last = text, len(ids)
        for count in range(1, len(ids) + 1):
            so_far = tokenizer.decode(ids[:count])
            found = [so_far.find(stop) for stop in stops if stop in so_far]
            if found:
                wanted, last = so_far[: min(found)], count
                straddled += all(tokenizer.decode(ids[:n]) != wanted for n in range(count))
                break
        grown, rest = _Text(tokenizer, prompt, stops), ids
        while rest and grown.stopped_at is None:
            size = chance.randint(1, 6)
            kept = grown.take(rest[:size])
            assert kept == size or grown.stopped_at is not None or kept == len(rest)
            rest = rest[size:]
        assert (grown.completion, len(grown.ids)) == (wanted, last)
        assert grown.how_ended({0}) == ("stop" if last < len(ids) or wanted != text else "length")
    assert straddled > 0 or isinstance(tokenizer, ByteTokenizer)


def test_long_prompts_lose_their_beginning() -> None:
    assert fit_prompt("a", range(10), BYTES, 4) == ("a", [6, 7, 8, 9], True)
    assert fit_prompt("a", range(4), BYTES, 4) == ("a", [0, 1, 2, 3], False)
    assert fit_prompt("a", [], BYTES, None).ids == [BYTES.eos_id]
    assert prompt_room(10, 6) == 4
    assert prompt_room(None, 6) is None
    with pytest.raises(InputError, match="max_new_tokens is 10, and the model was trained on windows of 10 tokens"):
        prompt_room(10, 10)
