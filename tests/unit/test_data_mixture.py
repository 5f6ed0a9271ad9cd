"""Mixtures: the order is dealt out evenly and depends on nothing but the sample's number; each source keeps its own."""

import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Recorder, tiny_backbone

from mtp_lightning.config.config_files import CONF_DIR
from mtp_lightning.config.many_configs import Resolver
from mtp_lightning.data import SourceConfig, TokenDataModule
from mtp_lightning.data.mixtures.order import MixtureOrder
from mtp_lightning.data.mixtures.sources import TAKEN, MixtureSource
from mtp_lightning.data.tokens.heldout import heldout_prompts
from mtp_lightning.errors import InputError
from mtp_lightning.grid.spec.signature import signature
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.module import MTPModule
from mtp_lightning.optimization.schedule import ScheduleConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

WEIGHTS = st.lists(st.sampled_from([0.0, 0.001, 0.5, 1.0, 3.0, 1e6]), min_size=3, max_size=3).filter(any)


def dealt_one_by_one(weights: dict[int, Any], n: int) -> list[tuple[int, int]]:
    """The oracle: each source in turn takes a sample when it is owed one, in whole numbers of 2^-30."""
    one, found, current = 2**30, [], weights[0]
    owed, counts = [one // 2] * len(current), [0] * len(current)
    for sample in range(n):
        current = weights.get(sample, current)
        for i, weight in enumerate(current):
            owed[i] += round(weight / sum(current[i:]) * one) if sum(current[i:]) else one
            if owed[i] >= one:
                owed[i] -= one
                found.append((i, counts[i]))
                counts[i] += 1
                break
    return found


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.integers(1, 300), WEIGHTS, max_size=3), WEIGHTS)
def test_samples_are_dealt_out_as_one_by_one(later: dict[int, list[float]], first: list[float]) -> None:
    weights = {0: first} | later
    order, n = MixtureOrder(weights), 400  # type: ignore[arg-type]
    sources, numbers = order.locate(np.arange(n))
    assert [*zip(sources.tolist(), numbers.tolist())] == dealt_one_by_one(weights, n)
    for source in range(3):
        assert numbers[sources == source].tolist() == [*range((sources == source).sum())]
    for g in (0, 1, 37, 299, n):
        assert order.counts(g) == tuple(np.bincount(sources[:g], minlength=3))
    shuffled = np.random.default_rng(0).permutation(n)
    assert [part.tolist() for part in order.locate(shuffled)] == [
        sources[shuffled].tolist(),
        numbers[shuffled].tolist(),
    ]


def test_each_source_has_its_part_at_any_time() -> None:
    order = MixtureOrder({0: [5.0, 3.0, 2.0], 1000: [0.0, 1.0, 1.0]})
    for g in range(1000):
        assert np.abs(np.array(order.counts(g)) - g * np.array([0.5, 0.3, 0.2])).max() < 1.5
    assert order.counts(3000) == (500, 1300, 1200)
    assert order.counts(2**32) == (500, 300 + (2**32 - 1000) // 2, 200 + (2**32 - 1000) // 2)


LINES = {name: [f"{name} {i} {f'no {name} {i} ' * (i % 5)}." for i in range(90)] for name in ("a", "b", "c")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpora")
    for name, lines in LINES.items():
        (path / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    rows = (f'{{"prompt": "Who is {i}? ", "completion": "Ann {i}."}}\n' for i in range(60))
    (path / "pairs.jsonl").write_text("".join(rows))
    return path


def text(folder: Path, name: str) -> SourceConfig:
    if name == "pairs":
        return SourceConfig(kind="pairs", path=str(folder / "pairs.jsonl"))
    return SourceConfig(kind="text", path=str(folder / f"{name}.txt"), separator="\n")


def parts(folder: Path, **weights: Any) -> list[MixtureSource]:
    return [MixtureSource(source=text(folder, name), weight=_floats(weight)) for name, weight in weights.items()]


def _floats(weight: Any) -> Any:
    return {step: float(value) for step, value in weight.items()} if isinstance(weight, dict) else float(weight)


def ready(folder: Path, **changes: Any) -> TokenDataModule:
    arguments = {"context": 16, "batch_size": 8, "validation_fraction": 0.3, "val_windows": 6} | changes
    rank, ranks = arguments.pop("rank", (0, 1))
    data = TokenDataModule(directory=str(folder / "cache"), **arguments)
    data.prepare_data()
    data.setup("validate")
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=rank, world_size=ranks, max_steps=12, accumulate_grad_batches=1, state=SimpleNamespace(fn="fit")
    )
    return data


def windows(data: TokenDataModule) -> list[list[int]]:
    return torch.cat([batch["tokens"] for batch in data.train_dataloader()]).tolist()


def test_a_mixture_of_one_is_that_source(folder: Path) -> None:
    plain, mixed = ready(folder, source=text(folder, "a")), ready(folder, mixture=parts(folder, a=7))
    for one, other in (
        *zip(plain.train_dataloader(), mixed.train_dataloader(), strict=True),
        *zip(plain.val_dataloader(), mixed.val_dataloader(), strict=True),
    ):
        assert other.pop("source", "a") == "a"
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) and one[key].dtype == other[key].dtype for key in one)
    assert plain.state_dict() == mixed.state_dict()


