"""Configurations put together from parses of one difference each are those that parsing all of it gives."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mtp_lightning.config import many_configs
from mtp_lightning.config import one_config as configurations
from mtp_lightning.config.config_files import CONF_DIR
from mtp_lightning.config.many_configs import Resolver
from mtp_lightning.config.one_config import check_config, parse_config, resolve_config
from mtp_lightning.config.run_size import Size
from mtp_lightning.errors import InputError

CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "model": {"n": 1, "width": 8, "kind": {"class_path": "callbacks.a.A", "init_args": {"x": 1}}, "both": 8},
    "data": {"init_args": {"seed": 0, "horizon": 1, "size": 4}},
    "empty": {},
}


class Fake:
    """Stands in for Lightning's parser: `both` depends on two keys, `horizon` follows `n`, another kind has other
    arguments. Counts parses and checks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parses: list[dict[str, Any]] = []
        self.checks: list[dict[str, Any]] = []
        self.joint = lambda n, width: width
        monkeypatch.setattr(many_configs, "check_keys", lambda origins: None)  # its keys are nobody's
        monkeypatch.setattr(configurations, "parse_config", self.parse)
        monkeypatch.setattr(configurations, "check_config", self.check)

    def parse(self, files: Sequence[Path], overrides: Mapping[str, Any], like: Any = None) -> Any:
        self.parses.append(dict(overrides))
        return SimpleNamespace(cli=None, plain=self.plain(overrides))

    def plain(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        config = copy.deepcopy(CONFIG)
        for key, value in overrides.items():
            if key == "bad":
                raise InputError("there is no key 'bad'")
            node = config
            *parents, last = key.split(".")
            for part in parents:
                node = node[part]
            node[last] = copy.deepcopy(value)
        model = config["model"]
        config["data"]["init_args"] |= {"seed": config["seed_everything"], "horizon": model["n"]}
        model["both"] = self.joint(model["n"], model["width"])
        return config

    def check(self, parsed: Any, changes: Mapping[str, Any] | None = None) -> Size:
        self.checks.append(dict(changes or {}))
        whole = copy.deepcopy(parsed.plain)
        for key, value in (changes or {}).items():
            node = whole
            *parents, last = key.split(".")
            for part in parents:
                node = node[part]
            node[last] = value
        if whole["model"]["n"] > whole["model"]["width"]:
            raise InputError("more heads than width")
        return Size(whole["model"]["n"], whole["model"]["width"])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(monkeypatch)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / "base.yaml").write_text("model: {n: 1}\n")
    return [tmp_path / "base.yaml"]


def product(*, n: Sequence[int], width: Sequence[int], seeds: Sequence[int]) -> list[dict[str, Any]]:
    return [{"model.n": a, "model.width": b, "seed_everything": s} for a in n for b in width for s in seeds]


def test_combinations_are_what_parsing_gives_and_few_are_parsed(fake: Fake, files: list[Path]) -> None:
    resolve, wanted = Resolver(None), product(n=range(1, 7), width=range(8, 14), seeds=range(5))
    assert [resolve(files, overrides) for overrides in wanted] == [fake.plain(overrides) for overrides in wanted]
    parsed = 1 + 5 + 5 + 4  # the anchor, and each other value alone
    assert len(fake.parses) == parsed + 4  # and the first of each set of keys that differ
    assert len(fake.checks) == 36, "a check for each setting, none for its seeds"
    assert resolve.measure(resolve(files, wanted[-1])) == Size(6, 13)


def test_a_key_that_depends_on_two_is_noticed(fake: Fake, files: list[Path]) -> None:
    """Alone neither changes `both`, together they do: the first such combination is parsed and shows it."""
    fake.joint = lambda n, width: 99 if n > 1 and width > 8 else 8
    resolve, wanted = Resolver(None), product(n=[1, 2, 3], width=[8, 9, 10], seeds=[0])
    assert [resolve(files, overrides) for overrides in wanted] == [fake.plain(overrides) for overrides in wanted]


def test_a_key_that_two_change_is_parsed(fake: Fake, files: list[Path]) -> None:
    fake.joint = lambda n, width: n * width
    resolve, wanted = Resolver(None), product(n=[1, 2, 3], width=[8, 9], seeds=[0])
    assert [resolve(files, overrides) for overrides in wanted] == [fake.plain(overrides) for overrides in wanted]


