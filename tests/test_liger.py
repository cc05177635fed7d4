"""backend.cuda.use_liger_kernel and torch_compile: what is asked for is had, or refused with the reason."""

from pathlib import Path

import pytest

from twintune.errors import UserError
from twintune.liger import choose_liger
from twintune.recipe import Recipe, load_recipe

LLAMA = {"model_type": "llama"}


def recipe_with(*keys: str) -> Recipe:
    sections = {"model": {"name_or_path": "model"}, "data": {"train": "data.json"}}
    return Recipe.model_validate({**sections, "backend": {"cuda": dict.fromkeys(keys, True)}})


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twintune.liger.find_spec", lambda name: name)


@pytest.mark.usefixtures("installed")
def test_it_is_taken_where_it_is_asked_for() -> None:
    assert choose_liger(recipe_with("use_liger_kernel"), "cuda", "cuda", LLAMA)
    assert not choose_liger(recipe_with(), "cuda", "cuda", LLAMA)
    assert not choose_liger(recipe_with("use_liger_kernel"), "ascend", "npu", LLAMA)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("device", "family", "words"),
    [("cpu", "llama", "no GPU, got true on cpu"), ("cuda", "phi", "for a phi, got true; .* llama, mistral, qwen2")],
)
def test_it_is_refused_where_it_cannot_be(device: str, family: str, words: str) -> None:
    with pytest.raises(UserError, match=rf"use_liger_kernel must be false .*{words}"):
        choose_liger(recipe_with("use_liger_kernel"), "cuda", device, {"model_type": family})


def test_it_is_refused_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twintune.liger.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'twintune\[cuda,liger\]'"):
        choose_liger(recipe_with("use_liger_kernel"), "cuda", "cuda", LLAMA)


def test_torch_compile_is_refused_with_what_was_measured(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "model: {name_or_path: m}\ndata: {train: d.json}\nbackend: {cuda: {torch_compile: true}}\n", encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"backend\.cuda\.torch_compile must be false \(.*38 s.*\), got True"):
        load_recipe(tmp_path / "recipe.yaml")
