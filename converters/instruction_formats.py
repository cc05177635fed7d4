"""Records that ask once: BELLE and Alpaca, question and answer, prompt and completion."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from twintune.converters.conversation import Message
from twintune.converters.dialogue_formats import read_turns
from twintune.converters.faults import shown
from twintune.converters.fields import Turns, optional_text, required_text, system_turns
from twintune.converters.record_layout import OPENAI, InstructionJoin, Layout

# https://github.com/tatsu-lab/stanford_alpaca, "Data Release": the wording that the models were trained on.
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


def join_instruction(instruction: str, text: str, join: InstructionJoin = "newline") -> str:
    """One question from an instruction and its input, which may be empty.

    `newline` puts the input on a line of its own, `concatenate` puts nothing between (as the Qwen2 persona
    recipe does), `alpaca` puts both into Stanford Alpaca's prompt.
    """
    if join == "alpaca":
        wording = ALPACA_WITH_INPUT if text else ALPACA
        return wording.format(instruction=instruction, input=text)
    return f"{instruction}\n{text}" if text and join == "newline" else instruction + text


def read_instruction(record: Mapping[str, Any], layout: Layout, problems: list[str]) -> list[Turns]:
    """The one conversation of a record that has its question and its answer under keys of their own.

    Earlier turns, if any, come from the history as pairs of question and answer.
    """
    columns = layout.columns
    instruction = required_text(record, columns.prompt, problems)
    text = optional_text(record, columns.query, problems)
    response = required_text(record, columns.response, problems)
    system = system_turns(record, columns.system, problems)
    earlier = _history(record, columns.history, problems)
    question = join_instruction(instruction, text, layout.instruction_join)
    return [(*system, *earlier, Message("human", question), Message("assistant", response))]


def read_prompt_completion(record: Mapping[str, Any], layout: Layout, problems: list[str]) -> list[Turns]:
    """The one conversation of a record with prompt and completion, as texts or, as TRL has it, as messages.

    Answers inside a prompt of messages are context, and not trained.
    """
    columns = layout.columns
    prompt, completion = record.get(columns.prompt), record.get(columns.response)
    if not (isinstance(prompt, list) and isinstance(completion, list)):
        return read_instruction(record, layout, problems)
    system = system_turns(record, columns.system, problems)
    asked = read_turns(prompt, OPENAI, problems, columns.prompt)
    context = [replace(turn, trained=False) if turn.role == "assistant" else turn for turn in asked]
    return [(*system, *context, *read_turns(completion, OPENAI, problems, columns.response))]


def _history(record: Mapping[str, Any], key: str | None, problems: list[str]) -> Turns:
    pairs = None if key is None else record.get(key)
    if not pairs:
        return ()
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        problems.append(f"{key} must be a list of [question, answer] pairs, got {shown(pairs)}")
        return ()
    turns: list[Message] = []
    for number, (question, answer) in enumerate(pairs, 1):
        pair = {f"{key} {number} question": question, f"{key} {number} answer": answer}
        texts = [required_text(pair, name, problems) for name in pair]
        turns += [Message("human", texts[0]), Message("assistant", texts[1])]
    return tuple(turns)
