"""The sections of a recipe that ask a model: generate, evaluate and reasoning."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from twintune.recipe_sections import CacheName, FormatName, Section


class GenerateSection(Section):
    """How text is generated where the command line does not say."""

    max_new_tokens: int = Field(256, ge=1)
    temperature: float = Field(0.0, ge=0)  # 0: greedy
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)  # 0: no limit
    repetition_penalty: float = Field(1.0, gt=0)  # of tokens in the prompt and the text; 1: none
    min_new_tokens: int = Field(0, ge=0)  # no closing token before so many
    stop_strings: tuple[Annotated[str, Field(min_length=1)], ...] = ()  # each ends a text, besides the template's own
    seed: int = Field(0, ge=0)
    cache_implementation: CacheName = "auto"  # static: ours; paged: MindFormers' on an NPU, which auto takes there
    sample_prompts: tuple[str, ...] = ()  # answered before and after training in report.md; none: data.val_size's
    num_samples: int = Field(3, ge=0)  # of validation records, where there are no sample_prompts

    @field_validator("min_new_tokens")
    @classmethod
    def _below_the_most(cls, least: int, info: ValidationInfo) -> int:
        if least > info.data.get("max_new_tokens", least):
            raise ValueError("should be at most generate.max_new_tokens")
        return least


def _as_paths(value: Any) -> Any:
    """One path, or a list of them."""
    return [str(value)] if isinstance(value, str | Path) else value


class EvaluateSection(Section):
    """Which questions `twintune evaluate` asks, and what counts as an answer."""

    test: Annotated[tuple[str, ...], BeforeValidator(_as_paths)] = ()  # files, folders, globs; none: data.val_size's
    format: FormatName = "auto"
    answer: Literal["auto", "number", "choice"] = "auto"  # auto: told by each gold answer
    limit: int | None = Field(None, ge=1)  # of questions, from the first; None: all
    vote: int = Field(1, ge=1)  # answers drawn for each question; the most frequent one counts
    retries: int = Field(0, ge=0)  # times a question without any answer is asked again, with new seeds


class ReasoningSection(Section):
    """Who writes the reasoning of a contest's questions: an OpenAI-compatible endpoint, or a local model."""

    input: Annotated[tuple[str, ...], BeforeValidator(_as_paths)] = ()  # files, folders, globs; none: data.train's
    model: str | None = None  # the endpoint's name for it; without base_url as model.name_or_path
    base_url: str | None = None  # of the endpoint, such as https://api.openai.com/v1; None: a local model
    api_key_env: str | None = None  # the environment variable that holds the key, which is written nowhere
    prompt: str | None = None  # a jinja text of problem, question, options and answer; None: in Chinese, without answer
    temperature: float = Field(0.7, ge=0)
    max_new_tokens: int = Field(1024, ge=1)
    max_attempts: int = Field(3, ge=1)  # answers asked for until one ends in the gold answer
    require_gold: bool = True  # else a question whose answers all end otherwise is kept without reasoning
    max_concurrency: int = Field(4, ge=1)  # requests, or answers that a local model decodes together
    max_retries: int = Field(5, ge=0)  # of a request that got no usable answer
    timeout: float = Field(120.0, gt=0)  # seconds of one request

    @field_validator("base_url")
    @classmethod
    def _an_endpoint(cls, url: str | None) -> str | None:
        if url is not None and not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", url):
            raise ValueError("should be http:// or https:// with a host and perhaps a path, without name and password")
        return url
