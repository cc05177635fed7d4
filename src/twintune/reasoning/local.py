"""A model on this machine in the place of an endpoint, on either backend."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from twintune.errors import UserError
from twintune.models import resolve_model
from twintune.reasoning.endpoint import Keep
from twintune.recipe import Recipe
from twintune.recipe_sections import ModelSection
from twintune.sampling import Sampling

if TYPE_CHECKING:
    from twintune.chat import Chat


@dataclass
class LocalModel:
    """Answers from a chat.

    Args:
        chat: renders a prompt by its template.
        sampling: each call draws with another seed, counted from this one's.
        batch: prompts that are answered together.
    """

    chat: "Chat"
    sampling: Sampling
    batch: int

    def ask(self, prompts: Sequence[str], keep: Keep) -> None:
        """Ask every prompt; `keep` gets each answer with its prompt's number when it comes.

        Raises:
            UserError: what Chat.answer raises.
        """
        for start in range(0, len(prompts), self.batch):
            answers = self.chat.answer(prompts[start : start + self.batch], self.sampling)
            self.sampling = replace(self.sampling, seed=self.sampling.seed + 1)
            for number, texts in enumerate(answers, start):
                keep(number, texts[0])


def open_local(recipe: Recipe, drawn: int) -> LocalModel:
    """The local model that a recipe names as reasoning.model, loaded on the recipe's backend.

    Args:
        recipe: without reasoning.base_url.
        drawn: answers that there are already: seeds go on from there, or the same would be drawn again.

    Raises:
        UserError: for a model without chat template, for greedy text asked for again, and what load_chat raises.
    """
    from twintune.chat import load_chat
    from twintune.converters.tokens import load_tokenizer

    section, machine = recipe.reasoning, recipe.backend
    model = str(section.model)
    if section.temperature == 0 and section.max_attempts > 1:
        raise UserError(
            "recipe: reasoning.max_attempts must be 1 for the greedy text of a local model, which is always the "
            f"same, got {section.max_attempts}; set reasoning.temperature above 0, or this to 1"
        )
    if load_tokenizer(resolve_model(ModelSection(name_or_path=model))).chat_template is None:
        raise UserError(
            f"recipe: reasoning.model must be a model with a chat template, got {model}, whose tokenizer has none; "
            "name an instruction-tuned model"
        )
    chat = load_chat(
        model, backend=machine.name, device=machine.device, dtype=machine.dtype, batch_size=section.max_concurrency
    )
    return LocalModel(chat, Sampling(section.max_new_tokens, section.temperature, seed=drawn), section.max_concurrency)
