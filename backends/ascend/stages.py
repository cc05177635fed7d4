"""What the stages of a MindFormers LLaMA network give, kept aside while its own graph runs."""

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from numpy.typing import NDArray


class KeptOutput(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """A cell whose output also goes into a parameter, in evaluation mode; a training graph is as without it.

    Args:
        cell: what computes.
        name: of the parameter.
        shape: of the output.
    """

    def __init__(self, cell: nn.Cell, name: str, shape: tuple[int, ...]) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.kept = ms.Parameter(ms.Tensor(np.zeros(shape, np.float32)), name=name, requires_grad=False)

    def construct(self, *inputs: Any, **named_inputs: Any) -> ms.Tensor:
        """The cell's own output."""
        output = self.cell(*inputs, **named_inputs)
        if not self.training:
            ops.assign(self.kept, ops.cast(output, ms.float32))
        return output


def keep_stages(model: nn.Cell, shape: tuple[int, ...]) -> dict[str, KeptOutput]:
    """Keep the outputs of a LlamaModel's embedding, layers and last norm, by Hugging Face stage name.

    Args:
        model: changed in place; the names of its parameters stay.
        shape: [rows, length, hidden size] of the rows that will be given in evaluation mode.
    """
    stages = {"embed_tokens": _keep(model, "tok_embeddings", shape)}
    for number in range(len(model.layers)):
        stages[f"layers.{number}"] = _keep(model.layers, str(number), shape)
    stages["norm"] = _keep(model, "norm_out", shape)
    return stages


def _keep(parent: nn.Cell, name: str, shape: tuple[int, ...]) -> KeptOutput:
    child = parent.name_cells()[name]
    kept = KeptOutput(child, f"kept.{parent.cls_name}.{name}", shape)
    parent.insert_child_to_cell(name, kept)  # plain assignment would rename the parameters
    return kept


def kept_outputs(stages: dict[str, KeptOutput], length: int) -> dict[str, NDArray[np.float32]]:
    """The first `length` positions of the only row, float32 [length, hidden size] by stage."""
    return {name: cell.kept.asnumpy()[0, :length].copy() for name, cell in stages.items()}
