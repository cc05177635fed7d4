"""Whether a server that speaks OpenAI's protocol, such as vLLM, answers as twintune does.

    python scripts/check_server.py --model BASE --adapter run/adapter --input questions.txt --served-model-name tuned

Each question is put to both, greedily. Where the server has vLLM's /tokenize, the token ids of the prompt are compared
as well. Exit code 0: all are the same; 1: not all. Texts may part where two tokens are nearly alike in likelihood.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from twintune.answering import read_questions
from twintune.chat import Chat, load_chat
from twintune.errors import UserError
from twintune.sampling import Sampling

NOT_FOUND = 404


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask both, print what differs, and return the exit code."""
    asked = _read_arguments(arguments)
    try:
        questions = read_questions([], asked.input)
        chat = load_chat(asked.model, asked.adapter, backend=asked.backend)
        ours = [texts[0] for texts in chat.answer(questions, Sampling(max_new_tokens=asked.max_new_tokens))]
        with httpx.Client(base_url=asked.base_url, timeout=asked.timeout) as server:
            theirs = [ask(server, asked.served_model_name, text, asked.max_new_tokens) for text in questions]
            prompts = [prompt_ids(server, asked.served_model_name, text) for text in questions]
    except (UserError, httpx.HTTPError) as error:
        print(error, file=sys.stderr)
        return 2
    return report(questions, chat, prompts, ours, theirs)


def ask(server: httpx.Client, name: str, question: str, max_new_tokens: int) -> str:
    """The server's greedy answer, with neither a penalty nor another setting of its own."""
    settings = {"model": name, "temperature": 0, "repetition_penalty": 1.0, "max_tokens": max_new_tokens}
    answer = server.post("/v1/chat/completions", json={**settings, **_messages(question)})
    text: str = answer.raise_for_status().json()["choices"][0]["message"]["content"]
    return text


def prompt_ids(server: httpx.Client, name: str, question: str) -> list[int] | None:
    """The token ids of the server's prompt; None where it does not tell."""
    answer = server.post("/tokenize", json={"model": name, **_messages(question)})
    if answer.status_code == NOT_FOUND:
        return None
    ids: list[int] = answer.raise_for_status().json()["tokens"]
    return ids


def report(
    questions: Sequence[str],
    chat: Chat,
    prompts: Sequence[list[int] | None],
    ours: Sequence[str],
    theirs: Sequence[str],
) -> int:
    """Print each difference and the counts; 0 if there is none, else 1."""
    told = [number for number, ids in enumerate(prompts) if ids is not None]
    other_prompts = [number for number in told if prompts[number] != chat.prompt_ids(questions[number])]
    other_texts = [number for number, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other]
    for number in other_prompts:
        print(f"prompt {number + 1}: {chat.prompt_ids(questions[number])} here, {prompts[number]} there")
    for number in other_texts:
        print(f"answer {number + 1}: {ours[number]!r} here, {theirs[number]!r} there")
    print(f"prompts: {len(told) - len(other_prompts)} of {len(told)} have the same token ids")
    print(f"answers: {len(questions) - len(other_texts)} of {len(questions)} are the same")
    return 1 if other_prompts or other_texts else 0


def _messages(question: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}]}


def _read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or name, as for twintune generate")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--input", type=Path, required=True, help="questions: a .txt with one a line, or records")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--base-url", default="http://localhost:8000")
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds of one request")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