def test_a_source_keeps_its_order_whatever_is_beside_it(folder: Path) -> None:
    alone = {name: windows(ready(folder, source=text(folder, name))) for name in "abc"}
    for weights in ({"a": 1, "b": 1}, {"c": 2, "a": 3, "b": 1}, {"b": {0: 1, 4: 0}, "a": {0: 0, 2: 5}}):
        mixed = windows(ready(folder, mixture=parts(folder, **weights)))
        for name in weights:
            seen = [row for row in mixed if row in alone[name]]
            assert seen == alone[name][: len(seen)]
        assert len(mixed) == 96 == sum(row in itertools.chain(*alone.values()) for row in mixed)


def test_order_is_the_same_for_every_n_and_number_of_ranks(folder: Path) -> None:
    mixture = parts(folder, a=3, pairs=1, b={0: 1, 5: 2})
    one = windows(ready(folder, mixture=mixture))
    assert [row[:17] for row in windows(ready(folder, mixture=mixture, horizon=8))] == [row[:17] for row in one]
    split = [windows(ready(folder, mixture=mixture, rank=(rank, 2))) for rank in range(2)]
    assert [row for pair in zip(*split, strict=True) for row in pair] == one
    assert ready(folder, mixture=mixture, seed=1).seen(12) == ready(folder, mixture=mixture).seen(12)


def test_epochs_are_passes(folder: Path) -> None:
    sources = [MixtureSource(source=text(folder, name), epochs=epochs) for name, epochs in (("a", 2.0), ("b", 1.0))]
    seen = ready(folder, mixture=sources).seen(10_000)
    assert seen["data/a/epochs"] == pytest.approx(2 * seen["data/b/epochs"], rel=1e-3)
    assert seen["data/a/tokens"] + seen["data/b/tokens"] == 10_000 * 8 * 16


def test_pairs_beside_text(folder: Path) -> None:
    data = ready(folder, mixture=parts(folder, a=1, pairs=1))
    alone = ready(folder, source=text(folder, "pairs"))
    batches, pairs = [*data.train_dataloader()], next(iter(alone.train_dataloader()))
    mask, tokens = batches[0]["loss_mask"], batches[0]["tokens"]
    is_pair = ~mask.all(1)
    assert is_pair.sum() == 4
    assert torch.equal(mask[is_pair], pairs["loss_mask"][:4])
    assert torch.equal(tokens[is_pair], pairs["tokens"][:4])
    assert data.validation_pairs is data.corpora[1].validation
    assert len(data.heldout_prompts(5, 4)) == 5
    assert data.token_counts().sum() == sum(len(corpus.train) for corpus in data.corpora)