def test_a_key_that_two_change_is_parsed_though_a_first_pair_agreed(fake: Fake, files: list[Path]) -> None:
    fake.joint = lambda n, width: width if n == 2 else n * width
    resolve, wanted = Resolver(None), product(n=[1, 2, 3], width=[8, 9], seeds=[0])
    assert [resolve(files, overrides) for overrides in wanted] == [fake.plain(overrides) for overrides in wanted]


def test_other_classes_and_other_keys_are_parsed(fake: Fake, files: list[Path]) -> None:
    kinds = [{"class_path": "callbacks.a.A", "init_args": {"x": 2}}, {"class_path": "callbacks.b.B"}]
    wanted = [
        {"model.kind": kind, "model.n": n, "seed_everything": s} for kind in kinds for n in (1, 2) for s in (0, 1)
    ]
    wanted += [{"model.n": 2}, {"seed_everything": 3}, {}]
    resolve = Resolver(None)
    assert [resolve(files, overrides) for overrides in wanted] == [fake.plain(overrides) for overrides in wanted]


def test_what_interpolates_is_parsed(fake: Fake, files: list[Path]) -> None:
    """Another value of the same key proves nothing for it."""
    plain = fake.plain

    def interpolating(overrides: Mapping[str, Any]) -> dict[str, Any]:
        n = overrides.get("model.n", 1)
        return plain({key: n if value == "${model.n}" else value for key, value in overrides.items()})

    fake.plain = interpolating  # type: ignore[method-assign]
    resolve = Resolver(None)
    wanted = [{"model.n": n, "model.width": width} for n in (1, 2, 3) for width in (8, 9, "${model.n}")]
    assert [resolve(files, overrides) for overrides in wanted] == [interpolating(overrides) for overrides in wanted]


def test_a_key_and_one_below_it_are_parsed_in_their_order(fake: Fake, files: list[Path]) -> None:
    resolve = Resolver(None)
    wanted: list[dict[str, Any]] = [
        {"model.kind.init_args": {"x": x, "y": 0}, "model.kind.init_args.x": 7, "seed_everything": s}
        for x in (1, 2) for s in (0, 1)
    ]  # fmt: skip
    wanted += [dict(reversed(overrides.items())) for overrides in wanted]
    assert [resolve(files, overrides) for overrides in wanted] == [fake.plain(overrides) for overrides in wanted]


def test_a_value_that_needs_another_is_parsed_with_it(fake: Fake, files: list[Path]) -> None:
    """Alone, beside the anchor's other values, it would be refused."""
    plain = fake.plain

    def strict(overrides: Mapping[str, Any]) -> dict[str, Any]:
        if overrides["model.width"] == 9 and overrides["model.n"] == 1:
            raise InputError("no width 9 for one head")
        return plain(overrides)

    fake.plain = strict  # type: ignore[method-assign]
    resolve = Resolver(None)
    for overrides in product(n=[1, 2], width=[8], seeds=[0]) + product(n=[2, 3], width=[9], seeds=[0, 1]):
        assert resolve(files, overrides) == strict(overrides)


def test_one_and_the_whole_are_two(fake: Fake, files: list[Path]) -> None:
    resolve = Resolver(None)
    found = [resolve(files, {"data.init_args.size": size})["data"]["init_args"]["size"] for size in (4, 1, 1.0)]
    assert [type(size) for size in found] == [int, int, float]


def test_every_combination_is_checked_as_a_whole(fake: Fake, files: list[Path]) -> None:
    resolve = Resolver(None)
    for overrides in product(n=[1, 9], width=[20, 8], seeds=[0])[:3]:
        resolve(files, overrides)
    with pytest.raises(InputError, match="more heads than width"):
        resolve(files, {"model.n": 9, "model.width": 8, "seed_everything": 0})
    with pytest.raises(InputError, match="no key 'bad'"):
        resolve(files, {"model.n": 9, "bad": 1})


