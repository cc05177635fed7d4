"""Tokens a second of generation on MindSpore: with the cache, without it, and on PyTorch's CPU beside them.

    python scripts/bench_generate_ascend.py [--layers 6] [--batch 1] [--context 512] [--rounds 3]
    python scripts/bench_generate_ascend.py --model smollm2-135m-instruct

Greedy texts that begin with 8 tokens and go on to the context's length, rounds alternate, medians. Without the cache
each token is a forward of the whole padded context with the head on one position, as MindFormers' generate does it
with `use_past: False`; a few of those tell, as each costs the same. Compiling is told apart. The network has
SmolLM2-135M's shape with fewer layers and random weights, unless --model names one.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections import defaultdict
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.backends import LanguageModel, load_backend
from twintune.models import resolve_model
from twintune.recipe_sections import ModelSection
from twintune.training import versions

SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,  # at the usual 0.02 greedy text repeats itself
}
PROMPT = 8  # tokens
EARLY, LATE, AROUND = 50, 500, 20  # the 50th and the 500th new token, each the median of so many
WITHOUT = 5  # tokens without the cache


def main() -> None:
    """Measure, compare the texts and print a Markdown table and a JSON line."""
    arguments = parse_arguments()
    section = ModelSection(name_or_path=arguments.model or str(save_random_model(arguments.layers)))
    folder = resolve_model(section)
    models = {
        name: load_backend(name).load_model(folder, None, pad_token_id=0, device="cpu", dtype="float32")
        for name in ("ascend", "cuda")
    }
    prompts = np.random.default_rng(0).integers(3, 4096, (arguments.batch, PROMPT)).tolist()
    new = arguments.context - PROMPT
    began = time.process_time()
    decode(models["ascend"], prompts, new, steps=2)
    compiling = time.process_time() - began
    whole = WholeRows(models["ascend"], arguments)
    seconds: dict[str, list[list[float]]] = defaultdict(list)
    texts = {}
    for _ in range(arguments.rounds):
        for name, model in models.items():
            texts[name], measured = decode(model, prompts, new, steps=new - 1)
            seconds[name].append(measured)
        seconds["whole rows"].append([whole.token(texts["ascend"]) for _ in range(WITHOUT)])
    same = sum(one == other for one, other in zip(texts["ascend"], texts["cuda"], strict=True))
    print_table(arguments, seconds, compiling, f"{same} of {len(prompts)} texts are the same on both backends")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", help="a folder or the embedded model's name, in place of random weights")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--context", type=int, default=512, help="tokens of a whole text")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def save_random_model(layers: int) -> Path:
    """A LLaMA folder with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = Path(mkdtemp(prefix="bench-generate-"))
    LlamaForCausalLM(LlamaConfig(**SHAPE, num_hidden_layers=layers)).save_pretrained(folder)
    return folder


def decode(model: LanguageModel, prompts: list[list[int]], new: int, steps: int) -> tuple[list[list[int]], list[float]]:
    """Greedy texts, and the seconds of each step."""
    texts = [list(prompt) for prompt in prompts]
    logits = model.start(prompts, new)
    seconds = []
    for _ in range(steps):
        tokens = append(texts, logits)
        began = time.process_time()
        logits = model.step(tokens)
        seconds.append(time.process_time() - began)
    append(texts, logits)
    return texts, seconds


def append(texts: list[list[int]], logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """The likeliest token of each row, at its end too."""
    tokens: NDArray[np.int64] = logits.argmax(axis=1)
    for text, token in zip(texts, tokens.tolist(), strict=True):
        text.append(token)
    return tokens


class WholeRows:
    """The network on the whole context for every token."""

    def __init__(self, model: Any, arguments: argparse.Namespace) -> None:
        from mindspore import Tensor

        self.network, self.tensor = model.network, Tensor
        self.lengths = Tensor(np.full(arguments.batch, arguments.context, np.int32))
        self.token(np.ones((arguments.batch, arguments.context), np.int32).tolist())  # compiles it

    def token(self, texts: list[list[int]]) -> float:
        """Seconds of one token of each text."""
        began = time.process_time()
        self.network(self.tensor(np.array(texts, np.int32)), batch_valid_length=self.lengths)[0].asnumpy()
        return time.process_time() - began


def print_table(
    arguments: argparse.Namespace, seconds: dict[str, list[list[float]]], compiling: float, same: str
) -> None:
    """Tokens a second, times whole rows, and what a late token takes beside an early one."""
    named = arguments.model or f"LLaMA {SHAPE}, {arguments.layers} layers"
    told = ", ".join(f"{name} {number}" for name, number in versions().items())
    print(f"{named}; batch {arguments.batch}, {arguments.context} tokens, float32; {platform.machine()}, "
          f"OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}; {told}")  # fmt: skip
    print(f"{same}; {compiling:.0f} s to build and compile, of the process' work\n")
    print("| by | tokens/s | times whole rows | 500th token, of the 50th |\n| --- | ---: | ---: | ---: |")
    a_token = {name: statistics.median(map(statistics.mean, rounds)) for name, rounds in seconds.items()}
    line = {}
    for name, rounds in seconds.items():
        speed, times = arguments.batch / a_token[name], a_token["whole rows"] / a_token[name]
        late = [around(steps, LATE) / around(steps, EARLY) for steps in rounds if len(steps) > LATE]
        ratio = statistics.median(late) if late else None
        print(f"| {name} | {speed:,.1f} | {times:.1f} | {'' if ratio is None else f'{ratio:.2f}'} |")
        line[name] = {"tokens_per_second": speed, "times_whole_rows": times, "late_of_early": ratio}
    print(json.dumps(line))


def around(seconds: list[float], number: int) -> float:
    """The median step near one."""
    return statistics.median(seconds[number - AROUND // 2 : number + AROUND // 2])


if __name__ == "__main__":
    main()
