from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from twintune.dropout import channel_numbers, first_kept, kept, module_of_matrix, token_numbers

MODULE = "model.layers.0.self_attn.q_proj"


@given(seed=st.integers(0, 2**32), place=st.integers(0, 2**40), length=st.integers(1, 50), longer=st.integers(0, 50))
def test_padding_changes_no_token(seed: int, place: int, length: int, longer: int) -> None:
    numbers = token_numbers(seed, place, length)
    assert (numbers % 2 == 1).all()
    np.testing.assert_array_equal(token_numbers(seed, place, length + longer)[:length], numbers)


def test_the_numbers_are_these_for_ever() -> None:
    """A run that goes on with a later version drops what it would have dropped."""
    assert token_numbers(7, 3, 4).tolist() == [2070726577, -1184828693, 215839457, 1357754579]
    assert channel_numbers(MODULE, 4).tolist() == [1713105131, 1982474139, 152860733, -1178367885]


@pytest.mark.parametrize("lora_dropout", [0.05, 0.1, 0.5])
def test_the_share_is_the_one_asked_for(lora_dropout: float) -> None:
    """Within six standard deviations of a draw, over all elements and for every token and channel."""
    mask = kept(token_numbers(0, 0, 2000), channel_numbers(MODULE, 1500), lora_dropout)
    deviation = np.sqrt(lora_dropout * (1 - lora_dropout))
    assert mask.mean() == pytest.approx(1 - lora_dropout, abs=6 * deviation / np.sqrt(mask.size))
    np.testing.assert_allclose(mask.mean(axis=0), 1 - lora_dropout, rtol=0, atol=6 * deviation / np.sqrt(2000))
    np.testing.assert_allclose(mask.mean(axis=1), 1 - lora_dropout, rtol=0, atol=6 * deviation / np.sqrt(1500))


TOKENS, CHANNELS = token_numbers(0, 0, 4000), channel_numbers(MODULE, 4000)


@pytest.mark.parametrize(
    ("sides", "against"),
    [
        (np.split(TOKENS[:1000], 1000), CHANNELS),
        ([token_numbers(0, place, 1) for place in range(1000)], CHANNELS),
        (np.split(CHANNELS[:1000], 1000), TOKENS),
        ([channel_numbers(f"model.layers.{number}.mlp.up_proj", 1) for number in range(1000)], TOKENS),
    ],
    ids=["tokens", "rows", "channels", "modules"],
)
def test_neighbours_are_dropped_independently(sides: list[NDArray[np.int32]], against: NDArray[np.int32]) -> None:
    """Correlations of neighbouring masks of 4,000 elements are as small as those of independent ones."""
    masks = [kept(side, against, 0.3).ravel() for side in sides]
    correlations = np.array([np.corrcoef(one, other)[0, 1] for one, other in pairwise(masks)])
    assert abs(correlations.mean()) < 5 / np.sqrt(4000 * len(correlations))
    assert correlations.std() == pytest.approx(1 / np.sqrt(4000), rel=0.15)


def test_none_and_nearly_all() -> None:
    tokens, channels = token_numbers(1, 2, 100), channel_numbers(MODULE, 100)
    assert kept(tokens, channels, 0.0).all()
    assert kept(tokens, channels, 0.999).mean() < 0.01
    assert first_kept(0.5) == 0


def test_the_module_of_a_matrix() -> None:
    assert module_of_matrix(f"base_model.model.{MODULE}.lora_A.weight") == MODULE
