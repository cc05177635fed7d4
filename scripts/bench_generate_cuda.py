"""Tokens a second of generation on PyTorch: twintune beside transformers' own generate, on the same network.

    python scripts/bench_generate_cuda.py [--device cpu] [--layers 6] [--prompts 256] [--batch 16] [--rounds 2]

Two jobs, greedy in both, alternating rounds, medians: one prompt of 64 tokens answered alone, and ragged prompts of
16 to 256 tokens in batches, whose answers end where a closing token comes. transformers gets its batches in the
given order, and once sorted by length. The network has SmolLM2-135M's shape with fewer layers and random weights;
1 token in 64 closes a text, so that the answers' lengths are ragged as those of a tuned model are. All texts are
compared token for token.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from twintune.backends.cuda.decode import CudaLanguageModel
from twintune.generation import TextGenerator
from twintune.sampling import Sampling
from twintune.training import versions

SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 4096,
    "initializer_range": 0.2,  # at the usual 0.02 greedy text repeats itself
}
PAD, FIRST_TOKEN = 0, 3
CLOSING = 64  # one token in so many closes a text
SHORTEST, LONGEST = 16, 256  # prompts
ALONE, IN_BATCHES = "one prompt", "ragged prompts"
OURS, GIVEN_ORDER, SORTED = "twintune", "transformers", "transformers, sorted by length"
Prompts = Sequence[list[int]]
Texts = list[list[int]]


class Job(NamedTuple):
    """What is answered."""

    prompts: Prompts
    closing: list[int]
    batch: int
    new_tokens: int


class NoText:
    """A decoder of nothing: the ids are compared."""

    def decode(self, ids: Sequence[int]) -> str:
        """No text."""
        return ""


def main() -> None:
    """Measure, compare the texts and print a Markdown table and a JSON line."""
    arguments = parse_arguments()
    jobs = make_jobs(arguments)
    ways = make_ways(arguments)
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    texts: dict[tuple[str, str], Texts] = {}
    for _ in range(arguments.rounds):
        for job_name, job in jobs.items():
            for way_name, answer in ways.items():
                if (job_name, way_name) == (ALONE, SORTED):
                    continue
                began = clock(arguments.device)
                texts[job_name, way_name] = answer(job)
                seconds[job_name, way_name].append(clock(arguments.device) - began)
    print_table(seconds, texts, arguments)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    return parser.parse_args()


def make_jobs(arguments: argparse.Namespace) -> dict[str, Job]:
    """The prompts of both jobs, and the tokens that close a text."""
    draw = np.random.default_rng(0)
    tokens = np.arange(FIRST_TOKEN, SHAPE["vocab_size"])
    closing = sorted(draw.choice(tokens, len(tokens) // CLOSING, replace=False).tolist())
    lengths = draw.integers(SHORTEST, LONGEST + 1, arguments.prompts)
    ragged = [draw.choice(tokens, length).tolist() for length in lengths]
    return {
        ALONE: Job([draw.choice(tokens, 64).tolist()], [], 1, arguments.new_tokens),
        IN_BATCHES: Job(ragged, closing, arguments.batch, arguments.new_tokens),
    }


def make_ways(arguments: argparse.Namespace) -> dict[str, Callable[[Job], Texts]]:
    """Who answers: each a function of a job. Two copies of the network, as ours has its own attention."""
    theirs = new_network(arguments)
    ours = CudaLanguageModel(new_network(arguments), pad_token_id=PAD, device=arguments.device, dtype=arguments.dtype)

    def sorted_by_length(job: Job) -> Texts:
        order = sorted(range(len(job.prompts)), key=lambda number: len(job.prompts[number]))
        texts = with_transformers(theirs, job._replace(prompts=[job.prompts[number] for number in order]))
        return [text for _, text in sorted(zip(order, texts, strict=True))]

    return {
        OURS: lambda job: with_twintune(ours, job),
        GIVEN_ORDER: lambda job: with_transformers(theirs, job),
        SORTED: sorted_by_length,
    }


def new_network(arguments: argparse.Namespace) -> Any:
    """A LLaMA with random weights."""
    config = LlamaConfig(
        **SHAPE, num_hidden_layers=arguments.layers, max_position_embeddings=2048, attn_implementation="sdpa"
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(arguments.device, getattr(torch, arguments.dtype)).eval()


def with_twintune(model: CudaLanguageModel, job: Job) -> Texts:
    """The texts of our generator."""
    generator = TextGenerator(model, NoText(), job.closing, job.batch)
    return generator.generate_ids(job.prompts, Sampling(job.new_tokens))


def with_transformers(model: Any, job: Job) -> Texts:
    """The texts of transformers' generate, batch by batch, padded on the left."""
    texts: Texts = []
    for start in range(0, len(job.prompts), job.batch):
        prompts = job.prompts[start : start + job.batch]
        longest = max(map(len, prompts))
        ids = torch.tensor([[PAD] * (longest - len(prompt)) + prompt for prompt in prompts], device=model.device)
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        output = model.generate(
            input_ids=ids,
            attention_mask=mask.to(model.device),
            max_new_tokens=job.new_tokens,
            do_sample=False,
            eos_token_id=job.closing or None,
            pad_token_id=PAD,
        )
        texts += [until_closed(row, job.closing) for row in output[:, longest:].tolist()]
    return texts


def until_closed(row: list[int], closing: Sequence[int]) -> list[int]:
    """The tokens before the first closing one."""
    return row[: next((place for place, token in enumerate(row) if token in closing), None)]


def clock(device: str) -> float:
    """Seconds: of this process' work on a CPU that others share, of the wall on a GPU of our own."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def print_table(
    seconds: dict[tuple[str, str], list[float]], texts: dict[tuple[str, str], Texts], arguments: argparse.Namespace
) -> None:
    """Medians, how many times transformers they are, and how many texts are the same."""
    place = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.machine()
    told = ", ".join(f"{name} {number}" for name, number in versions().items())
    print(f"LLaMA {SHAPE}, {arguments.layers} layers, {arguments.dtype}; {place}, OMP_NUM_THREADS "
          f"{os.environ.get('OMP_NUM_THREADS', 'not set')}; {told}")  # fmt: skip
    lengths = [len(text) for text in texts[IN_BATCHES, OURS]]
    print(f"answers: {np.mean(lengths):.0f} tokens in the mean, {np.percentile(lengths, [10, 50, 90, 100])}\n")
    print("| job | by | tokens/s | times transformers | same texts |\n| --- | --- | ---: | ---: | ---: |")
    line = {}
    for (job, way), measured in seconds.items():
        count = sum(map(len, texts[job, way]))
        speed = count / statistics.median(measured)
        ratio = statistics.median(seconds[job, GIVEN_ORDER]) / statistics.median(measured)
        same = sum(one == other for one, other in zip(texts[job, way], texts[job, GIVEN_ORDER], strict=True))
        print(f"| {job} | {way} | {speed:,.1f} | {ratio:.2f} | {same} of {len(texts[job, way])} |")
        line[f"{job}, {way}"] = {"tokens_per_second": speed, "times_transformers": ratio, "seconds": measured}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
