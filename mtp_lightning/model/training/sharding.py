"""How a model is cut for FSDP2 (torch's `fully_shard`): a unit per layer and unembedding, the rest at the root."""

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mtp_lightning.model.mtp import MTPModel


def shard_layer(block: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a layer's parameters in place, unless they are."""
    if not isinstance(block, FSDPModule):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)


def shard_model(model: MTPModel, mesh: DeviceMesh) -> None:
    """Shard the parameters of `model` over a one-dimensional mesh, in place.

    The final norm stays out of the unembedding's unit: the two together break. Tied embeddings are one parameter, so
    they share a unit. Everything is resharded after its forward, the root too: its weights gathered for a validation
    would otherwise be used, stale, in the next training step.
    """
    for block in model.blocks():
        shard_layer(block, mesh)
    if model.config.tie_embeddings:
        fully_shard([model.embedding, model.unembedding], mesh=mesh, reshard_after_forward=True)
    else:
        fully_shard(model.unembedding, mesh=mesh, reshard_after_forward=True)
    for unembedding in model.further_unembeddings:
        fully_shard(unembedding, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def put(weight: Tensor, value: Tensor) -> None:
    """`value` in place; of a sharded weight this process's part of it, and every process has to call."""
    if not isinstance(weight, DTensor):
        weight.copy_(value)
        return
    mine = weight.to_local()
    whole = value.to(mine.device, weight.dtype)
    mine.copy_(distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None).to_local())
