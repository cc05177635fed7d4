"""Questions to answers: a model, its adapter and its template, loaded once, on any backend."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args

from twintune.answer_sections import GenerateSection
from twintune.artifacts import RECIPE
from twintune.backends import Choice, choose_backend, load_backend
from twintune.converters.adapter import check_adapter_settings
from twintune.converters.conversation import Message
from twintune.converters.encoding import encode_segments
from twintune.converters.templates import OWN_TEMPLATE, Template, load_template
from twintune.converters.tokenizer import Tokenizer
from twintune.converters.tokens import load_tokenizer
from twintune.errors import UserError
from twintune.generation import OnText, TextGenerator
from twintune.recipe import Recipe, load_recipe
from twintune.recipe_sections import CacheName, DeviceName, DtypeName, ModelSection
from twintune.resizing import trained_model
from twintune.sampling import Sampling
from twintune.training_plan import seam_quantization

RAW = "none"
Question = str | Sequence[Message]  # messages: a system prompt and earlier turns may come first


@dataclass(frozen=True)
class Chat:
    """A TextGenerator that takes questions as text.

    Attributes:
        generator: works on token ids.
        tokenizer: of the model.
        template: renders a question as the model was tuned to read it; None takes it as it stands.
        choices: what was chosen while loading, and why, by name.
        split_special_tokens: whether special tokens written in a question are plain text.
    """

    generator: TextGenerator
    tokenizer: Tokenizer
    template: Template | None
    choices: dict[str, Choice]
    split_special_tokens: bool = True

    def prompt_ids(self, question: Question) -> list[int]:
        """The token ids of a question, or of a conversation up to it, through the opening of the answer."""
        return encode_question(question, self.tokenizer, self.template, self.split_special_tokens)

    def answer(
        self, questions: Sequence[Question], sampling: Sampling, on_text: OnText | None = None
    ) -> list[list[str]]:
        """`sampling.num_return_sequences` answers for each question.

        Raises:
            UserError: for an empty question, or logits that are not numbers.
        """
        return self.generator.generate([self.prompt_ids(question) for question in questions], sampling, on_text)


def load_chat(
    model: str | ModelSection,
    adapter: Path | None = None,
    *,
    backend: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    template: str | None = None,
    system: str | None = None,
    batch_size: int = 8,
    cache_implementation: str | None = None,
) -> Chat:
    """Load a model, with an adapter or without, on a backend.

    Args:
        model: a folder, the embedded model's name, or a hub name; or a recipe's section, which says all of it.
        adapter: a PEFT folder; one that twintune trained brings its template along in recipe.yaml.
        backend: auto, cuda or ascend.
        device: auto, cpu, cuda or npu.
        dtype: auto, float32, bfloat16 or float16.
        template: a FastChat name, `tokenizer`, `chatml`, a jinja text, or `none` for prompts as they stand.
        system: replaces the template's own system prompt.
        batch_size: answers that are decoded together.
        cache_implementation: auto, static or paged; None is what the adapter's recipe says, or auto.

    Raises:
        UserError: for whatever is missing or does not fit.
    """
    _require_known("device", device, get_args(DeviceName))
    _require_known("dtype", dtype, get_args(DtypeName))
    _require_known("cache-implementation", cache_implementation or "auto", get_args(CacheName))
    chosen = choose_backend(backend)
    if adapter is not None:
        check_adapter_settings(adapter)
    recipe = adapter_recipe(adapter)
    section = model if isinstance(model, ModelSection) else model_section(recipe, model)
    folder = trained_model(section)
    tokenizer = load_tokenizer(folder, section.pad_token, added_tokens=section.added_tokens)
    name = _choose_template(template, recipe, tokenizer)
    framework = load_backend(chosen.value)
    place = framework.choose_device(device)
    kind = framework.choose_dtype(dtype, place.value)
    told = recipe.generate.cache_implementation if recipe else "auto"
    cache = framework.choose_cache(cache_implementation or told, folder, adapter, place.value, kind.value)
    rendering = None
    if name.value != RAW:
        rendering = load_template(name.value, tokenizer, system or (recipe.data.system if recipe else None))
    language_model = framework.load_model(
        folder,
        adapter,
        pad_token_id=tokenizer.pad_token_id,
        device=place.value,
        dtype=kind.value,
        quantization=seam_quantization(section),
        cache_implementation=cache.value,
    )
    stop_text = rendering.stop_text if rendering else None
    generator = TextGenerator(language_model, tokenizer, stop_token_ids(tokenizer, rendering), batch_size, stop_text)
    choices = {"backend": chosen, "device": place, "dtype": kind, "cache": cache, "template": name}
    if section.load_in_4bit:
        choices["base weights"] = Choice(section.bnb_4bit_quant_type, "from the adapter's recipe.yaml, as trained")
    return Chat(generator, tokenizer, rendering, choices, recipe.data.split_special_tokens if recipe else True)


def encode_question(
    question: Question, tokenizer: Tokenizer, template: Template | None, split_special_tokens: bool
) -> list[int]:
    """The token ids of a question, through the opening of the answer; as it stands where there is no template.

    Raises:
        UserError: for messages without a template.
    """
    messages = [Message("human", question)] if isinstance(question, str) else question
    if template is None:
        if not isinstance(question, str):
            raise UserError("--template must be given for a conversation, got none; it has no text as it stands")
        encoding = tokenizer.encode(question, True)
    else:
        segments = template.prompt_segments(messages)
        encoding = encode_segments(segments, tokenizer, template.add_special_tokens, split_special_tokens)
    ids: list[int] = encoding.ids.tolist()
    return ids


def stop_token_ids(tokenizer: Tokenizer, template: Template | None) -> list[int]:
    """The tokens that end an answer: the tokenizer's eos, and the one that closes a turn of the template."""
    closing = template.stop_token_id if template is not None else None
    return sorted({tokenizer.eos_token_id} | ({closing} if closing is not None else set()))


def adapter_recipe(adapter: Path | None) -> Recipe | None:
    """The recipe saved beside an adapter, if there is one."""
    if adapter is None or not (adapter / RECIPE).is_file():
        return None
    return load_recipe(adapter / RECIPE)


def recipe_sampling(section: GenerateSection) -> Sampling:
    """How a recipe picks tokens."""
    return Sampling(**section.model_dump(include={field.name for field in fields(Sampling)}))


def model_section(recipe: Recipe | None, name: str) -> ModelSection:
    """What a recipe says of its model, with another folder or name in its place; the name alone without a recipe."""
    if recipe is None:
        return ModelSection(name_or_path=name)
    return recipe.model.model_copy(update={"name_or_path": name})


def _require_known(flag: str, asked: str, names: Sequence[str]) -> None:
    if asked not in names:
        raise UserError(f"--{flag} must be one of {', '.join(names)}, got {asked!r}")


def _choose_template(asked: str | None, recipe: Recipe | None, tokenizer: Tokenizer) -> Choice:
    if asked is not None:
        return Choice(asked, "as asked")
    if recipe is not None:
        return Choice(recipe.data.template, "from the adapter's recipe.yaml")
    if tokenizer.chat_template is not None:
        return Choice(OWN_TEMPLATE, "the tokenizer has a chat template")
    raise UserError(
        "--template must be given for this model, got nothing: no recipe.yaml beside the adapter and no chat "
        "template in the tokenizer; give a FastChat name such as vicuna_v1.1, or none for prompts as they stand"
    )
