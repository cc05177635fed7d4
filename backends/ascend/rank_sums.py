"""What ranks add up within a training graph."""

import mindspore as ms
from mindspore import nn, ops


class RankSums(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """Sums of float32 tensors over all ranks, by one AllReduce of all their numbers; with one rank, the tensors.

    Inputs:
        tensors: a tuple, of the same shapes on every rank.

    Outputs:
        A tuple of float32 tensors of these shapes.
    """

    def __init__(self, world_size: int) -> None:
        super().__init__(auto_prefix=False)
        self.several = world_size > 1
        if self.several:
            self.all_reduce = ops.AllReduce()

    def construct(self, tensors: tuple[ms.Tensor, ...]) -> tuple[ms.Tensor, ...]:
        """Lay them in one line, add, and cut the line again."""
        if not self.several:
            return tensors
        line = self.all_reduce(ops.concat([ops.cast(tensor, ms.float32).reshape((-1,)) for tensor in tensors]))
        sums: tuple[ms.Tensor, ...] = ()
        start = 0
        for tensor in tensors:
            end = start + tensor.size
            sums = sums + (line[start:end].reshape(tensor.shape),)  # noqa: RUF005  a graph adds tuples
            start = end
        return sums
