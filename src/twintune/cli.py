"""The command line: each command reads its arguments, calls one function and prints what came of it.

Frameworks, and whatever imports them, are imported by the command that needs them: `twintune --help`
answers at once.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twintune import __version__
from twintune.command_arguments import BackendFlag, DeviceFlag, Overrides, RecipeFile, recipe_with
from twintune.errors import UserError, print_errors
from twintune.evaluate_command import evaluate
from twintune.export_commands import export_app, merge
from twintune.parity_commands import parity_app
from twintune.reasoning_commands import reason
from twintune.report_command import report
from twintune.train_command import train

if TYPE_CHECKING:
    from twintune.backends import Choice
    from twintune.prepared import Prepared
    from twintune.recipe import Recipe
    from twintune.sampling import Sampling

app = typer.Typer(
    name="twintune",
    help="One LoRA recipe, run on MindFormers/MindSpore and on PyTorch/PEFT, measured to be the same job.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(parity_app, name="parity")
app.add_typer(export_app, name="export")
app.command()(merge)
app.command()(report)
app.command()(evaluate)
app.command()(reason)
app.command()(train)

FormatFlag = Annotated[str | None, typer.Option("--format", help="Of the records.", show_default="told by the records")]


def main() -> None:
    """Run the command line; what a user can mend ends it with exit code 2 and no traceback."""
    try:
        app()
    except UserError as error:
        print_errors(error.messages)
        sys.exit(2)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        print(f"twintune {__version__}")
        raise typer.Exit


@app.command()
def convert(
    data: Annotated[Path, typer.Argument(metavar="DATA.json", help="Records of any format.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The conversations file to write.")],
    id_prefix: Annotated[str, typer.Option(help="Before the record's number in each id.")] = "bellemath",
    data_format: FormatFlag = None,
) -> None:
    """Turn records into FastChat conversations."""
    from twintune.converters.records import stream_conversations, write_conversations

    count = write_conversations(stream_conversations(data, id_prefix, data_format or "auto"), output)
    print(f"kept every record, rejected 0: {count} conversations in {output}")


@app.command()
def prepare(
    recipe: RecipeFile,
    overrides: Overrides = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="A new folder for the rows.", show_default="the cache")
    ] = None,
    data_format: FormatFlag = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Make this share only, for merge-shards.", show_default=False)
    ] = None,
) -> None:
    """Render, tokenize and label the records of a recipe, once for both backends."""
    from twintune.prepare import find_or_prepare
    from twintune.prepare import prepare as prepare_rows
    from twintune.shards import parse_shard, prepare_shard

    loaded = recipe_with(recipe, overrides, {"data.format": data_format})
    if shard is not None:
        if output_dir is None:
            raise UserError("command line: --output-dir must be given with --shard, got nothing")
        print(f"shard {shard}: {prepare_shard(loaded, parse_shard(shard), output_dir)}")
        return
    _print_prepared(find_or_prepare(loaded) if output_dir is None else prepare_rows(loaded, output_dir))


@app.command()
def merge_shards(
    shards: Annotated[list[Path], typer.Argument(metavar="SHARD...", help="All folders that prepare --shard made.")],
    output_dir: Annotated[Path, typer.Option(help="A new folder for the rows.")],
) -> None:
    """Put the shards of one recipe together: the rows that prepare would have made, byte for byte."""
    from twintune.shards import merge_shards as merge

    _print_prepared(merge(shards, output_dir))


@app.command()
def inspect(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml|ROWS", help="A recipe, or a .mindrecord file.")],
    overrides: Overrides = None,
    data_format: FormatFlag = None,
    html: Annotated[Path | None, typer.Option(help="Write the page here as well.", show_default=False)] = None,
    examples: Annotated[int, typer.Option(min=0, help="Shown from the beginning, before the worst ones.")] = 3,
) -> None:
    """Show what a recipe will train on: kept, cut and rejected records, lengths, padding, labels, traps."""
    from rich.console import Console

    from twintune.inspection import inspect_recipe
    from twintune.inspection_view import print_inspection, write_page
    from twintune.mindrecord_report import report_mindrecord

    console = Console(soft_wrap=True)
    if recipe.suffix not in (".yaml", ".yml"):
        for name, sentence in report_mindrecord(recipe).lines():
            print(f"{name + ':':<16}{sentence}")
        return
    inspection = inspect_recipe(recipe_with(recipe, overrides, {"data.format": data_format}), examples)
    print_inspection(inspection, console)
    if html is not None:
        write_page(inspection, html)
        print(f"\npage: {html}")


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="A model folder, an embedded model's name or a hub name.")],
    adapter: Annotated[Path | None, typer.Option(help="A PEFT adapter folder.", show_default=False)] = None,
    backend: BackendFlag = "auto",
    device: DeviceFlag = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    prompt: Annotated[list[str] | None, typer.Option(help="A question; may be repeated.", show_default=False)] = None,
    input_file: Annotated[
        Path | None,
        typer.Option("--input", help="Questions: a .txt with one a line, or BELLE records.", show_default=False),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help="A FastChat name, `tokenizer`, or `none`: prompts as they stand.", show_default="adapter's"),
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt.", show_default="adapter's")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(show_default="adapter's recipe, or 256")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.", show_default="adapter's, or 0")] = None,
    top_p: Annotated[float | None, typer.Option(show_default="adapter's, or 1")] = None,
    top_k: Annotated[int | None, typer.Option(help="0 is no limit.", show_default="adapter's, or 0")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="1 is none.", show_default="adapter's, or 1")] = None,
    min_new_tokens: Annotated[int | None, typer.Option(show_default="adapter's, or 0")] = None,
    stop_string: Annotated[
        list[str] | None, typer.Option(help="Ends a text; may be repeated.", show_default="adapter's")
    ] = None,
    num_return_sequences: Annotated[int, typer.Option()] = 1,
    vote: Annotated[
        int | None,
        typer.Option(metavar="N", help="Print the answer of most of N texts, and the votes.", show_default=False),
    ] = None,
    retries: Annotated[int, typer.Option(help="With --vote: ask again where no text has an answer.")] = 0,
    seed: Annotated[int | None, typer.Option(show_default="adapter's, or 0")] = None,
    batch_size: Annotated[int, typer.Option(help="Answers decoded together.")] = 8,
    cache_implementation: Annotated[
        str | None,
        typer.Option(help="auto, static, or MindFormers' paged on an NPU.", show_default="adapter's, or auto"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a prompt.")] = False,
) -> None:
    """Answer questions with a model, tuned or not, on either backend."""
    from twintune.answering import check_votes, read_questions, write_answers, write_votes
    from twintune.chat import adapter_recipe, load_chat

    questions = read_questions(prompt or [], input_file)
    given = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "repetition_penalty": repetition_penalty,
        "min_new_tokens": min_new_tokens,
        "stop_strings": tuple(stop_string) if stop_string else None,
        "seed": seed,
    }
    sampling = _sampling(adapter_recipe(adapter), given, num_return_sequences)
    check_votes(vote, retries, sampling)
    chat = load_chat(
        model,
        adapter,
        backend=backend or "auto",
        device=device or "auto",
        dtype=dtype,
        template=template,
        system=system,
        batch_size=batch_size,
        cache_implementation=cache_implementation,
    )
    for name, choice in chat.choices.items():
        _print_choice(name, choice)
    if vote is not None:
        write_votes(chat, questions, vote, sampling, retries, as_json=as_json)
        return
    write_answers(chat, questions, sampling, as_json=as_json)


def _print_prepared(prepared: "Prepared") -> None:
    summary = prepared.summary
    print(f"rows: {prepared.folder}")
    for file in summary.files:
        print(f"{file.name}: {file.format.value} ({file.format.reason})")
    rejected = sum(summary.rejected.values())
    print(f"read {summary.read} records, kept {summary.kept}, rejected {rejected}, cut {summary.cut_rows}")
    if rejected:
        print(f"rejected records, with the reason: {prepared.folder / 'rejected.jsonl'}")
    packed = f"{summary.conversations} conversations packed into " if summary.packed else ""
    print(f"{packed}{summary.count} rows, longest {summary.row_length} tokens")
    if summary.validation_rows:
        print(f"{summary.validation_rows} rows for validation")
    print(f"{summary.trained_tokens} of {summary.tokens} tokens are trained")
    _print_choice("pad token", summary.pad_token)


def _sampling(recipe: "Recipe | None", given: dict[str, Any], num_return_sequences: int) -> "Sampling":
    from twintune.answer_sections import GenerateSection
    from twintune.chat import recipe_sampling

    values = {name: value for name, value in given.items() if value is not None}
    sampling = recipe_sampling(recipe.generate if recipe else GenerateSection())
    return replace(sampling, **values, num_return_sequences=num_return_sequences)


def _print_choice(name: str, choice: "Choice") -> None:
    print(f"{name}: {choice.value} ({choice.reason})", file=sys.stderr)
