"""How fast records become rows, beside what the bare tokenizer does in the same run, and how much memory it takes.

    python scripts/bench_prepare.py --data DATA.jsonl --tokenizer tokenizer.model --records 250000

DATA.jsonl has questions and answers (GSM8K); they are repeated as BELLE records. `twintune prepare` runs as a user
runs it, as a process of its own with its worker processes, from JSON to packed MindRecord and Arrow.
"""

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from twintune.converters.formats import load_format
from twintune.converters.sources import Record, read_file
from twintune.converters.templates import load_template
from twintune.converters.tokens import load_tokenizer

TEMPLATE = "vicuna_v1.1"
CUTOFF_LEN = 2048
BARE_RECORDS = 20_000  # enough to know the bare tokenizers' pace
SAMPLED_EVERY = 0.2  # seconds


def main() -> None:
    """Make the data, run the bare tokenizers, prepare, the bare tokenizers again; print a Markdown table."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="bench_prepare.") as name:
        folder = Path(name)
        (folder / "model").mkdir()
        (folder / "model" / "tokenizer.model").write_bytes(options.tokenizer.read_bytes())
        write_belle(options.data, folder / "data.json", options.records)
        texts = list(itertools.islice(rendered(folder), min(BARE_RECORDS, options.records)))
        before = bare_paces(folder, texts)
        seconds, peak = prepare(folder, options.workers)
        after = bare_paces(folder, texts)
        report(options.records, seconds, peak, {name: (before[name] + after[name]) / 2 for name in before})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--records", type=int, default=250_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


def write_belle(source: Path, path: Path, count: int) -> None:
    """Write `count` records in BELLE's shape, a JSON array, repeating those of `source`."""
    lines = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    records = ({"instruction": line["question"], "input": "", "output": line["answer"]} for line in lines)
    texts = [json.dumps(record, ensure_ascii=False) for record in records]
    with path.open("w", encoding="utf-8") as stream:
        stream.write("[\n")
        for number, text in enumerate(itertools.islice(itertools.cycle(texts), count)):
            stream.write(text if number == 0 else f",\n{text}")
        stream.write("\n]\n")


def rendered(folder: Path) -> Iterator[str]:
    """The texts that are tokenized."""
    template = load_template(TEMPLATE, load_tokenizer(folder / "model"))
    record_format = load_format(folder / "data.json")
    for record in read_file(folder / "data.json"):
        assert isinstance(record, Record)  # noqa: S101  they were just written
        for conversation in record_format.conversations(record.value, str(record.row)):
            yield "".join(segment.text for segment in template.segments(conversation))


def bare_paces(folder: Path, texts: list[str]) -> dict[str, float]:
    """Records a second of the tokenizers alone: text to ids, nothing read, labelled or written."""
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(folder / "model" / "tokenizer.model"))
    paces = {"SentencePiece, one thread": pace(lambda: [model.encode(text) for text in texts], len(texts))}
    fast = fast_twin(folder)
    if fast is not None:
        paces["tokenizers encode_batch, all cores"] = pace(lambda: fast.encode_batch(texts), len(texts))
    return paces


def fast_twin(folder: Path) -> Any:
    """The `tokenizers` form of the SentencePiece model, if transformers can convert it here."""
    from transformers import LlamaTokenizerFast

    try:
        return LlamaTokenizerFast(vocab_file=str(folder / "model" / "tokenizer.model"), legacy=True).backend_tokenizer
    except (ImportError, ValueError) as error:
        print(f"no `tokenizers` peer: {error}", file=sys.stderr)
        return None


def pace(work: Any, count: int) -> float:
    """`count` a second of a piece of work."""
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def prepare(folder: Path, workers: int) -> tuple[float, int]:
    """Run `twintune prepare`; seconds, and the peak of the memory of all its processes in bytes."""
    recipe = {
        "model": {"name_or_path": "./model"},
        "data": {
            "train": "./data.json",
            "template": TEMPLATE,
            "cutoff_len": CUTOFF_LEN,
            "packing": True,
            "preprocessing_num_workers": workers,
        },
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    command = [sys.executable, "-m", "twintune", "prepare", "recipe.yaml", "--output-dir", "rows"]
    environment = os.environ | {"TWINTUNE_CACHE": str(folder / "cache")}
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(proportional_bytes, processes_below(process.pid))))
        time.sleep(SAMPLED_EVERY)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"twintune prepare failed with {process.returncode}")
    return seconds, peak


def processes_below(pid: int) -> list[int]:
    """A process and all its descendants; Linux only."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return [pid]
    return [pid, *itertools.chain.from_iterable(processes_below(int(child)) for child in children)]


def proportional_bytes(pid: int) -> int:
    """Memory of a process, pages shared with others counted in part (Linux's PSS)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def report(records: int, seconds: float, peak: int, paces: dict[str, float]) -> None:
    """Print the table, with the machine and the versions."""
    ours = records / seconds
    print(f"| {records:,} BELLE records | records/s | twintune prepare is |")
    print("| --- | ---: | ---: |")
    print(f"| twintune prepare: JSON to packed MindRecord and Arrow | {ours:,.0f} | |")
    for name, pace_of_it in paces.items():
        print(f"| bare {name} | {pace_of_it:,.0f} | {ours / pace_of_it:.0%} of it |")
    print(f"\n{seconds:.1f} s in all, peak memory of all processes {peak / 2**20:,.0f} MiB")
    packages = ("twintune", "sentencepiece", "tokenizers", "mindspore", "pyarrow", "numpy")
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, ", end="")
    print(", ".join(f"{package} {version(package)}" for package in packages))


if __name__ == "__main__":
    main()
