"""Write the bad data that cannot be committed: packed, torn and long files, links, folders, what cannot be read.

    python scripts/make_bad_data.py FOLDER

The rest lies in tests/data/bad as it is; expected.json there says what is wrong with each. What this machine cannot
make (a file that root may not read, a Linux pseudo-file elsewhere) is left out.
"""

import bz2
import gzip
import json
import lzma
import os
import sys
import zipfile
from pathlib import Path

GOOD = '{"instruction": "1+1?", "input": "", "output": "2"}'
LONG = 50_000_000  # characters
DEEP = 100_000  # brackets


def main() -> None:
    """Write everything into the folder that the command line names."""
    make_bad_data(Path(sys.argv[1]))


def make_bad_data(folder: Path) -> None:
    """Write everything into a folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_packed(folder)
    _write_parquet(folder)
    _write_long(folder)
    _write_deep(folder)
    _make_folders(folder)
    _make_links(folder)
    _make_unreadable(folder)


def _write_packed(folder: Path) -> None:
    data = f"[{GOOD}]".encode()
    (folder / "gzip.json").write_bytes(gzip.compress(data, mtime=0))
    (folder / "bzip2.jsonl").write_bytes(bz2.compress(data))
    (folder / "xz.jsonl").write_bytes(lzma.compress(data))
    (folder / "zstd.json").write_bytes(b"\x28\xb5\x2f\xfd" + data)  # its magic number: no module of 3.11 packs it
    with zipfile.ZipFile(folder / "zip.json", "w") as archive:
        archive.writestr("data.json", data)


def _write_parquet(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    table = pa.table({"question": [f"{number}+1?" for number in range(1000)], "answer": ["2"] * 1000})
    whole = folder / "torn.parquet"
    parquet.write_table(table, whole)
    data = whole.read_bytes()
    whole.write_bytes(data[: len(data) // 2])
    (folder / "damaged.parquet").write_bytes(data[:-100] + b"\xff" * 92 + data[-8:])
    parquet.write_table(table.slice(0, 0), folder / "no_rows.parquet")
    parquet.write_table(pa.table({"question": ["q", "r"], "answer": ["a", None]}), folder / "null.parquet")


def _write_long(folder: Path) -> None:
    long = GOOD.replace("2", "2" * LONG)
    (folder / "long_line.jsonl").write_text(f"{GOOD}\n{long}\n{GOOD}\n")
    (folder / "long_unclosed.jsonl").write_text(f"{GOOD}\n{long[:-2]}\n{GOOD}\n")
    (folder / "long_element.json").write_text(f"[{GOOD}, {long}, {GOOD}]")
    (folder / "long_object.json").write_text(f"{{\n{long[1:]}\n{GOOD}\n")
    (folder / "long_cell.csv").write_text('question,answer\nq,a\nr,"' + "word,\n" * (LONG // 6))
    (folder / "long_header.csv").write_text("question," * (LONG // 9))


def _write_deep(folder: Path) -> None:
    deep = GOOD.replace('"2"', "[" * DEEP + "]" * DEEP)
    (folder / "deep_line.jsonl").write_text(f"{GOOD}\n{deep}\n")
    (folder / "deep_element.json").write_text(f"[{GOOD}, {deep}]")


def _make_folders(folder: Path) -> None:
    (folder / "empty_folder").mkdir()
    (folder / "mixed_folder").mkdir()
    (folder / "mixed_folder" / "data.json").write_text(f"[{GOOD}]")
    (folder / "mixed_folder" / "notes.txt").write_text("what is left to do\n")
    (folder / "nested_folder" / "within").mkdir(parents=True)
    (folder / "nested_folder" / "data.json").write_text(f"[{GOOD}]")


def _make_links(folder: Path) -> None:
    (folder / "dangling.json").symlink_to("gone.json")
    (folder / "loop.json").symlink_to("pool.json")
    (folder / "pool.json").symlink_to("loop.json")
    (folder / "twin.json").write_text(json.dumps([json.loads(GOOD)]))
    (folder / "twin_of_it.json").symlink_to("twin.json")
    (folder / "device.json").symlink_to(os.devnull)
    os.mkfifo(folder / "pipe.json")


def _make_unreadable(folder: Path) -> None:
    if Path("/proc/self/mem").exists():  # it opens, and its first byte cannot be read, by anyone
        (folder / "unreadable.json").symlink_to("/proc/self/mem")
    if os.geteuid() == 0:
        return
    (folder / "forbidden.json").write_text(f"[{GOOD}]")
    (folder / "forbidden.json").chmod(0)
    (folder / "forbidden_folder").mkdir(mode=0)


if __name__ == "__main__":
    main()
