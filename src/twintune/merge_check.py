"""Whether a merged model computes what its base computes with the adapter on it: logits and greedy text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.backends import Backend, Choice, LanguageModel
from twintune.chat import encode_question, stop_token_ids
from twintune.converters.templates import Template, load_template
from twintune.converters.tokenizer import Tokenizer
from twintune.generation import TextGenerator
from twintune.recipe import Recipe
from twintune.sampling import Sampling

QUESTIONS = (
    "小明有 12 颗糖，吃了 3 颗，还剩几颗？",
    "What is 15 times 4?",
    "Name three primary colours.",
    "为什么天空是蓝色的？",
)
NEW_TOKENS = 24
EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
FLOAT32_LARGEST, FLOAT32_MEAN = 1e-4, 1e-5  # where the logits' standard deviation is 1
# In eps times the standard deviation of the logits times the root of the layers. Measured with random networks of
# 2 and 8 layers, float16 and bfloat16: up to 20 and 0.9; SmolLM2-135M in float16: 2.1 and 0.27.
ROUNDED_LARGEST, ROUNDED_MEAN = 32.0, 2.0


@dataclass(frozen=True)
class Place:
    """Where and how models are run: always in float32, so that only what is stored can differ."""

    framework: Backend
    device: str
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Questions:
    """What both models are asked.

    Attributes:
        prompts: token ids.
        stop_token_ids: end an answer.
        template: how the questions were rendered, and why.
    """

    prompts: tuple[tuple[int, ...], ...]
    stop_token_ids: tuple[int, ...]
    template: Choice


@dataclass(frozen=True)
class MergeCheck:
    """How far the merged model is from the base with its adapter.

    Attributes:
        largest_difference: of a logit, absolute.
        mean_difference: of the logits, absolute.
        tolerance: what the largest difference may be.
        mean_tolerance: what the mean difference may be.
        rule: where the tolerances come from.
        adapter_effect: largest difference of a logit between the base with its adapter and without.
        positions: tokens after which logits were compared: of the prompts and of the adapter's greedy texts.
        same_texts: greedy texts of the merged model that are the adapter's, token by token.
        texts: how many were compared.
    """

    largest_difference: float
    mean_difference: float
    tolerance: float
    mean_tolerance: float
    rule: str
    adapter_effect: float
    positions: int
    same_texts: int
    texts: int

    @property
    def holds(self) -> bool:
        """Whether the merged model may be used in the adapter's place."""
        return self.largest_difference <= self.tolerance and self.mean_difference <= self.mean_tolerance


def render_questions(recipe: Recipe | None, tokenizer: Tokenizer) -> Questions:
    """The questions as token ids: in the recipe's template, or as they stand where there is no recipe."""
    template: Template | None = None
    choice, split = Choice("as they stand", "no recipe beside the adapter"), True
    if recipe is not None:
        template = load_template(recipe.data.template, tokenizer, recipe.data.system)
        choice = Choice(recipe.data.template, "from the adapter's recipe.yaml")
        split = recipe.data.split_special_tokens
    prompts = (encode_question(text, tokenizer, template, split) for text in QUESTIONS)
    return Questions(tuple(map(tuple, prompts)), tuple(stop_token_ids(tokenizer, template)), choice)


def check_merge(
    place: Place, base: Path, adapter: Path, merged: Path, questions: Questions, dtype: str, layers: int
) -> MergeCheck:
    """Run the base with the adapter, the base alone and the merged model, one after the other.

    Args:
        place: where they run.
        base: Hugging Face folder.
        adapter: PEFT folder.
        merged: Hugging Face folder.
        questions: what they are asked.
        dtype: in which the merged weights are stored.
        layers: of the network.
    """
    tuned = _load(place, base, adapter)
    texts = _greedy(place, tuned, questions)
    rows = [[*prompt, *text] for prompt, text in zip(questions.prompts, texts, strict=True)]
    wanted = tuned.logits(rows)
    del tuned
    effect = max(_largest(wanted, _load(place, base, None).logits(rows)))
    candidate = _load(place, merged, None)
    same = sum(one == other for one, other in zip(texts, _greedy(place, candidate, questions), strict=True))
    given = candidate.logits(rows)
    tolerance, mean_tolerance, rule = limits(dtype, layers, wanted)
    return MergeCheck(
        largest_difference=max(_largest(wanted, given)),
        mean_difference=_mean(wanted, given),
        tolerance=tolerance,
        mean_tolerance=mean_tolerance,
        rule=rule,
        adapter_effect=effect,
        positions=sum(map(len, rows)),
        same_texts=same,
        texts=len(texts),
    )


def limits(dtype: str, layers: int, logits: Sequence[NDArray[np.float32]]) -> tuple[float, float, str]:
    """How far the logits may be off at most and in the mean, and the rule in a sentence.

    Rounding puts an independent relative error of at most eps / 2 on each weight, so that each layer adds an error
    in proportion to eps and to what flows through it; independent errors of the layers add up as their root.
    """
    spread = float(np.sqrt(np.mean([np.square(row - row.mean(axis=-1, keepdims=True)).mean() for row in logits])))
    if dtype == "float32":
        unit = max(1.0, spread)
        rule = f"{FLOAT32_LARGEST:g} x standard deviation of the logits {spread:.2f} where that is above 1"
        return FLOAT32_LARGEST * unit, FLOAT32_MEAN * unit, rule
    eps = EPS[dtype]
    unit = eps * float(np.sqrt(layers)) * spread
    rule = (
        f"{ROUNDED_LARGEST:g} x eps of {dtype} {eps:.1e} x square root of {layers} layers x standard deviation of "
        f"the logits {spread:.2f}"
    )
    return ROUNDED_LARGEST * unit, ROUNDED_MEAN * unit, rule


def _load(place: Place, model: Path, adapter: Path | None) -> LanguageModel:
    return place.framework.load_model(
        model, adapter, pad_token_id=place.tokenizer.pad_token_id, device=place.device, dtype="float32"
    )


def _greedy(place: Place, model: LanguageModel, questions: Questions) -> list[list[int]]:
    generator = TextGenerator(model, place.tokenizer, questions.stop_token_ids)
    return generator.generate_ids(questions.prompts, Sampling(max_new_tokens=NEW_TOKENS))


def _largest(wanted: Sequence[NDArray[np.float32]], given: Sequence[NDArray[np.float32]]) -> list[float]:
    return [float(np.abs(one - other).max()) for one, other in zip(wanted, given, strict=True)]


def _mean(wanted: Sequence[NDArray[np.float32]], given: Sequence[NDArray[Any]]) -> float:
    differences = [np.abs(one - other).sum(dtype=np.float64) for one, other in zip(wanted, given, strict=True)]
    return float(sum(differences) / sum(one.size for one in wanted))
