"""The tree as a whole: what is packaged, what the front end imports, what no tracked file may hold."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[1]
FRAMEWORKS = ("torch", "mindspore", "mindformers", "transformers", "datasets", "fastchat")
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:root|home|Users|work|mnt|opt/wheels|tmp/\w)")
REGISTRY_HOST = re.compile(r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|npmjs\.org|deb\.debian\.org")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def sources(project: dict[str, Any]) -> dict[str, Path]:
    """The file of every module by dotted name; the longest mapped folder gives the package."""
    found = {}
    for package, folder in project["tool"]["setuptools"]["package-dir"].items():
        for path in (ROOT / folder).rglob("*.py"):
            inner = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *inner)).removesuffix(".__init__")] = path
    return found


@pytest.fixture(scope="module")
def site(project: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain install, built from a copy: a build in the checkout would meet that of another environment."""
    folder = tmp_path_factory.mktemp("plain")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for mapped in project["tool"]["setuptools"]["package-dir"].values():
        shutil.copytree(ROOT / mapped, folder / mapped, ignore=shutil.ignore_patterns("__pycache__"))
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", "site", ".")
    subprocess.run([sys.executable, "-m", "pip", "install", *options], cwd=folder, check=True)
    return folder / "site"


def run_in(site: Path, code: str, *arguments: str) -> Any:
    """The JSON that `code` prints in a fresh Python which sees `site` before the editable install."""
    code = f"import json, sys; sys.path.insert(0, {str(site)!r}); {code}"
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, cwd=site, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)  # noqa: S607
    return [ROOT / name for name in names.stdout.split("\0") if (ROOT / name).is_file()]


def test_every_package_is_listed(project: dict[str, Any], sources: dict[str, Path]) -> None:
    packages = {name if path.name == "__init__.py" else name.rpartition(".")[0] for name, path in sources.items()}
    assert sorted(packages) == project["tool"]["setuptools"]["packages"]


def test_every_module_is_in_a_plain_install(site: Path, sources: dict[str, Path]) -> None:
    code = "from importlib.util import find_spec; print(json.dumps({n: find_spec(n).origin for n in sys.argv[1:]}))"
    origins = {name: Path(origin) for name, origin in run_in(site, code, *sources).items()}
    assert {name: origin.is_relative_to(site) for name, origin in origins.items()} == dict.fromkeys(sources, True)
    assert {name for name in sources if origins[name].read_bytes() != sources[name].read_bytes()} == set()
    assert len(list(site.glob("twintune/**/*.py"))) == len(sources)


def test_types_are_shipped(site: Path) -> None:
    assert (site / "twintune" / "py.typed").is_file()


def test_the_front_end_imports_no_framework(site: Path, sources: dict[str, Path]) -> None:
    backends = ("twintune.backends.cuda", "twintune.backends.ascend")
    names = [name for name in sources if not name.startswith(backends) and name != "twintune.__main__"]  # it runs
    code = (
        "from importlib import import_module; modules = [import_module(n) for n in sys.argv[1:]]; "
        f"print(json.dumps([n for n in {FRAMEWORKS} if n in sys.modules]))"
    )
    assert run_in(site, code, *names) == []


def test_modules_are_small(sources: dict[str, Path]) -> None:
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in sources.items()}
    assert {name: count for name, count in lines.items() if count > 300} == {}


@pytest.mark.parametrize("rule", [MACHINE_PATH, REGISTRY_HOST], ids=["machine's path", "registry's host"])
def test_no_tracked_file_names_a_machine(rule: re.Pattern[str]) -> None:
    found = []
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in rule.finditer(text)]
    assert found == []


@pytest.mark.parametrize("folder", ["home", "root", "tmp", "work", "Users"])  # spelled out, this file would break it
@pytest.mark.parametrize("text", ["open('/{}/run1')", "PATH=/{}/bin", "see /{}/x"])
def test_the_rule_knows_a_machines_path(text: str, folder: str) -> None:
    assert MACHINE_PATH.search(text.format(folder))


def test_scripts_install_what_is_declared(project: dict[str, Any]) -> None:
    torch = next(name for name in project["project"]["optional-dependencies"]["cuda"] if name.startswith("torch"))
    for script in ("quickstart.sh", "test.sh"):
        assert f'install --quiet "{torch}"' in (ROOT / "scripts" / script).read_text(encoding="utf-8")
