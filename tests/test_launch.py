import socket
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.fake_backend import FakeBackend
from tests.smallest_recipe import write_smallest_recipe
from twintune.backends import Machines
from twintune.backends.job import Lora, Optimizer, Parallel, Rank, Schedule, TrainJob
from twintune.errors import UserError
from twintune.launch import choose_machines, launch
from twintune.parallel_plan import choose_parallel
from twintune.ranks import find_launched, first_machine, set_meeting_place
from twintune.recipe import Recipe, load_recipe
from twintune.schedule import row_order
from twintune.together import Together
from twintune.training_plan import on_one_device

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "none"}
SLURM = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[03-04],login",
    "SLURM_JOB_ID": "70012",
}
MSRUN = {"MS_ROLE": "MS_WORKER", "RANK_ID": "1", "MS_WORKER_NUM": "2", "DEVICE_ID": "1"}


@pytest.mark.parametrize(
    ("environment", "launcher", "rank"),
    [
        ({}, "none", Rank()),
        (TORCHRUN, "torchrun", Rank(3, 8, 1)),
        (TORCHRUN | {"ACCELERATE_MIXED_PRECISION": "no"}, "accelerate launch", Rank(3, 8, 1)),
        (SLURM, "Slurm", Rank(5, 8, 1)),
        (MSRUN, "msrun", Rank(1, 2, 1)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "70012"}, "none", Rank()),  # sbatch's own script
    ],
)
def test_the_environment_says_which_rank_this_is(environment: dict[str, str], launcher: str, rank: Rank) -> None:
    launched = find_launched(environment)
    assert (launched.launcher, launched.rank) == (launcher, rank)


def test_msruns_scheduler_is_no_rank() -> None:
    assert find_launched({"MS_ROLE": "MS_SCHED", "RANK_ID": "0", "MS_WORKER_NUM": "2"}).is_scheduler


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": "8"}, "RANK must be below WORLD_SIZE 8, got 8"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE must be a whole number, as torchrun sets it, got 'many'"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK must be a whole number, as torchrun sets it, got ''"),
    ],
)
def test_variables_that_cannot_be_are_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_launched(TORCHRUN | change)


def test_slurm_meets_on_its_first_machine_at_a_port_of_the_job() -> None:
    environment = dict(SLURM)
    set_meeting_place(environment, find_launched(environment))
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("gpu03", "20012")
    environment["MASTER_ADDR"] = "given"
    set_meeting_place(environment, find_launched(environment))
    assert environment["MASTER_ADDR"] == "given"
    assert first_machine("a,b[1-2]") == "a"
    with pytest.raises(UserError, match="must name machines, got ''"):
        first_machine("")


def test_without_a_meeting_place_nothing_starts() -> None:
    with pytest.raises(UserError, match="MASTER_ADDR must say where the ranks meet, got nothing"):
        set_meeting_place(dict(TORCHRUN), find_launched(TORCHRUN))
    with pytest.raises(UserError, match="MASTER_PORT must be a port, got '0'"):
        set_meeting_place(TORCHRUN | {"MASTER_ADDR": "here", "MASTER_PORT": "0"}, find_launched(TORCHRUN))


def test_one_machine_takes_a_free_port() -> None:
    machines = choose_machines(4, 1, 0, None)
    assert (machines.nproc, machines.nnodes, machines.host) == (4, 1, "127.0.0.1")
    assert 0 < machines.port < 65536
    assert choose_machines(8, 2, 1, "10.0.0.1:29500") == Machines(8, 2, 1, "10.0.0.1", 29500)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, 2, 2, "a:1"), "--node-rank must be below --nnodes 2, got 2"),
        ((2, 2, 0, None), "--master must be the HOST:PORT of the first machine with --nnodes 2, got nothing"),
        ((2, 1, 0, "29500"), "--master must be HOST:PORT, such as 10.0.0.1:29500, got '29500'"),
        ((2, 2, 1, "a:70000"), "--master must be HOST:PORT"),
    ],
)
def test_machines_that_cannot_be_are_refused(arguments: tuple[int, int, int, str | None], message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_machines(*arguments)


def test_a_port_in_use_is_refused() -> None:
    with closing(socket.socket()) as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=f"--master must name a free port, got {port}: Address already in use"):
            choose_machines(2, 1, 0, f"127.0.0.1:{port}")


