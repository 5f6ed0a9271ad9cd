from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor

from mtp_lightning.config.config_files import CONF_DIR
from mtp_lightning.data import MTPDataModule, SourceConfig, TokenDataModule
from mtp_lightning.data.tokenizers.training import train_bpe
from mtp_lightning.errors import InputError

SENTENCES = [f"Story {i}: the {'very ' * (i % 5)}small dog met a cat. 🙂" for i in range(80)]

# Lightning 2.6 with torch 2.13 uses a class that torch means to retire.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


class Recorder(pl.LightningModule):
    """Learns next to nothing, remembers what it was shown, and saves a checkpoint at one step."""

    def __init__(self, save_at: int | None = None, path: Path | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.save_at, self.path = save_at, path
        self.shown: list[Tensor] = []
        self.validated: list[Tensor] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.shown.append(batch["tokens"])
        return (self.weight * batch["tokens"].float().mean()).sum()

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Tensor], batch_idx: int) -> None:
        if self.trainer.global_step == self.save_at:
            self.trainer.save_checkpoint(self.path)  # type: ignore[arg-type]
            self.trainer.should_stop = True

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.validated.append(batch["tokens"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


@pytest.fixture
def stories(tmp_path: Path) -> SourceConfig:
    (tmp_path / "stories.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    return SourceConfig(kind="text", path=str(tmp_path / "stories.txt"), separator="\n")


def module(source: SourceConfig, tmp_path: Path, **changes: Any) -> TokenDataModule:
    arguments = {"context": 16, "batch_size": 4, "validation_fraction": 0.2, "val_windows": 6} | changes
    return TokenDataModule(source=source, directory=str(tmp_path / "cache"), **arguments)


def ready(data: TokenDataModule) -> TokenDataModule:
    data.prepare_data()
    data.setup("validate")
    return data


def trainer(max_steps: int, **changes: Any) -> pl.Trainer:
    arguments: dict[str, Any] = {
        "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        "accelerator": "cpu", "num_sanity_val_steps": 0, "use_distributed_sampler": False,
    }  # fmt: skip
    return pl.Trainer(max_steps=max_steps, **arguments | changes)


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def test_a_run_sees_the_batches_of_its_steps(stories: SourceConfig, tmp_path: Path) -> None:
    data, recorder = module(stories, tmp_path, horizon=4), Recorder()
    run = trainer(3, accumulate_grad_batches=2, val_check_interval=4)
    run.fit(recorder, datamodule=data)
    assert (run.global_step, run.current_epoch) == (3, 1)
    assert [tuple(tokens.shape) for tokens in recorder.shown] == [(4, 20)] * 6
    assert same(recorder.shown, [data.train_dataloader().batches[i]["tokens"] for i in range(6)])
    assert [len(tokens) for tokens in recorder.validated] == [4, 2]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_sees_what_the_uninterrupted_one_saw(
    stories: SourceConfig, tmp_path: Path, num_workers: int, accumulate: int
) -> None:
    def run(recorder: Recorder, checkpoint: Path | None = None) -> Recorder:
        fit = trainer(7, accumulate_grad_batches=accumulate, val_check_interval=3 * accumulate)
        fit.fit(recorder, datamodule=module(stories, tmp_path, num_workers=num_workers), ckpt_path=checkpoint)
        return recorder

    whole = run(Recorder())
    path = tmp_path / "stopped.ckpt"
    first = run(Recorder(save_at=4, path=path))
    second = run(Recorder(), path)
    assert len(first.shown) == 4 * accumulate
    assert same(first.shown + second.shown, whole.shown)
    assert torch.equal(second.weight, whole.weight)


def test_a_longer_run_goes_on_after_the_end(stories: SourceConfig, tmp_path: Path) -> None:
    path = tmp_path / "end.ckpt"
    whole = Recorder()
    trainer(9).fit(whole, datamodule=module(stories, tmp_path))
    first, second = Recorder(), Recorder()
    run = trainer(4)
    run.fit(first, datamodule=module(stories, tmp_path))
    run.save_checkpoint(path)
    trainer(9).fit(second, datamodule=module(stories, tmp_path), ckpt_path=path)
    assert same(first.shown + second.shown, whole.shown)


def test_heads_are_compared_on_the_same_inputs(stories: SourceConfig, tmp_path: Path) -> None:
    one, many = (module(stories, tmp_path, horizon=n) for n in (1, 8))
    for data in (one, many):
        data.trainer = trainer(5)
        data.prepare_data()
        data.setup("fit")
    for a, b in (
        *zip(one.train_dataloader(), many.train_dataloader(), strict=True),
        *zip(one.val_dataloader(), many.val_dataloader(), strict=True),
    ):
        assert torch.equal(a["tokens"], b["tokens"][:, :17])
        assert torch.equal(a["documents"], b["documents"][:, :17])


def test_a_bpe_corpus(stories: SourceConfig, tmp_path: Path) -> None:
    (tmp_path / "bpe.json").write_text(train_bpe(iter(SENTENCES), 300), encoding="utf-8")
    data = ready(module(stories, tmp_path, tokenizer=str(tmp_path / "bpe.json"), vocab_size=300))
    store = data.validation_store
    text = data.text_tokenizer.decode(store.read(0, len(store)).tolist())
    assert text.startswith("Story ")
    assert len(text.encode()) == store.split_meta.n_bytes
    assert data.token_bytes is not None
    assert data.token_bytes[store.read(0, len(store))].sum() == store.split_meta.n_bytes
    for wrong in (256, 299, 321, 300 + 1024 + 12):
        with pytest.raises(InputError, match=rf"model\.backbone\.vocab_size is {wrong}, .* has 300 tokens"):
            module(stories, tmp_path, tokenizer=str(tmp_path / "bpe.json"), vocab_size=wrong)
    padded = ready(module(stories, tmp_path, tokenizer=str(tmp_path / "bpe.json"), vocab_size=320))
    assert len(padded.train_store) == len(data.train_store)
    shards = SourceConfig(kind="shards", path=str(data.shards))
    assert len(ready(module(shards, tmp_path, tokenizer=str(tmp_path / "bpe.json"), vocab_size=300)).train_store) > 100
    with pytest.raises(InputError, match=r"data\.tokenizer: the shards in .* were made with another tokenizer \(300"):
        ready(module(shards, tmp_path))


def test_losses_on_other_windows_are_not_compared(stories: SourceConfig, tmp_path: Path) -> None:
    rooms = [ready(module(stories, tmp_path, horizon=ahead)).window_room for ahead in (1, 16, 17, 30)]
    assert rooms == [16, 16, 17, 30]
    pairs = SourceConfig(kind="story_pairs", max_documents=60)
    assert ready(module(pairs, tmp_path, horizon=30, context=1024)).window_room is None


def test_prompts_lie_inside_documents(stories: SourceConfig, tmp_path: Path) -> None:
    data = ready(module(stories, tmp_path))
    n_documents = data.validation_store.split_meta.n_documents
    for count in (1, 5, n_documents, 3 * n_documents):
        prompts = data.heldout_prompts(count, 10)
        assert [(tuple(p.shape), p.dtype) for p in prompts] == [((10,), torch.int64)] * count
        assert all(p.tolist() == q.tolist() for p, q in zip(prompts, data.heldout_prompts(count, 10), strict=True))
        texts = [bytes(p.tolist()) for p in prompts]
        assert all(any(text in sentence.encode() for sentence in SENTENCES) for text in texts)
    assert len(set(texts)) > n_documents
    assert len(data.heldout_prompts(3, 200)) == 3  # longer than any document
    with pytest.raises(InputError, match="longer than the validation split"):
        data.heldout_prompts(1, 10_000)


def test_state_refuses_other_data(stories: SourceConfig, tmp_path: Path) -> None:
    data = ready(module(stories, tmp_path))
    state = data.state_dict()
    torch.save(state, tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == state
    data.load_state_dict(state)
    for key, value in (("batch_size", 8), ("seed", 1), ("context", 20)):
        with pytest.raises(InputError, match=rf"ckpt_path: .* data\.{key} = {state[key]}, .* says {value}"):
            ready(module(stories, tmp_path, **{key: value})).load_state_dict(state)
    with pytest.raises(InputError, match=r"other text than data\.source"):
        data.load_state_dict(state | {"fingerprint": "x"})
    with pytest.raises(InputError, match=r"another tokenizer than data\.tokenizer"):
        data.load_state_dict(state | {"tokenizer": {"kind": "x"}})


def test_evaluation_on_other_data_is_allowed(stories: SourceConfig, tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    trainer(2).fit(Recorder(save_at=1, path=path), datamodule=module(stories, tmp_path))
    trainer(2).validate(Recorder(), datamodule=module(stories, tmp_path, context=20), ckpt_path=path, verbose=False)
    with pytest.raises(InputError, match=r"data\.context = 16"):
        trainer(2).fit(Recorder(), datamodule=module(stories, tmp_path, context=20), ckpt_path=path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": 0}, r"data\.horizon is 0: it has to be at least 1"),
        ({"context": 0}, r"data\.context is 0"),
        ({"batch_size": 0}, r"data\.batch_size is 0"),
        ({"val_windows": 0}, r"data\.val_windows is 0"),
        ({"num_workers": -1}, r"data\.num_workers is -1"),
        ({"vocab_size": 512}, r"model\.backbone\.vocab_size is 512, .*'bytes' has 256 tokens"),
        ({"validation_fraction": 2.0}, r"data\.validation_fraction is 2\.0"),
    ],
)
def test_bad_arguments(stories: SourceConfig, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        module(stories, tmp_path, **changes)


def test_a_corpus_shorter_than_a_window(stories: SourceConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the train split of .* has \d+ tokens, and one window needs 100016 "):
        ready(module(stories, tmp_path, context=100_000))
    n_tokens = len(ready(module(stories, tmp_path)).validation_store)
    with pytest.raises(InputError, match=rf"the validation split of .* has {n_tokens} tokens"):
        ready(module(stories, tmp_path, context=n_tokens - 15))
    ready(module(stories, tmp_path, context=n_tokens - 16))


def test_steps_have_to_be_said(stories: SourceConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"trainer\.max_steps is -1: say for how many steps"):
        trainer(-1, max_epochs=1).fit(Recorder(), datamodule=module(stories, tmp_path))


def test_batches_divide_over_processes(stories: SourceConfig, tmp_path: Path) -> None:
    data = module(stories, tmp_path)
    data.prepare_data()
    data.trainer = SimpleNamespace(world_size=3, global_rank=1, max_steps=2, accumulate_grad_batches=1)  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"data\.batch_size is 4, and does not divide over 3 processes"):
        data.setup("fit")
    data.trainer.world_size = 2  # type: ignore[misc,union-attr]
    data.setup("fit")
    assert [len(batch["tokens"]) for batch in data.train_dataloader()] == [2, 2]


def test_missing_shards(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'.*nowhere' is not a folder of token shards"):
        ready(module(SourceConfig(kind="shards", path=str(tmp_path / "nowhere")), tmp_path))


@pytest.mark.parametrize("path", sorted(CONF_DIR.glob("data/*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_fit_the_signature(path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(MTPDataModule, "data", required=True)
    parsed = parser.parse_object({"data": yaml.safe_load(path.read_text())["data"]})
    assert parsed.data.class_path.endswith((".TokenDataModule", ".TaskDataModule"))


def test_the_base_asks_for_no_text() -> None:
    base = MTPDataModule(horizon=2, vocab_size=16)
    assert (base.tokenizer, base.token_bytes) == (None, None)
    assert base.rank_and_world_size == (0, 1)