def test_the_first_prompts_are_of_all_sources(folder: Path) -> None:
    data = ready(folder, mixture=parts(folder, a=1, pairs=1, b=1))
    a, pairs, b = (heldout_prompts(one.validation, n, 8) for one, n in zip(data.corpora, (3, 2, 2)))
    wanted = [a[0], pairs[0], b[0], a[1], pairs[1], b[1], a[2]]
    assert all(map(torch.equal, data.heldout_prompts(7, 8), wanted))


def fit(
    folder: Path, data: TokenDataModule, steps: int, checkpoint: Path | None = None, save: bool = False
) -> Recorder:
    torch.manual_seed(1)
    module = MTPModule(
        tiny_backbone(vocab_size=256, n_layers=3),
        HeadsConfig(n_future=2),
        schedule=ScheduleConfig(kind="constant", warmup_steps=1),
    )
    recorder = Recorder()
    trainer = pl.Trainer(
        logger=recorder, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", num_sanity_val_steps=0, max_steps=steps, val_check_interval=4, log_every_n_steps=2,
        accumulate_grad_batches=2, check_val_every_n_epoch=None,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=False if checkpoint else None)
    if save:
        trainer.save_checkpoint(folder / "half.ckpt")
    return recorder


def module_of(folder: Path, **changes: Any) -> TokenDataModule:
    arguments = {"context": 16, "batch_size": 4, "validation_fraction": 0.3, "val_windows": 6, "horizon": 2} | changes
    return TokenDataModule(directory=str(folder / "cache"), **arguments)


