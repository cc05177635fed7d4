"""What the devices of a run share besides its rows, as the recipe asks for it."""

from collections.abc import Iterator
from importlib.util import find_spec

from twintune.backends.job import Parallel
from twintune.errors import raise_collected
from twintune.recipe import Recipe

ZERO_STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}  # with nothing shared, zero0 is ddp
BASE_SHARDED = {"fsdp": "cannot shard NF4 codes", "zero3": "is not tested with NF4 codes"}
ZERO_OPTIMIZERS = ("adamw_torch", "adam_weight_decay", "sgd", "lion_32bit")


def choose_parallel(recipe: Recipe, backend: str, world_size: int) -> Parallel:
    """The keys of the chosen backend's section.

    Args:
        recipe: with every override in it.
        backend: `cuda` or `ascend`.
        world_size: ranks.

    Raises:
        UserError: for keys that do not fit the ranks or the model.
    """
    raise_collected(f"recipe: {problem}" for problem in _problems(recipe, backend, world_size))
    if backend == "ascend":
        asked = recipe.backend.ascend
        return Parallel(model_parallel=asked.model_parallel, pipeline_stage=asked.pipeline_stage)
    kind = recipe.backend.cuda.parallel if world_size > 1 else "ddp"
    return Parallel(sharded=kind in BASE_SHARDED, zero_stage=ZERO_STAGES.get(kind, 0))


def _problems(recipe: Recipe, backend: str, world_size: int) -> Iterator[str]:
    if backend != "ascend":
        yield from _cuda_problems(recipe, world_size)
        return
    asked = recipe.backend.ascend
    group = asked.model_parallel * asked.pipeline_stage
    data_parallel = world_size // group if asked.data_parallel is None else asked.data_parallel
    if data_parallel * group != world_size:
        yield (
            "backend.ascend: data_parallel x model_parallel x pipeline_stage must be the number of ranks, "
            f"got {data_parallel} x {asked.model_parallel} x {asked.pipeline_stage} for {world_size}; "
            "change them, --nproc or --nnodes"
        )


def _cuda_problems(recipe: Recipe, world_size: int) -> Iterator[str]:
    kind = recipe.backend.cuda.parallel
    rule = "backend.cuda.parallel must be ddp"
    if kind in BASE_SHARDED and recipe.model.load_in_4bit:
        yield f"{rule} with model.load_in_4bit, got {kind}, which {BASE_SHARDED[kind]}"
    if kind not in ZERO_STAGES:
        return
    rule += " or fsdp"
    if recipe.train.optim not in ZERO_OPTIMIZERS:
        tested = ", ".join(ZERO_OPTIMIZERS)
        yield f"{rule} with train.optim {recipe.train.optim}, got {kind}, which is tested with {tested} alone"
    if recipe.backend.dtype == "float16":
        yield f"{rule} with backend.dtype float16, got {kind}, which adds gradients up before they are divided"
    if world_size > 1 and not find_spec("deepspeed"):
        yield f"{rule} where deepspeed is not installed, got {kind}; run: pip install 'twintune[cuda,deepspeed]'"
