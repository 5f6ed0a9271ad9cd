"""Cells that begin with the weights of a file are known by the weights' content, wherever they lie."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_backbone

from mtp_lightning.checkpoints import initial
from mtp_lightning.checkpoints.files import LoadedModel, save_safetensors
from mtp_lightning.config import initial_weights
from mtp_lightning.config.initial_weights import check_chained, weights_identity
from mtp_lightning.errors import InputError
from mtp_lightning.grid.spec.cell_maker import _identity as identity
from mtp_lightning.grid.spec.signature import signature
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    initial_weights._content.cache_clear()


def write(path: Path, seed: int) -> str:
    torch.manual_seed(seed)
    save_safetensors(LoadedModel(path, MTPModel(tiny_backbone(), HeadsConfig(1)), None, 0, None, None), path)
    return str(path)


def config(path: str | None, **init: str) -> dict[str, object]:
    return {
        "model": {
            "init": {"path": path, "heads": "keep", "unembedding": "keep", "vocabulary": "keep"} | init,
            "freeze": "none",
        }
    }


def test_the_content_and_not_the_place_is_part_of_the_identity(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a.safetensors", 1), write(tmp_path / "b.safetensors", 2)
    again = write(tmp_path / "c.safetensors", 1)
    assert identity(config(one)) == identity(config(again)) != identity(config(other))
    assert identity(config(one)) != identity(config(one, heads="copy"))
    assert identity(config(None)) == signature({"model": {}})
    assert weights_identity("cell:abc") == "cell:abc"


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.safetensors", 1)
    first, reads = weights_identity(path), 0
    real = initial.digest_of

    def counting(path: Path) -> str:
        nonlocal reads
        reads += 1
        return real(path)

    monkeypatch.setattr(initial, "digest_of", counting)
    initial_weights._content.cache_clear()  # as the next command does
    assert (weights_identity(path), reads) == (first, 0)
    write(tmp_path / "a.safetensors", 2)
    assert weights_identity(path) != first
    assert reads == 1


def test_without_a_home_folder_it_is_read_each_time(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = write(tmp_path / "a.safetensors", 1)
    kept = weights_identity(path)
    initial_weights._content.cache_clear()
    request.getfixturevalue("homeless")
    assert weights_identity(path) == kept


def test_weights_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match=r"model\.init\.path: there is no run, checkpoint or .* 'nothing'"):
        identity(config("nothing"))


def test_a_chain_that_cannot_fit_is_refused_before_anything_has_run() -> None:
    def of(n_future: int, **backbone: object) -> dict[str, object]:
        whole = vars(tiny_backbone(n_layers=6, **backbone))
        whole = whole | {"rope_scaling": vars(whole["rope_scaling"])}
        init = {"path": "cell:a", "heads": "copy", "unembedding": "keep", "vocabulary": "keep"}
        return {"model": {"backbone": whole, "heads": {"n_future": n_future, "match": "parameters"}, "init": init}}

    check_chained(of(1), of(1, rope_theta=5e5), "pretrain seed=0")
    with pytest.raises(InputError, match=r"6 layers in 'pretrain seed=0' and 4 here .*n_layers: 6 and .*match: none"):
        check_chained(of(1), of(3), "pretrain seed=0")
