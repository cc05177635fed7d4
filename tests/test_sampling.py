"""The sampler: the rules of transformers, and values that are refused."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from twintune.errors import UserError
from twintune.sampling import Sampling, pick_token, probabilities, process_logits

VOCABULARY = 200
TOKENS = st.integers(0, VOCABULARY - 1)


def random_logits(seed: int, size: int = VOCABULARY) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 2, size).astype(np.float32)


def with_transformers(
    logits: NDArray[np.float32], prompt: list[int], text: list[int], closing: list[int], sampling: Sampling
) -> Any:
    """What transformers' generate makes of the logits, in its order, float64 [vocabulary]."""
    torch = pytest.importorskip("torch", reason="the reference needs the cuda extra")
    import transformers

    steps: list[Any] = []
    if sampling.repetition_penalty != 1:
        steps.append(transformers.RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
    if sampling.min_new_tokens:
        steps.append(
            transformers.MinNewTokensLengthLogitsProcessor(len(prompt), sampling.min_new_tokens, list(closing))
        )
    if sampling.temperature not in (0, 1):
        steps.append(transformers.TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.temperature and sampling.top_k:
        steps.append(transformers.TopKLogitsWarper(sampling.top_k))
    if sampling.temperature and sampling.top_p < 1:
        steps.append(transformers.TopPLogitsWarper(float(sampling.top_p)))
    scores = torch.from_numpy(logits.astype(np.float64))[None]
    for step in steps:
        scores = step(torch.tensor([prompt + text]), scores)
    return scores[0]


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    prompt=st.lists(TOKENS, min_size=1, max_size=20),
    text=st.lists(TOKENS, max_size=20),
    closing=st.lists(TOKENS, min_size=1, max_size=3, unique=True),
    sampling=st.builds(
        Sampling,
        max_new_tokens=st.just(30),
        temperature=st.sampled_from([0.3, 0.7, 1.0, 1.5, 2.0]),
        top_p=st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.99, 1.0]),
        top_k=st.sampled_from([0, 1, 10, 50, 500]),
        repetition_penalty=st.sampled_from([0.5, 1.0, 1.05, 1.3, 2.0]),
        min_new_tokens=st.integers(0, 30),
    ),
)
def test_the_distribution_is_that_of_transformers(
    seed: int, prompt: list[int], text: list[int], closing: list[int], sampling: Sampling
) -> None:
    logits = random_logits(seed)
    expected = with_transformers(logits, prompt, text, closing, sampling).softmax(dim=0).numpy()
    ours = probabilities(process_logits(logits, prompt, text, closing, sampling), sampling)
    assert np.array_equal(ours > 0, expected > 0)
    np.testing.assert_allclose(ours, expected, rtol=1e-11)
    assert expected[pick_token(logits, prompt, text, closing, sampling, np.random.default_rng(seed))] > 0


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    prompt=st.lists(TOKENS, min_size=1, max_size=100),
    text=st.lists(TOKENS, max_size=9),
    penalty=st.sampled_from([0.5, 1.0, 1.3, 3.0]),
    least=st.integers(0, 9),
)
def test_greedy_text_takes_the_largest_of_what_transformers_leaves(
    seed: int, prompt: list[int], text: list[int], penalty: float, least: int
) -> None:
    logits = random_logits(seed)
    closing = [int(logits.argmax())]  # so that min_new_tokens decides
    sampling = Sampling(9, repetition_penalty=penalty, min_new_tokens=least)
    expected = int(with_transformers(logits, prompt, text, closing, sampling).argmax())
    assert pick_token(logits, prompt, text, closing, sampling, np.random.default_rng(0)) == expected
    assert (expected in closing) <= (len(text) >= least)


def test_the_token_that_crosses_p_is_kept() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    kept = probabilities(logits, Sampling(1, temperature=1.0, top_p=0.6))
    np.testing.assert_allclose(kept, [0.625, 0.375, 0, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_new_tokens": 0}, "generate.max_new_tokens must be at least 1, got 0"),
        ({"temperature": -0.5}, "generate.temperature must be 0 (greedy) or above, got -0.5"),
        ({"temperature": float("nan")}, "generate.temperature must be 0 (greedy) or above, got nan"),
        ({"top_p": 0.0}, "generate.top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.5}, "generate.top_p must be above 0 and at most 1, got 1.5"),
        ({"top_k": -1}, "generate.top_k must be 0 (no limit) or above, got -1"),
        ({"num_return_sequences": 0}, "generate.num_return_sequences must be at least 1, got 0"),
        ({"seed": -3}, "generate.seed must be 0 or above, got -3"),
        ({"repetition_penalty": 0.0}, "generate.repetition_penalty must be above 0 (1: none), got 0.0"),
        (
            {"min_new_tokens": -1},
            "generate.min_new_tokens must be 0 or above and at most generate.max_new_tokens, 8",
        ),
        (
            {"min_new_tokens": 9},
            "generate.min_new_tokens must be 0 or above and at most generate.max_new_tokens, 8",
        ),
        ({"stop_strings": ("a", "")}, "generate.stop_strings must be texts that are not empty, got ('a', '')"),
        ({"num_return_sequences": 4}, "generate.num_return_sequences must be 1 for greedy text, got 4"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Sampling(**({"max_new_tokens": 8} | values))
    assert caught.value.messages[0].startswith(message)


def test_all_wrong_values_are_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        Sampling(0, top_k=-1, seed=-1)
    assert len(caught.value.messages) == 3
