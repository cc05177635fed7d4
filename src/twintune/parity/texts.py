"""What a tuned model answers: greedy texts with the margin of each choice, and what a first token is drawn from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune import sampling as rules
from twintune.answer_sections import GenerateSection
from twintune.backends import LanguageModel
from twintune.chat import load_chat
from twintune.generation import TextGenerator
from twintune.parity.bundle import ADAPTER, TEXTS, BundleWriter
from twintune.parity.selection import Conversation
from twintune.sampling import Sampling
from twintune.training_plan import Run

MAX_NEW_TOKENS = 32
PROMPTS_TOGETHER = 4  # decoded in one batch, of different lengths
DEFAULT_DRAW = (1.0, 0.9)  # temperature and top_p where the recipe's own text is greedy


@dataclass
class WatchedModel:
    """A LanguageModel that notes the first logits of each text, and how far the likeliest token was ahead."""

    model: LanguageModel
    first: list[NDArray[np.float32]] = field(default_factory=list)  # [vocabulary] a prompt
    margins: list[list[float]] = field(default_factory=list)  # one a token, a list a prompt
    batch: list[list[float]] = field(default_factory=list)  # the margins at each place

    def logits(self, rows: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """As the model."""
        return self.model.logits(rows)

    def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> NDArray[np.float32]:
        """As the model."""
        self.batch = [[] for _ in prompts]
        return self._begun(range(len(prompts)), self.model.start(prompts, max_new_tokens))

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """As the model."""
        logits = self.model.step(tokens)
        for margins, row in zip(self.batch, logits, strict=True):
            margins.append(margin(row))
        return logits

    def replace(self, places: Sequence[int], prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """As the model."""
        return self._begun(places, self.model.replace(places, prompts))

    def _begun(self, places: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        for place, row in zip(places, logits, strict=True):
            self.batch[place] = [margin(row)]
            self.margins.append(self.batch[place])
            self.first.append(row)
        return logits


def margin(logits: NDArray[np.float32]) -> float:
    """How far the largest logit is above the second."""
    second, first = np.partition(logits, -2)[-2:]
    return float(first - second)


def record_texts(run: Run, conversations: Sequence[Conversation], prompts: int, writer: BundleWriter) -> None:
    """Answer the prompts of some conversations with the run's final adapter; write texts.json and their arrays."""
    job = run.job
    longest = run.config["max_position_embeddings"] - MAX_NEW_TOKENS
    fitting = [number for number, one in enumerate(conversations) if one.prompt_length <= longest]
    # In the order in which the generator begins them, which is that in which WatchedModel sees them: longest first.
    chosen = sorted(fitting[:prompts], key=lambda number: -conversations[number].prompt_length)
    chat = load_chat(
        str(job.model), job.output_dir / ADAPTER, backend=run.backend.value, device=job.device, dtype=job.dtype
    )
    watched = WatchedModel(chat.generator.model)
    generator = TextGenerator(
        watched,
        chat.tokenizer,
        sorted(chat.generator.eos_token_ids),
        PROMPTS_TOGETHER,
        chat.generator.stop_text,
    )
    ids = [list(conversations[number].ids[: conversations[number].prompt_length]) for number in chosen]
    answers = generator.generate_ids(ids, Sampling(MAX_NEW_TOKENS))
    draw = sampling(run.recipe.generate)
    shares = [rules.probabilities(logits, draw).astype(np.float32) for logits in watched.first]
    texts: list[dict[str, Any]] = [
        {
            "conversation": number,
            "greedy": answer,
            "text": chat.tokenizer.decode(answer),
            "margins": margins[: len(answer) + 1],
        }
        for number, answer, margins in zip(chosen, answers, watched.margins, strict=True)
    ]
    writer.write_json(
        TEXTS,
        {
            "eos_token_ids": sorted(chat.generator.eos_token_ids),
            "stop_text": chat.generator.stop_text,
            "max_new_tokens": MAX_NEW_TOKENS,
            "sampling": {"temperature": draw.temperature, "top_p": draw.top_p, "top_k": draw.top_k},
            "texts": texts,
        },
    )
    writer.write_arrays("texts", {f"shares.{number}": array for number, array in zip(chosen, shares, strict=True)})


def sampling(generate: GenerateSection) -> Sampling:
    """How a recipe draws tokens, or DEFAULT_DRAW where it does not."""
    temperature, top_p = (generate.temperature, generate.top_p) if generate.temperature else DEFAULT_DRAW
    return Sampling(1, temperature=temperature, top_p=top_p, top_k=generate.top_k, seed=generate.seed)
