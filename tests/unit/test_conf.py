"""Every shipped YAML parses against the real signatures; table S14's sizes come out as the paper's."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import KINDS

from mtp_lightning.config.config_files import CONF_DIR
from mtp_lightning.config.one_config import resolve_config
from mtp_lightning.model.config import TEACHER_FORCED, BackboneConfig, HeadsConfig
from mtp_lightning.model.counts import ModelCounts, count_parameters
from mtp_lightning.objective.loss import LossOptions
from mtp_lightning.objective.teacher_config import TARGETS

MODELS = sorted((CONF_DIR / "model").glob("*.yaml"))

S14 = {  # name: dim, layers, heads, non-embedding parameters of an exact Llama, total with V = 32000 untied
    "1M": (128, 5, 4, 1.31e6, 9.5e6),
    "3M": (256, 4, 8, 3.41e6, 19.8e6),
    "10M": (384, 6, 8, 10.62e6, 35.2e6),
    "30M": (512, 10, 8, 34.09e6, 66.9e6),
    "100M": (768, 14, 12, 99.11e6, 148.3e6),
    "300M": (1024, 25, 16, 321.2e6, 386.7e6),
    "1B": (1536, 36, 24, 1019e6, 1118e6),
    "0.3B": (1024, 18, 16, 231e6, 297e6),
    "0.6B": (1280, 27, 20, 549e6, 631e6),
    "1.3B": (2048, 24, 16, 1233e6, 1364e6),
    "3B": (2560, 36, 20, 2855e6, 3019e6),
    "6.7B": (4096, 32, 32, 6476e6, 6738e6),
    "13B": (5120, 40, 40, 12688e6, 13016e6),
}


def counts_of(file: Path, n_future: int) -> tuple[BackboneConfig, ModelCounts]:
    backbone = BackboneConfig(**yaml.safe_load(file.read_text())["model"]["backbone"])
    return backbone, count_parameters(backbone, HeadsConfig(n_future=n_future))


def test_all_of_the_papers_sizes_are_here() -> None:
    assert {file.stem for file in MODELS} == set(S14) | {"tiny"}


@pytest.mark.parametrize("name", S14)
@pytest.mark.parametrize("n_future", [1, 4])
def test_sizes_agree_with_table_s14(name: str, n_future: int) -> None:
    if n_future >= S14[name][1]:
        pytest.skip("the heads would take every layer")
    backbone, counts = counts_of(CONF_DIR / "model" / f"{name}.yaml", n_future)
    dim, layers, heads, non_embedding, total = S14[name]
    assert (backbone.dim, backbone.n_layers, backbone.n_heads) == (dim, layers, heads)
    assert counts.non_embedding == pytest.approx(non_embedding, rel=2e-3)
    assert counts.total == pytest.approx(total, rel=5e-3)


@pytest.mark.parametrize("part", ["heads_only", "joint"])
def test_adopting_takes_a_path(part: str) -> None:
    names = ("base", "model/tiny", "data/python_stdlib", f"adopt/{part}")
    files = [CONF_DIR / f"{name}.yaml" for name in names]
    config = resolve_config(files, {"model.init.path": "cell:0"})
    assert config["model"]["heads"]["match"] == "none"
    assert (config["model"]["freeze"], config["model"]["init"]["heads"]) == {
        "heads_only": ("next_token", "copy"), "joint": ("none", "keep"),
    }[part]  # fmt: skip


@pytest.mark.parametrize("file", MODELS, ids=lambda p: p.stem)
def test_models_resolve(file: Path) -> None:
    byte_level = {"model.backbone.vocab_size": 256}  # the tokenizer of the data file below
    config = resolve_config([CONF_DIR / "base.yaml", file, CONF_DIR / "data" / "python_stdlib.yaml"], byte_level)
    backbone = config["model"]["backbone"]
    assert backbone | yaml.safe_load(file.read_text())["model"]["backbone"] | {"vocab_size": 256} == backbone


@pytest.mark.parametrize("file", sorted((CONF_DIR / "data").glob("*.yaml")), ids=lambda p: p.stem)
def test_data_files_resolve(file: Path, tmp_path: Path) -> None:
    overrides: dict[str, Any] = {"model.heads.n_future": 2}
    if isinstance(yaml.safe_load(file.read_text())["data"]["init_args"].get("tokenizer"), str):
        overrides["data.tokenizer"] = "bytes"  # a tokenizer is made by its user first
    config: dict[str, Any] = resolve_config([CONF_DIR / "base.yaml", file], overrides)
    assert config["data"]["class_path"].endswith(("TokenDataModule", "TaskDataModule"))
    assert config["model"]["heads"]["n_future"] == 2


@pytest.mark.parametrize("file", sorted((CONF_DIR / "probes").glob("*.yaml")), ids=lambda p: p.stem)
def test_probes_join_the_callbacks(file: Path) -> None:
    config = resolve_config([CONF_DIR / "base.yaml", CONF_DIR / "data" / "python_stdlib.yaml", file], {})
    before = yaml.safe_load((CONF_DIR / "base.yaml").read_text())["trainer"]["callbacks"]
    classes = [callback["class_path"] for callback in config["trainer"]["callbacks"]]
    assert classes[: len(before)] == [callback["class_path"] for callback in before]
    assert len(classes) == len(before) + 1


@pytest.mark.parametrize("file", sorted((CONF_DIR / "heads").glob("*.yaml")), ids=lambda p: p.stem)
def test_heads_resolve_and_say_which_kind_they_are(file: Path) -> None:
    config = resolve_config([CONF_DIR / "base.yaml", CONF_DIR / "data" / "python_stdlib.yaml", file], {})
    heads = config["model"]["heads"]
    asked = yaml.safe_load(file.read_text())["model"]["heads"]
    assert heads | asked == heads
    assert file.stem.startswith(heads["kind"]) or file.stem in ("next_token", "replicated", "leap")


def test_every_kind_of_heads_has_a_file() -> None:
    assert set(KINDS) <= {file.stem for file in (CONF_DIR / "heads").glob("*.yaml")}


@pytest.mark.parametrize("file", sorted((CONF_DIR / "schedule").glob("*.yaml")), ids=lambda p: p.stem)
def test_schedules_resolve_and_say_which_kind_they_are(file: Path) -> None:
    config = resolve_config([CONF_DIR / "base.yaml", CONF_DIR / "data" / "python_stdlib.yaml", file], {})
    schedule = config["model"]["schedule"]
    assert schedule["kind"] == file.stem
    assert schedule["warmup_steps"] == 1000


def test_every_target_of_the_further_heads_has_a_file() -> None:
    *files, foresees = sorted((CONF_DIR / "loss").glob("*.yaml"), key=lambda file: (file.stem == "next_latent", file))
    assert [file.stem for file in files] == sorted(TARGETS)
    asked = [yaml.safe_load(file.read_text())["model"] for file in files]
    assert [LossOptions(**model.pop("loss")).target for model in asked] == sorted(TARGETS)
    assert not any(asked)
    data = CONF_DIR / "data" / "python_stdlib.yaml"
    for kind in TEACHER_FORCED:
        heads = CONF_DIR / "heads" / f"{kind}.yaml"
        loss = resolve_config([CONF_DIR / "base.yaml", data, heads, foresees], {})["model"]["loss"]
        assert (loss["target"], loss["stop_gradient"]) == ("teacher_kl", "unembedding")
        assert (loss["teacher"]["weight"], loss["teacher"]["latent"]) == (1.0, 1.0)


@pytest.mark.parametrize("file", sorted((CONF_DIR / "strategy").glob("*.yaml")), ids=lambda p: p.stem)
def test_strategies_resolve(file: Path) -> None:
    config = resolve_config([CONF_DIR / "base.yaml", CONF_DIR / "data" / "python_stdlib.yaml", file], {})
    strategy = config["trainer"]["strategy"]
    assert strategy == yaml.safe_load(file.read_text())["trainer"]["strategy"] or strategy["init_args"]


def test_a_later_override_reaches_an_interpolation_in_an_earlier_file() -> None:
    files = [CONF_DIR / "base.yaml", CONF_DIR / "data" / "python_stdlib.yaml"]
    config = resolve_config(files, {"trainer.default_root_dir": "runs/elsewhere"})
    assert config["trainer"]["logger"]["init_args"]["directory"] == "runs/elsewhere"


def test_precision_is_resolved_for_this_processor() -> None:
    config = resolve_config([CONF_DIR / "base.yaml", CONF_DIR / "data" / "python_stdlib.yaml"], {})
    assert config["trainer"]["precision"] in ("bf16-mixed", "32-true")
