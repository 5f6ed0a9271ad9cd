import json
from pathlib import Path

import pytest
import torch
from test_checkpoints import save
from tiny import tiny_backbone

from mtp_lightning.checkpoints.files import load_model
from mtp_lightning.checkpoints.select import find_checkpoint
from mtp_lightning.cli import main
from mtp_lightning.data import SourceConfig, TokenDataModule
from mtp_lightning.data.sample_command import sample_command
from mtp_lightning.data.tokens.samples import SampleLog, read_prompts
from mtp_lightning.data.tokens.store import SPLITS, TokenStore
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer
from mtp_lightning.decoding.choosing import Sampling
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.generate import generate
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel

PROMPTS = ["a", "the ", "two", "Ann s", "lost"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of bytes, two heads, trained on windows of 12, as it were."""
    folder = tmp_path_factory.mktemp("sampled")
    torch.manual_seed(0)
    path = save(folder / "a.ckpt", MTPModel(tiny_backbone(vocab_size=256, n_layers=3), HeadsConfig(n_future=2)))
    content = torch.load(path, weights_only=True)
    content["mtp_lightning"]["context"] = 12
    torch.save(content, path)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS))
    return path


def sample(run: Path, out: Path, **changes: object) -> dict[str, bytes]:
    """Name -> content of what was made."""
    settings = {"prompts": str(run.parent / "prompts.jsonl"), "max_new_tokens": 6, "batch_size": 2} | changes
    sample_command(str(run), out=str(out), **settings)  # type: ignore[arg-type]
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def written(folder: Path) -> list[tuple[str, tuple[int, ...]]]:
    """(prompt, the tokens added to it) of all documents."""
    found = []
    for split in SPLITS:
        store = TokenStore(folder, split)
        assert store.answer_starts is not None
        ends = [*store.document_starts[1:].tolist(), len(store)]
        for start, answer, end in zip(store.document_starts.tolist(), store.answer_starts.tolist(), ends):
            prompt = bytes(store.read(start, answer - start).tolist()).decode()
            found.append((prompt, tuple(store.read(answer, end - answer).tolist())))
    return sorted(found)


def test_greedy_continuations_are_those_of_the_engine(run: Path, tmp_path: Path) -> None:
    sample(run, tmp_path / "out", temperature=0.0)
    engine = Engine(load_model(find_checkpoint(run)).model, 1)
    ids = [torch.tensor(list(prompt.encode())) for prompt in PROMPTS]
    texts = [tuple(generation.tokens) for generation in generate(engine, ids, 6, 1, (255,), Sampling())]
    assert written(tmp_path / "out") == sorted(zip(PROMPTS, texts))


def test_a_killed_run_ends_with_the_same_bytes(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sample(run, tmp_path / "whole", samples=3)
    real, calls = SampleLog.add, []

    def killed(self: SampleLog, continuations: list[tuple[int, ...]]) -> None:
        calls.append(1)
        if len(calls) == 5:
            self._file.write(b"[[1, 2")
            self._file.flush()
            raise KeyboardInterrupt
        real(self, continuations)

    monkeypatch.setattr(SampleLog, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        sample(run, tmp_path / "out", samples=3)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"was begun with seed = 0, and this is 1: go on as it was begun"):
        sample(run, tmp_path / "out", samples=3, seed=1)
    assert sample(run, tmp_path / "out", samples=3) == whole
    assert len(calls) == 5 + 9 - 4, "finished batches are not made again"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_a_sample_belongs_to_its_prompt_and_number(run: Path, tmp_path: Path) -> None:
    """More samples, other prompts beside it and fewer drafts change nothing; another seed does."""
    three = sample(run, tmp_path / "three", samples=3, temperature=1.5)
    found = written(tmp_path / "three")
    assert len(found) == 3 * len(PROMPTS)
    assert len({text for _, text in found}) > 10
    (tmp_path / "fewer.txt").write_text(f"{PROMPTS[3]}\n{PROMPTS[1]}\n{PROMPTS[3]}\n")
    sample(run, tmp_path / "one", temperature=1.5, prompts=str(tmp_path / "fewer.txt"))
    ones = written(tmp_path / "one")
    assert [prompt for prompt, _ in ones] == sorted([PROMPTS[3], PROMPTS[1]])
    assert set(ones) <= set(found)
    plain = sample(run, tmp_path / "plain", samples=3, temperature=1.5, heads_used=1)
    assert {k: v for k, v in plain.items() if k != "meta.json"} == {k: v for k, v in three.items() if k != "meta.json"}
    sample(run, tmp_path / "seed", temperature=1.5, prompts=str(tmp_path / "fewer.txt"), seed=1)
    assert not set(written(tmp_path / "seed")) & set(found)


def test_samples_are_trained_on_and_prompts_are_not(run: Path, tmp_path: Path) -> None:
    sample(run, tmp_path / "out", samples=2, validation_fraction=0.4)
    data = TokenDataModule(SourceConfig(kind="shards", path=str(tmp_path / "out")), context=11, batch_size=2)
    data.prepare_data()
    data.setup("fit")
    read, n_windows = data.corpora[0].validating(data.context, data.horizon, data.val_windows)
    prompts = {prompt for prompt, _ in written(tmp_path / "out")}
    assert prompts == set(PROMPTS)
    for split in SPLITS:
        assert TokenStore(tmp_path / "out", split).split_meta.n_documents % 2 == 0, "a prompt's samples stay together"
    assert n_windows > 0
    assert read(torch.arange(1).numpy())["loss_mask"].any()


def test_prompts_of_shards(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps({"prompt": f"p{i}" * (1 + 4 * (i == 7)), "completion": "c"}) + "\n" for i in range(9))
    )
    shards, plain = str(tmp_path / "shards"), str(tmp_path / "plain")
    assert main(["data", "prepare", shards, "--kind", "pairs", "--path", str(tmp_path / "pairs.jsonl")]) == 0
    capsys.readouterr()
    sides = [read_prompts(f"{shards}:{split}", ByteTokenizer(), 2, None) for split in SPLITS]
    expected = {f"p{i}" * (1 + 4 * (i == 7)) for i in range(9)}
    assert {bytes(prompt).decode() for side in sides for prompt in side} == expected
    sample(run, tmp_path / "out", prompts=shards)
    assert "prompts longer than 6 tokens: 1" in capsys.readouterr().out
    (tmp_path / "texts").mkdir()
    for i in range(4):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"{i} begins")
    assert main(["data", "prepare", plain, "--kind", "text", "--path", str(tmp_path / "texts")]) == 0
    begun = read_prompts(plain, ByteTokenizer(), 4, None)
    assert {bytes(prompt).decode()[1:] for prompt in begun} == {" be"}
    assert len(read_prompts(plain, ByteTokenizer(), 4, 2)) == 2


def test_a_model_that_begins_every_text_with_a_token_gets_it(run: Path, tmp_path: Path) -> None:
    content = torch.load(run, weights_only=True)
    content["mtp_lightning"]["begin_ids"] = [1]
    torch.save(content, tmp_path / "b.ckpt")
    (tmp_path / "prompts.txt").write_text("\x01a\nthe\na\n")
    sample(tmp_path / "b.ckpt", tmp_path / "out", prompts=str(tmp_path / "prompts.txt"))
    assert [prompt for prompt, _ in written(tmp_path / "out")] == ["\x01a", "\x01the"]


GOOD = "[[1, 2], [3]]\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (GOOD + "[[1, 2], [3.5]]\n", "line 2 is no 2 lists of tokens"),
        (GOOD + "[[1, 2], [256]]\n", "line 2 is no 2 lists of tokens"),
        (GOOD + "[[1], [-1]]\n", "line 2 is no 2 lists of tokens"),
        ("[[1]]\n", "line 1 is no 2 lists of tokens"),
        ('{"a": 1}\n', "line 1 is no 2 lists of tokens"),
        ("[" * 5000 + "\n", "line 1 is nested too deeply"),
        (GOOD * 2 + "[[1]]\n" + GOOD, "has 4 batches, and 3 are asked for"),
        (None, r"cannot be read \(Is a directory\)"),
    ],
)
def test_a_log_that_may_hold_anything(run: Path, tmp_path: Path, content: str | None, says: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SampleLog, "add", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sample(run, tmp_path / "out")
    log = tmp_path / "out.partial" / "samples.jsonl"
    log.unlink()
    log.mkdir() if content is None else log.write_text(content)
    with pytest.raises(InputError, match=rf"samples\.jsonl: {says}: remove '.*out\.partial'"):
        sample(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_log(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").write_text("mine")
    with pytest.raises(InputError, match=r"out: '.*out\.partial' cannot be written to: "):
        sample(run, tmp_path / "out")


def test_prompts_of_damaged_shards(run: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    (tmp_path / "pairs.jsonl").write_text("".join(f'{{"prompt": "p{i}", "completion": "c"}}\n' for i in range(9)))
    assert main(["data", "prepare", str(shards), "--kind", "pairs", "--path", str(tmp_path / "pairs.jsonl")]) == 0
    content = bytearray((shards / "train-00000.bin").read_bytes())
    content[3] ^= 1
    (shards / "train-00000.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"train-00000\.bin' is damaged: its content is not what was written"):
        sample(run, tmp_path / "out", prompts=str(shards))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"samples": 0}, "samples is 0: it has to be at least 1"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"prompts": "nowhere"}, "there is no file or folder of shards 'nowhere'"),
        ({"max_new_tokens": 12}, "none has room for max_new_tokens = 12 in the windows of 12 tokens"),
        ({"heads_used": 3}, "heads_used is 3|2 heads"),
        ({"limit": 1}, "there is one prompt only"),
        ({"prompts": None}, "--prompts and --out are needed"),
    ],
)
def test_bad_input_writes_nothing(run: Path, tmp_path: Path, changes: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        sample(run, tmp_path / "out", **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_that_is_written_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"prompt": "a", "prompt": "b"}\n')
    with pytest.raises(InputError, match=r"x\.jsonl', line 1: 'prompt' is written twice"):
        read_prompts(str(tmp_path / "x.jsonl"), ByteTokenizer(), 4, None)
