"""Rows from MindRecord in the order that the front end dealt, padded to the compiled length."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORED = -100


def ordered_dataset(mindrecord: Path, order: NDArray[np.int64], seq_length: int, pad_token_id: int) -> Any:
    """A MindSpore dataset of the whole run: one batch an optimizer step.

    Args:
        mindrecord: file with variable-length int32 columns `input_ids` and `labels`.
        order: row numbers, [max_steps, accumulation, batch].
        seq_length: the compiled length; rows come out one longer, as MindFormers' net drops the last
            input and the first label.
        pad_token_id: what fills input_ids; labels are filled with -100.

    Returns:
        mindspore.dataset.Dataset of int32 [accumulation * batch, seq_length + 1] columns.
    """
    import mindspore.dataset as ds

    rows = ds.MindDataset(str(mindrecord)).get_dataset_size()  # a sampler takes at most so many numbers
    parts = [
        ds.MindDataset(
            str(mindrecord),
            columns_list=["input_ids", "labels"],
            sampler=ds.SubsetSampler(part.tolist()),
        )
        for part in np.split(order.ravel(), range(rows, order.size, rows))
    ]
    dataset = parts[0]
    for part in parts[1:]:
        dataset = dataset + part
    padding = {"input_ids": ([seq_length + 1], pad_token_id), "labels": ([seq_length + 1], IGNORED)}
    return dataset.padded_batch(order[0].size, drop_remainder=True, pad_info=padding)
