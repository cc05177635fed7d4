"""The school-math job, end to end: data, rows, both backends, held-out accuracy, answers, one report.

Run by scripts/quickstart.sh. Every step is a command that a user would type, and is printed; finished
runs are used again as long as the recipe is the same.
"""

import json
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from twintune.artifacts import MANIFEST
from twintune.chat import Chat, load_chat
from twintune.evaluation.answers import exact_match
from twintune.recipe import Recipe, load_recipe
from twintune.report import Accuracy, Example, compare_logs, loss_table, verdict, write_report
from twintune.run_log import read_log
from twintune.sampling import Sampling
from twintune.training import versions

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "runs" / "quickstart"
DATA = FOLDER / "data"
RECIPE = ROOT / "yamls" / "quickstart_smollm2.yaml"
BACKENDS = ("cuda", "ascend")
HELD_OUT = 120
SCORED_ON = "cuda backend, the quicker one on a CPU"
ANSWERED = 3
BATCH = 40


def main() -> None:
    """Do every step, and say how long it took."""
    began = time.perf_counter()
    console = Console()
    make_data()
    recipe = load_recipe(RECIPE)
    runs = {name: train(name, recipe) for name in BACKENDS}
    curves = {name: read_log(run / "log.jsonl") for name, run in runs.items()}
    comparison = compare_logs(curves["cuda"], curves["ascend"])
    console.print(loss_table(comparison, BACKENDS))
    console.print(verdict(comparison, BACKENDS))
    records = json.loads((DATA / "test.json").read_text(encoding="utf-8"))[:HELD_OUT]
    accuracies, answers = score(recipe, runs, records)
    console.print(accuracy_table(accuracies))
    examples = answer_some(recipe, runs["ascend"], records[:ANSWERED], answers)
    print_examples(console, examples)
    report = write_report(
        FOLDER,
        title="School math on SmolLM2-135M-Instruct, on both backends",
        curves=curves,
        accuracies=accuracies,
        examples=examples,
        machine=versions() | {"processor": platform.machine(), "command": "bash scripts/quickstart.sh"},
    )
    console.print(f"report: {report.relative_to(ROOT)} after {(time.perf_counter() - began) / 60:.1f} minutes")


def run(*command: str) -> None:
    """Run a command of the project as a user would, after printing it."""
    print(f"$ {' '.join(command)}", flush=True)
    program = [sys.executable, "-m", "twintune"] if command[0] == "twintune" else [sys.executable]
    status = subprocess.run([*program, *command[1:]], cwd=ROOT, check=False).returncode
    if status:
        sys.exit(status)


def make_data() -> None:
    """Write the records, convert them, and prepare the rows; all of it is quick and the same each time."""
    data = str(DATA.relative_to(ROOT))
    run("python", "scripts/make_school_math.py", "--output-dir", data, "--language", "en")
    run("twintune", "convert", f"{data}/train.json", "-o", f"{data}/conversations.json")
    run("twintune", "prepare", str(RECIPE.relative_to(ROOT)))


def train(backend: str, recipe: Recipe) -> Path:
    """Train on a backend, unless this very recipe has been; give the run's folder."""
    folder = FOLDER / backend
    if (folder / MANIFEST).is_file() and same_recipe(load_recipe(folder / "recipe.yaml"), recipe):
        print(f"== {folder.relative_to(ROOT)} is there from this recipe and is used again")
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    place = str(folder.relative_to(ROOT))
    run("twintune", "train", str(RECIPE.relative_to(ROOT)), "--backend", backend, "--output-dir", place)
    return folder


def same_recipe(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes train the same; the backend section may differ."""
    return one.model_copy(update={"backend": other.backend}) == other


def score(
    recipe: Recipe, runs: dict[str, Path], records: list[dict[str, str]]
) -> tuple[list[Accuracy], dict[str, list[str]]]:
    """Exact match of the base and of both adapters, and the base's and the cuda run's answers."""
    adapters = {"base": None} | {f"{name} adapter": folder / "adapter" for name, folder in runs.items()}
    accuracies, answers = [], {}
    for model, adapter in adapters.items():
        print(f"== scoring {model} on {len(records)} held-out problems", flush=True)
        chat = load(recipe, adapter, "cuda")
        answers[model] = ask(chat, recipe, records)
        correct = sum(
            exact_match(answer, record["output"]) for answer, record in zip(answers[model], records, strict=True)
        )
        accuracies.append(Accuracy(model, correct, len(records), SCORED_ON))
    return accuracies, answers


def load(recipe: Recipe, adapter: Path | None, backend: str) -> Chat:
    """A chat as the recipe renders it; the base gets the same template and system prompt."""
    return load_chat(
        recipe.model.name_or_path,
        adapter,
        backend=backend,
        template=recipe.data.template,
        system=recipe.data.system,
        batch_size=BATCH,
    )


def ask(chat: Chat, recipe: Recipe, records: list[dict[str, str]]) -> list[str]:
    """One greedy answer to each record's instruction."""
    sampling = Sampling(recipe.generate.max_new_tokens)
    return [answers[0] for answers in chat.answer([record["instruction"] for record in records], sampling)]


def answer_some(
    recipe: Recipe, ascend: Path, records: list[dict[str, str]], answers: dict[str, list[str]]
) -> list[Example]:
    """The first held-out questions, answered by each tuned model on its own backend."""
    print(f"== answering {len(records)} questions on the ascend backend (it compiles a graph first)", flush=True)
    on_ascend = ask(load(recipe, ascend / "adapter", "ascend"), recipe, records)
    return [
        Example(
            record["instruction"],
            record["output"],
            {
                "base (cuda backend)": answers["base"][number],
                "tuned on cuda, answered on cuda": answers["cuda adapter"][number],
                "tuned on ascend, answered on ascend": on_ascend[number],
            },
        )
        for number, record in enumerate(records)
    ]


def accuracy_table(accuracies: list[Accuracy]) -> Table:
    """The accuracies for a terminal."""
    table = Table("model", "correct", "accuracy", "scored by", title="Exact match on held-out problems")
    for accuracy in accuracies:
        share = f"{accuracy.correct / accuracy.total:.1%}"
        table.add_row(accuracy.model, f"{accuracy.correct} of {accuracy.total}", share, accuracy.note)
    return table


def print_examples(console: Console, examples: list[Example]) -> None:
    """Each question with the answers of all models."""
    for example in examples:
        table = Table("", example.question, show_lines=True)
        table.add_row("gold", example.gold)
        for model, answer in example.answers.items():
            table.add_row(model, answer)
        console.print(table)


if __name__ == "__main__":
    main()
