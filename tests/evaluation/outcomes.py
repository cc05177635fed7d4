"""Outcomes of made-up answers to the questions whose right answers are 1, 2, 3 and so on."""

from twintune.evaluation.answer_log import Outcome


def outcomes(*answers: str | None) -> list[Outcome]:
    """One outcome an answer; None is a text without an answer."""
    return [
        Outcome(
            number=number,
            file="test.jsonl",
            row=number,
            kind="number",
            question=f"What is {number}?",
            gold=str(number),
            answer=answer,
            correct=answer == str(number),
            distribution={} if answer is None else {answer: 1},
            none=int(answer is None),
            attempts=1,
            texts=("I do not know | <b>",) if answer is None else (f"It is {answer}.",),
        )
        for number, answer in enumerate(answers, 1)
    ]
