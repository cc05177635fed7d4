"""What the devices of a run share besides its rows, as the recipe asks for it."""

from collections.abc import Iterator

from twintune.backends.job import Parallel
from twintune.errors import raise_collected
from twintune.recipe import Recipe


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
    return Parallel(sharded=recipe.backend.cuda.parallel == "fsdp" and world_size > 1)


def _problems(recipe: Recipe, backend: str, world_size: int) -> Iterator[str]:
    if backend != "ascend":
        if recipe.backend.cuda.parallel == "fsdp" and recipe.model.load_in_4bit:
            yield "backend.cuda.parallel must be ddp with model.load_in_4bit, got fsdp, which cannot shard NF4 codes"
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
