"""Rows from MindRecord in the order that the front end dealt, padded to the compiled length."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.backends.ascend.profile import CONVERSATION_ENDS, CONVERSATION_NUMBERS
from twintune.backends.job import Rank
from twintune.converters.mindrecord import shards
from twintune.converters.packing import LENGTHS
from twintune.converters.rows import COLUMNS, IGNORED
from twintune.dropout import token_numbers


@dataclass(frozen=True)
class TokenNumbers:
    """The numbers of tokens that decide what is dropped, see twintune.dropout.

    Attributes:
        seed: of the job.
        places: of the dataset's rows in the whole run, int64 [steps, accumulation, batch].
    """

    seed: int
    places: NDArray[np.int64]

    def steps(self, length: int) -> Iterator[tuple[NDArray[np.int32]]]:
        """One column for each optimizer step, int32 [accumulation * batch, length]."""
        for step in self.places:
            yield (np.stack([token_numbers(self.seed, place, length) for place in step.ravel().tolist()]),)


def ordered_dataset(
    mindrecord: Path,
    order: NDArray[np.int64],
    seq_length: int,
    pad_token_id: int,
    borders: str | None = None,
    dropout: TokenNumbers | None = None,
) -> Any:
    """A MindSpore dataset of the whole run: one batch an optimizer step.

    Args:
        mindrecord: file with variable-length int32 columns `input_ids` and `labels`, or its shards.
        order: row numbers, [max_steps, accumulation, batch].
        seq_length: the compiled length; rows come out one longer, as MindFormers' net drops the last
            input and the first label.
        pad_token_id: what fills input_ids; labels are filled with -100.
        borders: for packed rows the third column, CONVERSATION_NUMBERS or CONVERSATION_ENDS of profile.
        dropout: what the last column is made of, where there is one.

    Returns:
        mindspore.dataset.Dataset of int32 [accumulation * batch, seq_length + 1] columns, of `borders`, and of the
        numbers that decide what is dropped, int32 [accumulation * batch, seq_length].
    """
    import mindspore.dataset as ds

    files = [str(file) for file in shards(mindrecord)]
    columns = list(COLUMNS) if borders is None else [*COLUMNS, LENGTHS]
    rows = ds.MindDataset(files).get_dataset_size()  # a sampler takes at most so many numbers
    parts = [
        ds.MindDataset(files, columns_list=columns, sampler=ds.SubsetSampler(part.tolist()))
        for part in np.split(order.ravel(), range(rows, order.size, rows))
    ]
    dataset = parts[0]
    for part in parts[1:]:
        dataset = dataset + part
    padding = {"input_ids": ([seq_length + 1], pad_token_id), "labels": ([seq_length + 1], IGNORED)}
    if borders == CONVERSATION_NUMBERS:
        dataset = dataset.map(lambda lengths: conversation_numbers(lengths, seq_length), LENGTHS, borders)
    elif borders == CONVERSATION_ENDS:
        width = _most_conversations(files) + 1
        dataset = dataset.map(lambda lengths: conversation_ends(lengths, seq_length, width), LENGTHS, borders)
    batches = dataset.padded_batch(order[0].size, drop_remainder=True, pad_info=padding)
    if dropout is None:
        return batches
    numbers = ds.GeneratorDataset(lambda: dropout.steps(seq_length), ["dropout_tokens"], shuffle=False)
    return ds.zip((batches, numbers))


def evaluation_batches(
    mindrecord: Path, batch: int, seq_length: int, pad_token_id: int, borders: str | None, rank: Rank
) -> Iterator[list[NDArray[np.int32]]]:
    """A rank's share of the unpacked rows in their own order, all batches of one shape.

    The last is filled up with rows that train nothing.

    Yields:
        The columns of ordered_dataset: int32 [batch, seq_length + 1] twice, and the borders of packed networks.
    """
    import mindspore.dataset as ds

    files = [str(file) for file in shards(mindrecord)]
    reader = ds.MindDataset(files, columns_list=list(COLUMNS), shuffle=False)
    rows = list(reader.create_tuple_iterator(num_epochs=1, output_numpy=True))[rank.number :: rank.world_size]
    for first in range(0, len(rows), batch):
        taken = rows[first : first + batch]
        input_ids = np.full((batch, seq_length + 1), pad_token_id, np.int32)
        labels = np.full((batch, seq_length + 1), IGNORED, np.int32)
        for number, (ids, trained) in enumerate(taken):
            input_ids[number, : len(ids)] = ids
            labels[number, : len(trained)] = trained
        columns = [input_ids, labels]
        if borders:
            lengths = [len(ids) for ids, _ in taken] + [0] * (batch - len(taken))
            columns.append(np.stack([one_conversation(length, seq_length, borders) for length in lengths]))
        yield columns


def one_conversation(tokens: int, length: int, borders: str) -> NDArray[np.int32]:
    """The third column of a packed dataset for a row that holds one conversation."""
    lengths = np.array([tokens], np.int32)
    if borders == CONVERSATION_ENDS:
        return conversation_ends(lengths, length, width=2)
    return conversation_numbers(lengths, length)


def conversation_numbers(lengths: NDArray[np.int32], seq_length: int) -> NDArray[np.int32]:
    """The number of each token's conversation, int32 [seq_length]; the padding counts as one more."""
    rest = seq_length - lengths.sum()
    return np.repeat(np.arange(len(lengths) + 1, dtype=np.int32), [*lengths, rest])


def conversation_ends(lengths: NDArray[np.int32], seq_length: int, width: int) -> NDArray[np.int32]:
    """Where each conversation ends, int32 [width]; the padding ends at seq_length, and so does what fills up.

    As MindFormers' own loaders fill `actual_seq_len`: a conversation without tokens costs its kernel nothing.
    """
    ends = np.full(width, seq_length, np.int32)
    ends[: len(lengths)] = np.cumsum(lengths)
    return ends


def _most_conversations(files: list[str]) -> int:
    import mindspore.dataset as ds

    rows = ds.MindDataset(files, columns_list=[LENGTHS], shuffle=False)
    return max(len(row[LENGTHS]) for row in rows.create_dict_iterator(num_epochs=1, output_numpy=True))