def test_losses_and_tokens_of_each_source(folder: Path) -> None:
    mixture = parts(folder, a=3, b=1)
    whole = fit(folder, module_of(folder, mixture=mixture), 8)
    first = {key: value for step, found in whole.calls for key, value in found.items() if step == 2}
    for head in ("head_1", "head_2"):
        assert first[f"val/a/loss/{head}"] != first[f"val/b/loss/{head}"]
        # Windows of both have nearly as many targets: documents end.
        mean = (first[f"val/a/loss/{head}"] + first[f"val/b/loss/{head}"]) / 2
        assert first[f"val/loss/{head}"] == pytest.approx(mean, rel=1e-2)
    assert {"val/a/loss", "val/a/accuracy/head_2", "val/b/bits_per_byte"} <= first.keys()
    tokens = [found["data/a/tokens"] for _, found in whole.calls if "data/a/tokens" in found]
    assert tokens == [16 * 6 * step for step in (2, 4, 6, 8)]
    assert whole.last["data/b/epochs"] > 0

    fit(folder, module_of(folder, mixture=mixture), 4, save=True)
    resumed = fit(folder, module_of(folder, mixture=mixture), 8, folder / "half.ckpt")
    for prefix in ("train/loss", "data/", "val/"):
        after = {step: found for step, found in whole.last_by_step(prefix).items() if step is not None and step > 4}
        assert resumed.last_by_step(prefix) == after
    with pytest.raises(
        InputError, match=r"ckpt_path: .* data\.mixture = \{'a': 3\.0, 'b': 1\.0\}, 8 windows a step, .*'b': 2"
    ):
        fit(folder, module_of(folder, mixture=parts(folder, a=3, b=2)), 8, folder / "half.ckpt")
    with pytest.raises(InputError, match=r"other text than data\.mixture gives now"):
        fit(folder, module_of(folder, mixture=parts(folder, a=3, c=1)), 8, folder / "half.ckpt")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: parts(f, a=-1, b=1), "data.mixture.weight is -1.0: it has to be a finite number, at least 0"),
        (lambda f: parts(f, a=0, b=0), "data.mixture.weight: the weights are all zero: at least one"),
        (lambda f: parts(f, a={0: 1, 50: 0}, b=0), "data.mixture.weight: the weights are all zero from step 50 on"),
        (lambda f: parts(f, a={5: 1}), "data.mixture.weight is {5: 1.0}: steps begin at 0, and increase"),
        (lambda f: [*parts(f, a=1), *parts(f, a=1)], "data.mixture.name: two sources are called 'a'"),
        (
            lambda f: [*parts(f, a=1), MixtureSource(text(f / ".." / f.name, "a"), name="again")],
            "data.mixture: 'a' and 'again' are the same source: list it once",
        ),
        (lambda f: [MixtureSource(text(f, "a"), weight=1.0, epochs=1.0)], "'a' has weight 1.0 and epochs 1.0"),
        (
            lambda f: [MixtureSource(text(f, "a"), weight=1.0), MixtureSource(text(f, "b"), epochs=1.0)],
            "data.mixture: some sources have epochs and others do not",
        ),
        (lambda f: [MixtureSource(text(f, "a"), name="loss")], "data.mixture.name is 'loss': it has to be letters"),
        (lambda f: [MixtureSource(text(f, "infilling"))], "data.mixture.name is 'infilling': it has to be letters"),
        (lambda f: [MixtureSource(text(f, "a"), name="a/b")], "data.mixture.name is 'a/b'"),
        (lambda f: [], "data.mixture is empty"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(folder: Path, make: Any, message: str) -> None:
    cache = folder / "untouched"
    with pytest.raises(InputError, match=re.escape(message)):
        TokenDataModule(mixture=make(folder), directory=str(cache))
    assert not cache.exists()
    with pytest.raises(InputError, match=r"data\.source and data\.mixture are both given"):
        TokenDataModule(source=text(folder, "a"), mixture=parts(folder, b=1), directory=str(cache))


def test_no_source_can_have_the_name_of_other_metrics() -> None:
    root = Path(__file__).parents[2]
    files = [path for room in ("callbacks", "mtp_lightning") for path in (root / room).rglob("*.py")]
    logged = {name for path in files for name in re.findall(r"""["']val/([\w-]+)/?""", path.read_text("utf-8"))}
    assert logged == set(TAKEN)


def test_a_weight_is_an_axis_of_a_grid() -> None:
    files = [CONF_DIR / "base.yaml", CONF_DIR / "data" / "mixture.yaml"]
    byte_level = {"model.backbone.vocab_size": 256}
    resolver = Resolver(None)
    cells = [resolver(files, byte_level | {"data.mixture_weights.stories": weight}) for weight in (1, 0.5, 3)]
    assert [cell["data"]["init_args"]["mixture_weights"] for cell in cells] == [{"stories": w} for w in (1, 0.5, 3)]
    assert len({signature(cell) for cell in cells}) == 3
    with pytest.raises(InputError, match=r"no source of data\.mixture is called 'story' \(there are code, stories\)"):
        resolver(files, byte_level | {"data.mixture_weights.story": 1})


def test_weights_by_name(folder: Path) -> None:
    named = ready(folder, mixture=parts(folder, a=3, b={0: 1, 4: 0}), mixture_weights={"b": 1.0})
    assert windows(named) == windows(ready(folder, mixture=parts(folder, a=3, b=1)))


def test_cells_without_a_mixture_keep_their_names() -> None:
    config = {"data": {"init_args": {"context": 8}}}
    assert signature({"data": {"init_args": {"context": 8, "mixture": None}}}) == signature(config)


def test_bytes_per_token_are_those_of_what_a_run_sees(folder: Path) -> None:
    """The end of a document is a token and no byte."""
    alone = [ready(folder, source=text(folder, name)).bytes_per_token for name in "ab"]
    training = ready(folder, source=text(folder, "a")).train_store.split_meta
    assert alone[0] == training.n_bytes / training.n_tokens == 1 - training.n_documents / training.n_tokens
    mixed = ready(folder, mixture=parts(folder, a=3, b=1)).bytes_per_token
    assert mixed == pytest.approx(0.75 * alone[0] + 0.25 * alone[1], rel=1e-6)
