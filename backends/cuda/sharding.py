"""A frozen base whose weights each rank keeps a share of: torch's FSDP, gathered layer by layer as they are needed.

LoRA's matrices stay whole on every rank, so that the adapter's gradients are summed as without sharding. Embedding,
head and last norm stay whole too: the loss takes the head at trained positions only, outside of the model's forward.
"""

from typing import Any

from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from twintune.backends.cuda.model import adapter_parameters


def shard_base(model: Any, ranks: ProcessGroup, device: str) -> Any:
    """Shard the decoder layers of a PEFT model that lies on the CPU, and put it on the device."""
    mesh = DeviceMesh.from_group(ranks, device)
    trained = set(adapter_parameters(model).values())
    for layer in model.get_base_model().get_decoder().layers:
        fully_shard(layer, mesh=mesh, ignored_params=trained & set(layer.parameters()))
    return model.to(device)
