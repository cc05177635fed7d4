"""A model on this machine in the place of an endpoint."""

from pathlib import Path

import pytest

from tests.fake_backend import FakeBackend
from tests.tiny_tokenizers import save_chatml_tokenizer
from twintune.backends import Choice
from twintune.reasoning.local import open_local
from twintune.recipe import load_recipe

RECIPE = """\
model: {name_or_path: ./nowhere}
data: {train: ./filled.jsonl}
reasoning:
  {input: ./questions.jsonl, model: ./local, temperature: 0, max_attempts: 1, max_new_tokens: 2, max_concurrency: 2}
"""


def test_a_local_model_answers_in_batches_and_draws_anew_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeBackend()
    monkeypatch.setattr("twintune.chat.load_backend", lambda _: fake)
    monkeypatch.setattr("twintune.chat.choose_backend", lambda asked: Choice("fake", f"asked {asked}"))
    save_chatml_tokenizer(tmp_path / "local")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    local = open_local(load_recipe(tmp_path / "recipe.yaml"), drawn=7)
    said = local.chat.tokenizer.decode([5, 5])
    assert local.sampling.seed == 7
    kept = []
    local.ask(["a", "b", "c"], lambda number, answer: kept.append((number, answer)))
    assert kept == [(0, said), (1, said), (2, said)]
    assert local.sampling.seed == 9
    assert [len(tokens) for tokens in fake.appended] == [2, 1]
    assert fake.loaded[0][:2] == (tmp_path / "local", None)
    assert len(local.chat.prompt_ids("a")) > len(local.chat.tokenizer.encode("a", True).ids)  # by its chat template