def test_what_a_launcher_started_starts_no_more() -> None:
    machines, backend = Machines(2, 1, 0, "127.0.0.1", 29500), FakeBackend()
    with pytest.raises(UserError, match="--nproc must be left out where torchrun starts the processes"):
        launch(backend, ["-m", "twintune"], machines, TORCHRUN)
    assert not backend.launched
    launch(backend, ["-m", "twintune"], machines, {})
    assert backend.launched == [(["-m", "twintune"], machines)]


@dataclass
class ThreadGroup:
    """The Group protocol between threads."""

    size: int
    rank: int = 0
    texts: dict[int, str] = field(default_factory=dict)
    barrier: threading.Barrier | None = None

    def of(self, rank: int) -> "ThreadGroup":
        self.barrier = self.barrier or threading.Barrier(self.size, timeout=20)
        return ThreadGroup(self.size, rank, self.texts, self.barrier)

    def exchange(self, text: str) -> list[str]:
        assert self.barrier is not None
        self.texts[self.rank] = text
        self.barrier.wait()
        said = [self.texts[number] for number in range(self.size)]
        self.barrier.wait()
        return said


def as_ranks(size: int, work: Callable[[Together], Any]) -> list[Any]:
    """What the work gives or raises on each rank."""
    group, outcomes = ThreadGroup(size), [None] * size

    def run(together: Together) -> None:
        try:
            outcomes[together.rank.number] = work(together)
        except BaseException as error:  # what ends a process ends a thread here
            outcomes[together.rank.number] = error  # type: ignore[call-overload]  # a list of anything

    members = [Together(Rank(number, size, number), group.of(number)) for number in range(size)]
    threads = [threading.Thread(target=run, args=(member,)) for member in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_ranks_that_agree_go_on() -> None:
    assert as_ranks(2, lambda together: together.require_equal({"rows": "abc"})) == [None, None]


def test_ranks_with_other_recipes_or_rows_are_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    def work(together: Together) -> None:
        seeds = (0, 0, 7)
        with together.one_voice():
            together.require_equal({"rows": "abc", "train.seed": seeds[together.rank.number]})

    outcomes = as_ranks(3, work)
    assert [type(outcome) for outcome in outcomes] == [SystemExit] * 3
    assert [outcome.code for outcome in outcomes] == [2, 2, 2]
    told = "rank 2: train.seed must be that of rank 0, 0, got 7; give all ranks the same recipe, overrides and data"
    assert capsys.readouterr().err == f"twintune: {told}\n"


def test_an_error_of_one_rank_ends_all_with_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    def work(together: Together) -> None:
        with together.one_voice():
            if together.rank.number == 1:
                raise UserError("data.json: it must be there, got nothing")
            together.exchange({})

    assert [outcome.code for outcome in as_ranks(2, work)] == [2, 2]
    assert capsys.readouterr().err == "twintune: rank 1: data.json: it must be there, got nothing\n"


def test_the_first_rank_of_a_machine_goes_before_its_others() -> None:
    order = []

    def work(together: Together) -> None:
        with together.one_machine_first():
            order.append(together.rank.number)

    as_ranks(3, work)
    assert order[0] == 0


def test_one_process_raises_as_ever() -> None:
    with pytest.raises(UserError, match="alone"), Together(Rank(), None).one_voice():
        raise UserError("alone")


def recipe_on(folder: Path, *overrides: str) -> Recipe:
    return load_recipe(write_smallest_recipe(folder, weights=False), overrides)


@pytest.mark.parametrize(
    ("overrides", "backend", "message"),
    [
        (["backend.ascend.model_parallel=3"], "ascend", "must be the number of ranks, got 2 x 3 x 1 for 8"),
        (["backend.ascend.data_parallel=2"], "ascend", "must be the number of ranks, got 2 x 1 x 1 for 8"),
        (["backend.cuda.parallel=fsdp", "model.load_in_4bit=true"], "cuda", "must be ddp with model.load_in_4bit"),
        (["backend.cuda.parallel=zero3", "model.load_in_4bit=true"], "cuda", "which is not tested with NF4 codes"),
        (["backend.cuda.parallel=zero1", "train.optim=adamw_8bit"], "cuda", "which is tested with adamw_torch, adam"),
        (["backend.cuda.parallel=zero2", "backend.dtype=float16"], "cuda", "adds gradients up before they are divided"),
    ],
)
def test_devices_that_cannot_share_are_refused(
    tmp_path: Path, overrides: list[str], backend: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        choose_parallel(recipe_on(tmp_path, *overrides), backend, 8)


def test_each_backend_has_its_own_keys(tmp_path: Path) -> None:
    recipe = recipe_on(tmp_path, "backend.cuda.parallel=fsdp", "backend.ascend.model_parallel=4")
    assert choose_parallel(recipe, "cuda", 8) == Parallel(sharded=True)
    assert choose_parallel(recipe, "ascend", 8) == Parallel(model_parallel=4)
    assert choose_parallel(recipe, "cuda", 1) == Parallel(), "one device has nothing to share"


@pytest.mark.parametrize(
    ("kind", "parallel"),
    [
        ("zero0", Parallel()),
        ("zero1", Parallel(zero_stage=1)),
        ("zero2", Parallel(zero_stage=2)),
        ("zero3", Parallel(zero_stage=3, sharded=True)),
    ],
)
def test_deepspeeds_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, parallel: Parallel) -> None:
    recipe = recipe_on(tmp_path, f"backend.cuda.parallel={kind}")
    monkeypatch.setattr("twintune.parallel_plan.find_spec", lambda _: True)
    assert choose_parallel(recipe, "cuda", 8) == parallel
    monkeypatch.setattr("twintune.parallel_plan.find_spec", lambda _: None)
    assert choose_parallel(recipe, "cuda", 1) == Parallel()
    if parallel.zero_stage:
        with pytest.raises(UserError, match=f"got {kind}; run: pip install 'twintune\\[cuda,deepspeed\\]'"):
            choose_parallel(recipe, "cuda", 8)


@pytest.mark.parametrize(("accumulation", "batch", "devices"), [(1, 4, 1), (2, 2, 1), (2, 1, 2), (1, 2, 2), (1, 1, 4)])
def test_a_step_has_the_same_rows_however_they_are_dealt(
    tmp_path: Path, accumulation: int, batch: int, devices: int
) -> None:
    keys = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": batch}
    recipe = recipe_on(tmp_path, *(f"train.{name}={value}" for name, value in keys.items()))
    order = row_order(12, on_one_device(recipe.train, devices))
    job = make_order_job(order, devices)
    places = np.stack([replace(job, rank=Rank(number, devices)).own_places for number in range(devices)])
    assert sorted(places.ravel().tolist()) == list(range(order.size)), "every row is some rank's, once"
    rows = np.stack([replace(job, rank=Rank(number, devices)).own_order for number in range(devices)])
    assert np.array_equal(rows, order.ravel()[places])
    expected = row_order(12, recipe.train.model_copy(update=dict(zip(keys, (1, 4), strict=True))))
    assert np.array_equal(order.reshape(len(order), 4), expected.reshape(len(order), 4))


def make_order_job(order: NDArray[np.int64], devices: int) -> TrainJob:
    """A job of which nothing but the order is looked at."""
    nowhere = Path("nowhere")
    return TrainJob(
        model=nowhere,
        rows=nowhere,
        order=order,
        row_length=1,
        pad_token_id=0,
        initial_adapter=nowhere,
        output_dir=nowhere,
        adapter=Lora(1, 1, 0.0, ()),
        optimizer=Optimizer(1e-3, 0.0, 0.9, 0.999, 1e-8, 1.0),
        schedule=Schedule("constant", 0, len(order)),
        device="cpu",
        dtype="float32",
        seed=0,
        overrides={},
        rank=Rank(0, devices),
    )
