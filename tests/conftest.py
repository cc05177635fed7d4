"""Fixtures that several folders of tests share."""

import gc
import os
from pathlib import Path

import pytest

from tests.tiny_tokenizers import save_chatml_tokenizer, save_fast_twin, save_sentencepiece_model

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read at Triton's first import: Liger's kernels run on a CPU
SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"


def pytest_collection_finish() -> None:
    """Leave what the frameworks made on import out of every later collection: a tenth of each graph's compile."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let the interpreter free it all as it ends: Triton lists what is left."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real data of {SHARED_DATA} is not here")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fast tokenizer with a ChatML template, eos <|im_end|>, pad <|endoftext|>."""
    return save_chatml_tokenizer(tmp_path_factory.mktemp("tokenizers") / "chatml")


@pytest.fixture(scope="session")
def tiny_sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA-like tokenizer.model, alone in its folder."""
    return save_sentencepiece_model(tmp_path_factory.mktemp("tokenizers") / "sentencepiece")


@pytest.fixture(scope="session")
def tiny_fast_twin_folder(tmp_path_factory: pytest.TempPathFactory, tiny_sentencepiece_folder: Path) -> Path:
    """The fast tokenizer of tiny_sentencepiece_folder."""
    folder = tmp_path_factory.mktemp("tokenizers") / "twin"
    return save_fast_twin(tiny_sentencepiece_folder / "tokenizer.model", folder)
