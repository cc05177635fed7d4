"""What is asked and what is right: questions and gold answers from the records of a recipe."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from twintune.artifacts import sha256_json
from twintune.converters.conversation import Conversation, Message
from twintune.converters.data_files import find_files
from twintune.converters.faults import shown
from twintune.converters.formats import RecordFormat, load_format
from twintune.converters.sources import Rejection, is_for_validation, read_file
from twintune.errors import UserError, raise_collected
from twintune.evaluation.answers import Kind, answer_kind, final_answer
from twintune.origin import find_sources
from twintune.recipe import Recipe
from twintune.recipe_sections import DataSection


@dataclass(frozen=True)
class EvaluationQuestion:
    """One question.

    Attributes:
        file: of its record.
        row: of its record there, from 1.
        messages: what the model is shown; the last one is the question.
        gold: the right answer, as final_answer spells it.
        kind: number or choice.
    """

    file: str
    row: int
    messages: tuple[Message, ...]
    gold: str
    kind: Kind


@dataclass
class Questions:
    """All questions of an evaluation.

    Attributes:
        source: a sentence that says where they come from.
        questions: in the order of their files.
        left_out: validation records that prepare rejects as well, each as a sentence with file and row.
    """

    source: str
    questions: list[EvaluationQuestion] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def sha256(self) -> str:
        """Of what is asked and what is right, wherever the files lie."""
        return sha256_json(
            [
                [[[message.role, message.text] for message in each.messages], each.gold, each.kind]
                for each in self.questions
            ]
        )


def read_questions(recipe: Recipe) -> Questions:
    """The questions of evaluate.test, or where it names none, of the records that data.val_size keeps.

    Raises:
        UserError: if neither gives a question, for every test record that breaks a rule, and for every gold
            answer without a number or a letter.
    """
    problems: list[str] = []
    if recipe.evaluate.test:
        found = Questions(f"evaluate.test: {', '.join(recipe.evaluate.test)}")
        pairs = _test_conversations(recipe, problems)
    elif recipe.data.val_size:
        found = Questions(f"data.val_size: {recipe.data.val_size:g} of data.train")
        pairs = validation_conversations(recipe.data, found.left_out)
    else:
        raise UserError(
            "recipe: evaluate.test must name files of questions, or data.val_size must be above 0, got neither; "
            "set evaluate.test=test.jsonl"
        )
    for place, conversation in islice(pairs, recipe.evaluate.limit):
        try:
            found.questions.append(_question(*place, conversation, recipe.evaluate.answer))
        except UserError as error:
            problems.extend(error.messages)
    raise_collected(problems)
    if not found.questions:
        raise UserError(f"recipe: {found.source} must give at least one question, got none; raise data.val_size")
    return found


Place = tuple[Path, int]


def _test_conversations(recipe: Recipe, problems: list[str]) -> Iterator[tuple[Place, Conversation]]:
    for entry in recipe.evaluate.test:
        for path in find_files(entry):
            record_format = load_format(path, recipe.evaluate.format, recipe.data.instruction_join)
            yield from _conversations(path, record_format, None, problems)


def validation_conversations(data: DataSection, left_out: list[str]) -> Iterator[tuple[Place, Conversation]]:
    """The conversations of the records that data.val_size keeps, each with its file and row.

    Args:
        data: of the recipe.
        left_out: gets a sentence for each record that breaks a rule.
    """
    for source in find_sources(data):
        yield from _conversations(source.path, source.format, data.val_size, left_out)


def _conversations(
    path: Path, record_format: RecordFormat, share: float | None, problems: list[str]
) -> Iterator[tuple[Place, Conversation]]:
    """The conversations of a file, or of the share of its records that prepare keeps for validation."""
    for record in read_file(path):
        if isinstance(record, Rejection):
            problems.append(f"{path}: row {record.row}: {record.reason}")
        elif share is None or is_for_validation(record.value, share):
            try:
                for conversation in record_format.conversations(record.value, str(record.row)):
                    yield (path, record.row), conversation
            except UserError as error:
                problems.extend(f"{path}: row {record.row}: {message}" for message in error.messages)


def _question(path: Path, row: int, conversation: Conversation, answer: str) -> EvaluationQuestion:
    *messages, last = conversation.messages
    kind: Kind = answer_kind(last.text) if answer == "auto" else "choice" if answer == "choice" else "number"
    gold = final_answer(last.text, kind)
    if gold is None:
        wanted = "a letter A to E" if kind == "choice" else "a number" if answer == "number" else "a number or a letter"
        raise UserError(
            f"{path}: row {row}: the gold answer must hold {wanted}, got {shown(last.text)}; "
            "leave the record out or mend it"
        )
    return EvaluationQuestion(path.name, row, tuple(messages), gold, kind)