def test_like_the_real_parser() -> None:
    configs = [CONF_DIR / name for name in ("base.yaml", "model/tiny.yaml", "data/python_stdlib.yaml")]
    wanted = [
        {"model.heads.n_future": n, "model.optimizer.lr": lr, "seed_everything": seed, "trainer.max_steps": 2000}
        for n in (1, 3) for lr in (1e-3, 2e-3) for seed in (0, 1)
    ]  # fmt: skip
    resolve = Resolver(None)
    found = [resolve(configs, overrides) for overrides in wanted]
    assert found[-1] == resolve_config(configs, wanted[-1])
    assert found[3] == resolve_config(configs, wanted[3])
    size = resolve.measure(found[-1])
    assert size.tokens == 2000 * found[-1]["data"]["init_args"]["batch_size"] * 256
    assert size.parameters > size.parameters_non_embedding > 0
    with pytest.raises(InputError, match=r"vocab_size is 300, and the tokenizer"):  # what follows from a change follows
        check_config(parse_config(configs, {}), {"model.backbone.vocab_size": 300})
    with pytest.raises(InputError, match=r"data\.init_args\.seed is 3, and follows from seed_everything"):
        resolve(configs, {**wanted[-1], "data.init_args.seed": 3})
    with pytest.raises(InputError, match=r"n_future is 40"):
        resolve(configs, {**wanted[-1], "model.heads.n_future": 40})


def test_one_parser_for_many() -> None:
    configs = [CONF_DIR / name for name in ("base.yaml", "model/tiny.yaml", "data/python_stdlib.yaml")]
    first = parse_config(configs, {})
    before = check_config(first)
    changed: dict[str, Any] = {"model.backbone.dim": 64, "data.init_args.source.kind": "stories"}
    assert parse_config(configs, changed, first).plain == parse_config(configs, changed).plain
    assert check_config(first) == before, "the first is what it was"
    cpu, gpu = (check_config(first, {"trainer.accelerator": kind}) for kind in ("cpu", "cuda"))
    assert before.gpu_memory_bytes == cpu.gpu_memory_bytes == gpu.memory_bytes != cpu.memory_bytes
    refusals = []
    for like in (None, first):
        with pytest.raises(InputError, match=r"model\.optimizer\.lr is fast: it has to be a number$") as refused:
            parse_config(configs, {"model.optimizer.lr": "fast"}, like)
        refusals.append(str(refused.value))
    assert refusals[0] == refusals[1]


def test_weights_of_models_that_are_only_checked_are_not_drawn() -> None:
    weight = torch.zeros(3)
    with configurations._Undrawn():
        torch.nn.init.normal_(weight)
        weight.normal_()
        torch.nn.init.uniform_(weight)
    assert weight.tolist() == [0.0] * 3


def test_a_wrong_key_is_answered_before_anything_is_parsed(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is anything parsed to find out which part of the combination is to blame."""
    monkeypatch.setattr(configurations, "parse_config", None)
    monkeypatch.setattr(configurations, "check_config", None)
    files[0].write_text("seed_everything: 1\n")
    resolve = Resolver(None)
    wrong, right = {"model.heads.n_futur": 2}, {"model.optimizer.lr": 0.1}
    with pytest.raises(InputError, match=r"did you mean 'model.heads.n_future'\?$"):
        resolve(files, {**right, **wrong, "seed_everything": 0})
    for part in ({}, right):
        with pytest.raises(InputError, match="not resolved"):
            resolve(files, {**part, "seed_everything": 3})
    with pytest.raises(InputError, match="n_futur'"):
        resolve(files, wrong)
    with pytest.raises(TypeError):  # what was not part of it is parsed
        resolve(files, {"model.optimizer.lr": 0.2})


def test_a_wrong_key_is_looked_for_once(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """However many cells have it: each look reads the files."""
    looked = []
    check_keys = many_configs.check_keys
    monkeypatch.setattr(many_configs, "check_keys", lambda origins: (looked.append(1), check_keys(origins)))
    resolve = Resolver(None)
    for lr in range(100):
        with pytest.raises(InputError, match="there is no key"):
            resolve.check_keys(files, {"model.heads.n_futur": lr, "model.optimizer.lr": lr / 1000})
    assert len(looked) == 1


def test_a_number_outside_its_range_needs_no_parser(fake: Fake, files: list[Path]) -> None:
    with pytest.raises(InputError, match=r"model\.backbone\.n_layers is 1000000000\.0: it has to be a whole number"):
        Resolver(None).check_keys(files, {"model.backbone.n_layers": 1e9})
