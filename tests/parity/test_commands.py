"""`twintune parity` as a user types it: exit codes, reports, and bundles that travel."""

import getpass
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden import make_bundles
from tests.parity import network_faults, training_faults
from tests.parity.jobs import Recordings, machine, write_recipe
from twintune import cli
from twintune.artifacts import read_sealed, write_sealed
from twintune.backends import missing_packages
from twintune.errors import UserError
from twintune.parity import selection
from twintune.parity.bundle import FACTS, FORMAT, Bundle, open_bundle
from twintune.parity.ladder import LADDER, compare
from twintune.parity.record import Settings, record
from twintune.recipe import load_recipe

GOLDEN = Path(__file__).parents[1] / "golden"
KIND = "qwen2"
NO_FRAMEWORK = """
import sys
from twintune.cli import main
try:
    main()
except SystemExit as done:
    print([name for name in ("torch", "mindspore", "transformers", "peft") if name in sys.modules], done.code)
"""
needs_cuda_backend = pytest.mark.skipif(bool(missing_packages("cuda")), reason="records with the cuda backend")


@pytest.fixture
def bundle(recordings: Recordings) -> Bundle:
    return recordings.bundle(KIND, "cuda")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """The exit code of `twintune parity ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["twintune", "parity", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        cli.main()
    return int(done.value.code or 0)


def test_bundles_of_format_1_stay_readable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Recorded by tests/golden/make_bundles.py with twintune 0.1.0, once by each backend."""
    sides = [GOLDEN / "bundle-format-1" / name for name in ("cuda", "ascend")]
    verdict = compare(*map(open_bundle, sides))
    assert [rung.status for rung in verdict.rungs] == ["same"] * len(LADDER), verdict.first_difference
    assert run(monkeypatch, "compare", *sides, "-o", tmp_path / "reports") == 0
    assert {file.name for file in (tmp_path / "reports").iterdir()} == {
        "report.md",
        "report.html",
        "run_card.md",
        "junit.xml",
        "verdict.json",
    }


@needs_cuda_backend
def test_todays_run_is_the_one_that_was_recorded_on_a_cpu(tmp_path: Path) -> None:
    """On a machine with a CUDA device this is the GPU against MindFormers on a CPU."""
    path = write_recipe(tmp_path / "recipe", make_bundles.KIND)
    recipe = load_recipe(path, [*machine("cuda"), *make_bundles.OVERRIDES])
    today = record(recipe, tmp_path / "today", make_bundles.SETTINGS)
    verdict = compare(open_bundle(GOLDEN / "bundle-format-1" / "ascend"), today)
    assert [rung.status for rung in verdict.rungs] == ["same"] * len(LADDER), verdict.first_difference


def test_comparing_imports_no_framework() -> None:
    sides = [str(GOLDEN / "bundle-format-1" / name) for name in ("cuda", "ascend")]
    command = [sys.executable, "-c", NO_FRAMEWORK, "parity", "compare", *sides]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0", done.stdout


