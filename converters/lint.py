"""The EOS/PAD linter: why a tuned model would not stop, stop too early, or read other tokens than it was taught.

The traps are those of issue threads (QwenLM/Qwen3#927 and #1064, LLaMA-Factory#5145 and #7943, peft#1672,
xtuner#658); each has a sentence with the values and a remedy.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from twintune.converters.conversation import Conversation, Message
from twintune.converters.encoding import encode_segments
from twintune.converters.finding import Finding as Finding
from twintune.converters.lint_config import lint_config
from twintune.converters.rows import Row
from twintune.converters.templates import OWN_TEMPLATE, Template, load_template
from twintune.converters.tokenizer import Tokenizer
from twintune.errors import UserError

# <|im_end|>, </s>, <eoa>, [INST], [/INST], <<SYS>>: what templates write where they mean one token.
MARK = re.compile(r"<[|｜][^<>\s]+[|｜]>|</?[A-Za-z_]+>|\[/?[A-Z_]+\]")
PROBE = Conversation("probe", (Message("human", "a"), Message("assistant", "b")))


class Facts(Protocol):
    """What is known of all rows, as twintune.prepared.Summary has it."""

    @property
    def conversations(self) -> int:
        """In all rows."""

    @property
    def not_closed(self) -> int:
        """Conversations that do not end with the token or text at which the model stops."""


def lint(
    tokenizer: Tokenizer, template: Template, model_folder: Path, facts: Facts | None = None, rows: Sequence[Row] = ()
) -> list[Finding]:
    """Look for what makes a tuned model stop wrongly, errors first.

    Args:
        tokenizer: of the model.
        template: of the recipe.
        model_folder: with config.json and generation_config.json, where they exist.
        facts: of all rows, if there are any yet.
        rows: some of them.

    Raises:
        UserError: for a config file that is no JSON object.
    """
    findings = [
        *_closing(tokenizer, template),
        *_marks(tokenizer, template),
        *_bos(tokenizer, template),
        *_other_template(tokenizer, template),
        *lint_config(tokenizer, template, model_folder),
        *_never_closed(facts),
        *_rows(tokenizer, rows),
    ]
    return sorted(findings, key=lambda finding: finding.severity)  # "error" comes before "warning"


def _closing(tokenizer: Tokenizer, template: Template) -> Iterator[Finding]:
    use_another = "use data.template: tokenizer, or a template whose answers end with a token of this model"
    if not template.closing:
        yield Finding(
            "error", f"template {template.name!r} writes nothing after an answer: no model learns to stop", use_another
        )
    elif template.stop_text is not None and not template.stop_text.strip():
        yield Finding(
            "error",
            f"template {template.name!r} closes answers with {template.stop_text!r} alone: an answer that holds it is "
            "cut there when it is generated",
            use_another,
        )
    elif template.stop_text is not None:
        pieces = len(tokenizer.encode(template.stop_text, False).ids)
        mark = MARK.search(template.stop_text) is not None
        yield Finding(
            "error" if mark else "warning",
            f"template {template.name!r} closes answers with {template.stop_text!r}, which is no special token of "
            f"this tokenizer but {pieces} pieces: programs that stop at tokens alone would write on",
            f"add it to model.added_tokens, or {use_another}"
            if mark
            else f"give it as a stop string, or {use_another}",
        )


def _marks(tokenizer: Tokenizer, template: Template) -> Iterator[Finding]:
    """A template made for another model: its marks are letters to this one."""
    words = "".join(segment.text for segment in template.segments(PROBE) if not segment.content)
    known = {words[slice(*span)] for span in tokenizer.special_spans(words)}
    for mark in sorted(set(MARK.findall(words)) - known - {template.stop_text}):
        pieces = len(tokenizer.encode(mark, False).ids)
        if pieces > 1 and "INST" not in mark:  # LLaMA 2 and Mistral 7B were trained on these letters
            yield Finding(
                "warning",
                f"template {template.name!r} writes {mark!r}, which is no token of this tokenizer but {pieces} pieces",
                "use data.template: tokenizer, or the template this model was made with",
            )


def _bos(tokenizer: Tokenizer, template: Template) -> Iterator[Finding]:
    bos = tokenizer.bos_token_id
    ids = encode_segments(template.segments(PROBE), tokenizer, template.add_special_tokens).ids.tolist()
    if bos is None:
        return
    if ids[:2] == [bos, bos]:
        yield Finding(
            "error",
            f"rows begin with two bos tokens ({bos}): template {template.name!r} writes "
            + ("one and the tokenizer adds another" if template.add_special_tokens else "both"),
            "use a template that writes none, or a tokenizer that adds none (add_bos_token false)",
        )
    elif bos in tokenizer.encode("", True).ids and ids[0] != bos:
        yield Finding(
            "warning",
            f"rows do not begin with bos ({bos}), which the tokenizer puts before every text",
            "begin the template with {{ bos_token }}, or use data.template: tokenizer",
        )


def _other_template(tokenizer: Tokenizer, template: Template) -> Iterator[Finding]:
    if template.name == OWN_TEMPLATE or tokenizer.chat_template is None:
        return
    try:
        own = load_template(OWN_TEMPLATE, tokenizer).prompt_segments(PROBE.messages[:1])
    except UserError:
        return  # its own template cannot be used with these messages, so that it is no alternative
    if own != template.prompt_segments(PROBE.messages[:1]):
        yield Finding(
            "warning",
            f"the tokenizer has a chat template, and {template.name!r} writes other text: programs that use the "
            "tokenizer's own would prompt the tuned model otherwise than it was trained",
            "use data.template: tokenizer, or change the chat template that you publish with the model",
        )


def _never_closed(facts: Facts | None) -> Iterator[Finding]:
    if facts is not None and facts.conversations and facts.not_closed == facts.conversations:
        yield Finding(
            "error",
            f"none of {facts.conversations} conversations is trained to its closing: no model learns to stop",
            "raise data.cutoff_len, or set data.truncation_strategy to left or delete",
        )


def _rows(tokenizer: Tokenizer, rows: Sequence[Row]) -> Iterator[Finding]:
    ids = np.concatenate([np.zeros(0, np.int32), *(row.input_ids for row in rows)])
    if count := int(np.count_nonzero(ids == tokenizer.pad_token_id)):
        yield Finding(
            "error",
            f"the pad token {tokenizer.pad.value!r} occurs {count} times in {len(rows)} rows: MindFormers hides it "
            "from attention and loss wherever it stands",
            "name a token that never occurs as model.pad_token and prepare again",
        )
    elif count := int(np.count_nonzero(ids == tokenizer.unk_token_id)):
        yield Finding(
            "warning",
            f"the unk token occurs {count} times in {len(rows)} rows: the vocabulary lacks some of their characters",
            "use a tokenizer that falls back to bytes, or replace those characters",
        )
