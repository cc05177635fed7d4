"""Where rows come from: the files of a recipe, how their records are read, and what identifies it all."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import floor
from pathlib import Path

from twintune.artifacts import sha256_file, sha256_json
from twintune.converters.data_files import find_files
from twintune.converters.formats import RecordFormat, load_format
from twintune.converters.sources import Rejection, read_file, stable_hash
from twintune.converters.templates import load_template
from twintune.converters.tokens import load_tokenizer, tokenizer_hash
from twintune.models import resolve_model
from twintune.parts import RECORDS
from twintune.recipe import Recipe
from twintune.recipe_sections import DataSection
from twintune.row_maker import Item, RowMaker

ROW_FORMAT = 3  # raise it whenever the same recipe gives other rows
NOT_OF_THE_ROWS = {"train", "max_rejected_share", "preprocessing_num_workers"}  # keys of data that change no row


@dataclass(frozen=True)
class Source:
    """One file of records, and how it is read."""

    path: Path
    weight: float
    format: RecordFormat


@dataclass(frozen=True)
class Origin:
    """Everything that decides the rows of a recipe.

    Attributes:
        sources: the files, in the order in which they are read.
        maker: makes rows of their records.
        tokenizer_sha256: of the tokenizer's files.
        fingerprint: the sha256 of all that, the same on every machine, wherever the files lie.
    """

    sources: tuple[Source, ...]
    maker: RowMaker
    tokenizer_sha256: str
    fingerprint: str

    def items(self) -> Iterator[Item]:
        """Every record of every file, as often as its weight says."""
        for number, source in enumerate(self.sources):
            for record in read_file(source.path):
                if isinstance(record, Rejection):
                    yield Item(number, record.row, None, record.reason)
                    continue
                copies = _copies(record.value, source.weight)
                for copy in range(copies):
                    yield Item(number, record.row, record.value, copy=copy)
                if not copies:
                    yield Item(number, record.row, None, left_out=True)


def find_sources(data: DataSection) -> tuple[Source, ...]:
    """The files of data.train, each with its format.

    Raises:
        UserError: for a file that is not there, or whose records are of no known format.
    """
    sources = []
    for entry in data.train:
        for path in find_files(entry.path):
            sources.append(Source(path, entry.weight, load_format(path, data.format, data.instruction_join)))
    return tuple(sources)


def load_origin(recipe: Recipe) -> Origin:
    """Find the files, load tokenizer and template, and take the fingerprint.

    Raises:
        UserError: what find_sources, load_tokenizer and load_template raise.
    """
    data, model = recipe.data, recipe.model
    folder = resolve_model(model)
    sources = find_sources(data)
    tokenizer = load_tokenizer(folder, model.pad_token, model.trust_remote_code, model.added_tokens)
    template = load_template(data.template, tokenizer, data.system)
    maker = RowMaker(tuple(source.format for source in sources), tokenizer, template, data)
    tokenizer_sha256 = tokenizer_hash(folder)
    fingerprint = sha256_json(
        {
            "row_format": ROW_FORMAT,
            "records_a_part": RECORDS,
            "files": [[sha256_file(source.path), source.weight, _spelled(source.format)] for source in sources],
            "tokenizer": tokenizer_sha256,
            "added_tokens": model.added_tokens,
            "pad_token": model.pad_token,
            "data": data.model_dump(mode="json", exclude=NOT_OF_THE_ROWS),
        }
    )
    return Origin(sources, maker, tokenizer_sha256, fingerprint)


def _spelled(record_format: RecordFormat) -> dict[str, object]:
    return {key: value for key, value in asdict(record_format).items() if key != "reason"}


def _copies(value: object, weight: float) -> int:
    """How often a record is taken; which records a fraction takes is told by their own hash."""
    whole = floor(weight)
    # Salted: with the validation split's own hash, a weight of 0.5 would double the share of validation.
    return whole + (weight > whole and stable_hash(["weight", value]) < weight - whole)