@needs_cuda_backend
def test_a_difference_is_exit_code_1_and_in_every_report(
    recordings: Recordings,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        network_faults.in_network(network_faults.rope_theta)(patch)
        record(recordings.recipe(KIND, "cuda"), tmp_path / "faulty", Settings(steps=2))
    assert run(monkeypatch, "compare", bundle.folder, tmp_path / "faulty", "-o", tmp_path / "out", "--json") == 1
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["first_difference"] == 5
    place = verdict["rungs"][4]["place"]
    assert place.startswith("layers.0, row ")
    for name in ("report.md", "report.html", "run_card.md", "junit.xml"):
        assert "layers.0" in (tmp_path / "out" / name).read_text(encoding="utf-8"), name
    assert (tmp_path / "out" / "msprobe" / "layer_mapping.yaml").is_file()


@needs_cuda_backend
def test_a_bundle_names_nobody_and_no_folder(bundle: Bundle) -> None:
    words = [str(Path.home()), str(bundle.folder.parents[1]), socket.gethostname(), str(Path.cwd())]
    user = getpass.getuser()
    for file in bundle.folder.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not [word for word in words if len(word) > 3 and word.encode() in content], file
            assert f"/{user}/".encode() not in content, file


@needs_cuda_backend
def test_every_file_of_a_bundle_is_sealed(bundle: Bundle, tmp_path: Path) -> None:
    names = [file.relative_to(bundle.folder) for file in bundle.folder.rglob("*") if file.is_file()]
    for name in names:
        changed = tmp_path / "changed"
        shutil.copytree(bundle.folder, changed)
        content = bytearray((changed / name).read_bytes())
        content[len(content) // 2] ^= 1
        (changed / name).write_bytes(content)
        with pytest.raises(UserError, match="record it again"):
            open_bundle(changed)
        shutil.rmtree(changed)


@needs_cuda_backend
def test_a_newer_format_is_refused(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = shutil.copytree(bundle.folder, tmp_path / "newer")
    write_sealed(newer / FACTS, read_sealed(newer / FACTS) | {"format": FORMAT + 1})
    assert run(monkeypatch, "compare", bundle.folder, newer) == 2
    assert f"format must be at most {FORMAT}, got {FORMAT + 1}" in capsys.readouterr().err
    assert run(monkeypatch, "compare", bundle.folder, tmp_path) == 2
    assert "must be a bundle made by twintune parity record" in capsys.readouterr().err


@needs_cuda_backend
def test_what_is_kept_is_bounded_and_still_compares(
    recordings: Recordings, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds = {"STORED_TOKENS": 200, "LOGIT_NUMBERS": 4000, "HIDDEN_NUMBERS": 2000, "MATRIX_NUMBERS": 5000}
    with monkeypatch.context() as patch:
        for name, bound in bounds.items():
            patch.setattr(selection, name, bound)
            if hasattr(sys.modules[record.__module__], name):
                patch.setattr(sys.modules[record.__module__], name, bound)
        small = record(recordings.recipe(KIND, "cuda"), tmp_path / "small", Settings())
    assert size(small) < size(bundle) / 2
    assert len(small.arrays("rows")["numbers"]) < len(small.arrays("rows")["digests"])
    verdict = compare(small, bundle)
    assert [rung.status for rung in verdict.rungs] == ["same"] * len(LADDER), verdict.first_difference


@needs_cuda_backend
def test_a_run_that_fails_still_tells_why(
    recordings: Recordings, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        training_faults.training_fails(patch)
        failed = record(recordings.recipe(KIND, "cuda"), tmp_path / "failed", Settings(steps=2))
    rung = compare(bundle, failed).first_difference
    assert rung is not None
    assert rung.number == 8
    assert "training failed on failed: step 1: loss must be finite" in rung.cause


@needs_cuda_backend
def test_record_and_cross_from_the_command_line(
    recordings: Recordings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recordings.recipe(KIND, "cuda")
    recipe = recordings.recipes[KIND]
    monkeypatch.setattr(sys, "argv", ["twintune"])
    one, other = tmp_path / "one", tmp_path / "other"
    shared = ["--backend", "cuda", "--device", "cpu", "--steps", "3", "--prompts", "1"]
    commands: list[list[str | Path]] = [
        ["record", recipe, "-o", one, *shared],
        ["record", recipe, "-o", other, *shared, "--peer", one],
        ["cross", recipe, one, other, "--device", "cpu"],
        ["compare", one, other],
    ]
    for arguments in commands:
        assert run(monkeypatch, *arguments) == 0, capsys.readouterr().err
    assert "The same job: 12 of 12 rungs measured" in capsys.readouterr().out
    measures = compare(open_bundle(one), open_bundle(other)).rungs[9].measures
    assert len(measures) == 3  # the matrices, and each adapter under the other backend


def size(bundle: Bundle) -> int:
    return sum(file.stat().st_size for file in bundle.folder.rglob("*") if file.is_file())
