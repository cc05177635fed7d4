import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from twintune import backends
from twintune.backends import choose_backend, has_npu, load_backend, missing_packages
from twintune.errors import UserError

Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Make only the named packages look installed."""

    def only(*packages: str) -> None:
        real = importlib.util.find_spec("pytest")
        monkeypatch.setattr(backends, "find_spec", lambda name: real if name in packages else None)

    return only


def has_device(monkeypatch: pytest.MonkeyPatch, present: bool) -> None:
    monkeypatch.setattr(backends, "has_npu", lambda: present)


def test_missing_packages_are_named(install: Install) -> None:
    install("torch", "mindspore", "mindformers")
    assert missing_packages("cuda") == ["peft"]
    assert missing_packages("ascend") == []


@pytest.mark.parametrize(
    ("packages", "npu", "value", "reason"),
    [
        (("torch", "peft"), False, "cuda", "only its packages are installed"),
        (("torch", "peft"), True, "cuda", "only its packages are installed"),
        (("mindspore", "mindformers"), False, "ascend", "only its packages are installed"),
        (("torch", "peft", "mindspore", "mindformers"), False, "cuda", "both are installed and no NPU is here"),
        (("torch", "peft", "mindspore", "mindformers"), True, "ascend", "both are installed and an NPU is here"),
    ],
)
def test_auto_takes_what_is_there_and_says_why(
    install: Install, monkeypatch: pytest.MonkeyPatch, packages: tuple[str, ...], npu: bool, value: str, reason: str
) -> None:
    install(*packages)
    has_device(monkeypatch, npu)
    choice = choose_backend("auto")
    assert (choice.value, choice.reason) == (value, reason)


def test_auto_without_any_says_what_to_install(install: Install) -> None:
    install("torch")
    with pytest.raises(UserError, match=r"got neither; run: pip install 'twintune\[cuda\]' or 'twintune\[ascend\]'"):
        choose_backend("auto")


@pytest.mark.parametrize(
    ("asked", "there", "missing"),
    [
        ("cuda", (), "torch, peft"),
        ("cuda", ("torch",), "peft"),
        ("ascend", ("torch", "peft"), "mindspore, mindformers"),
    ],
)
def test_a_missing_extra_is_named_with_its_command(
    install: Install, asked: str, there: tuple[str, ...], missing: str
) -> None:
    install(*there)
    with pytest.raises(UserError) as caught:
        choose_backend(asked)
    (message,) = caught.value.messages
    assert missing in message
    assert f"pip install 'twintune[{asked}]'" in message


def test_the_asked_one_is_taken(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("torch", "peft", "mindspore", "mindformers")
    has_device(monkeypatch, True)
    assert choose_backend("cuda").value == "cuda"
    assert choose_backend("ascend").value == "ascend"


@pytest.mark.parametrize("asked", ["npu", "torch", ""])
def test_another_name_is_refused_and_not_taken_for_ascend(asked: str) -> None:
    with pytest.raises(UserError, match="--backend must be auto, cuda or ascend, got"):
        choose_backend(asked)


def test_an_npu_needs_its_device_file_and_cann(monkeypatch: pytest.MonkeyPatch) -> None:
    def devices(*names: str) -> None:
        monkeypatch.setattr(
            Path, "glob", lambda _, pattern: iter(Path(name) for name in names if Path(name).match(pattern))
        )

    monkeypatch.setenv("ASCEND_HOME_PATH", "/usr/local/Ascend")
    devices("/dev/davinci_manager")
    assert not has_npu()
    devices("/dev/davinci0", "/dev/davinci_manager")
    assert has_npu()
    monkeypatch.delenv("ASCEND_HOME_PATH")
    assert not has_npu()


@pytest.mark.parametrize("name", ["cuda", "ascend"])
def test_a_backend_is_the_one_that_was_named(name: backends.Name) -> None:
    if missing := missing_packages(name):
        pytest.skip(f"{', '.join(missing)} not installed")
    assert load_backend(name).name == name
