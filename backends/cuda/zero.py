"""DeepSpeed's ZeRO: each rank keeps a share of the moments, from stage 2 on of the gradients, in 3 of all weights.

Rajbhandari et al. 2020, arXiv:1910.02054. DeepSpeed adds gradients up, clips them and gathers what is shared; what a
step is (rows, losses, their normaliser, learning rate) remains that of the other runs.
"""

import logging
import os
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from twintune.backends.cuda.loss import TokenLosses
from twintune.backends.cuda.model import adapter_parameters, adapter_tensors, autocast
from twintune.backends.cuda.optimizer import NOT_KEPT, TORCH_NAMES, set_learning_rate, set_steps
from twintune.backends.cuda.ranks import Sums
from twintune.backends.job import Rank, TrainJob
from twintune.backends.matching import check_matrices
from twintune.converters.training_state import TrainingState
from twintune.errors import UserError


class ZeroUpdate:
    """The Update protocol by DeepSpeed's engine.

    Args:
        job: of several ranks, with a ZeRO stage.
        model: with its adapter; in stage 3 on the CPU, from where the ranks' shares go to their devices.
        optimizer: over the adapter's parameters; DeepSpeed puts this rank's share in their place.
        sums: with the group of the ranks.

    Raises:
        UserError: if DeepSpeed computes on another device, or a rank has ended.
    """

    def __init__(self, job: TrainJob, model: Any, optimizer: Any, sums: Sums) -> None:
        deepspeed = _import_deepspeed(job.device, job.rank)
        self._gathered, self._fragments = deepspeed.zero.GatheredParameters, deepspeed.utils
        self._job, self._model, self._optimizer, self._sums = job, model, optimizer, sums
        self._parameters = adapter_parameters(model)
        whole, config = _AddedUp(model, job.rank.world_size), _settings(job)
        with sums.naming_the_lost():
            if job.parallel.zero_stage == 3:
                deepspeed.zero.Init(module=whole, data_parallel_group=sums.ranks, config_dict_or_path=config)
            self.losses, *_ = deepspeed.initialize(
                model=whole, optimizer=optimizer, mpu=_Ranks(job.rank, sums.ranks), config=config
            )
        if job.parallel.zero_stage == 3:  # the loss takes the head outside of its own forward
            head = model.get_base_model().get_output_embeddings().weight
            deepspeed.zero.register_external_parameter(whole, head)

    def step(self, rate: float) -> float:
        """Move the adapter by what the backward passes left. Returns the norm of the whole gradient before clipping."""
        set_learning_rate(self._optimizer, rate)
        with self._sums.naming_the_lost():
            self.losses.step()
        return float(self.losses.get_global_grad_norm())

    def adapter(self) -> dict[str, NDArray[np.float32]]:
        """As adapter_tensors; every rank must call it."""
        if self._job.parallel.zero_stage < 3:
            return adapter_tensors(self._model)
        with self._sums.naming_the_lost(), self._gathered(list(self._parameters.values())):
            return adapter_tensors(self._model)

    def state(self) -> dict[str, NDArray[Any]]:
        """As optimizer_state; every rank must call it."""
        with self._sums.naming_the_lost():
            return {
                name: self._fragments.safe_get_full_optimizer_state(parameter, moment).cpu().numpy()
                for name, (parameter, moment) in self._moments().items()
            }

    def put_state(self, state: TrainingState, source: str) -> None:
        """As put_in_state; every rank must call it."""
        self._make_state()
        moments = self._moments()
        with self._sums.naming_the_lost(), self._gathered(list(self._parameters.values())):
            shaped = {name: parameter for name, (parameter, _) in moments.items()}
            check_matrices(shaped, state.optimizer, source, "the checkpoint must have the moments of train.optim")
        for name, (parameter, moment) in moments.items():
            value = torch.from_numpy(state.optimizer[name]).to(self._job.device)
            self._fragments.safe_set_full_optimizer_state(parameter, value, moment)
        set_steps(self._optimizer, state.step)

    def _moments(self) -> dict[str, tuple[Any, str]]:
        """The parameter of each moment and the optimizer's own name for it, by the name that a checkpoint has."""
        kept: dict[str, Any] = next(iter(self._optimizer.state.values()), {})
        keys = [key for key, moment in kept.items() if key not in NOT_KEPT and moment is not None]
        return {
            f"{TORCH_NAMES.get(key, key)}.{name}": (parameter, key)
            for name, parameter in self._parameters.items()
            for key in keys
        }

    def _make_state(self) -> None:
        """Have the moments made, which are linked to parameters in a step: one of rate 0 and no gradient."""
        row = torch.arange(1, 9, device=self._job.device)[None] % self._model.get_base_model().config.vocab_size
        self.losses.eval()  # no dropout, whose tokens would have to be numbered
        with autocast(self._job.device, self._job.dtype):
            nothing = self.losses(row, row).sum() * 0.0
        nothing.backward()
        self.step(0.0)
        self.losses.train()


class _AddedUp(TokenLosses):
    """Losses whose gradients come out as sums over ranks, of which DeepSpeed takes the mean."""

    def __init__(self, model: Any, ranks: int) -> None:
        super().__init__(model)
        self._ranks = ranks

    def forward(self, *inputs: Any) -> Any:
        losses = super().forward(*inputs)
        if losses.requires_grad:
            losses.register_hook(lambda gradient: gradient * self._ranks)
        return losses


class _Ranks:
    """Which group DeepSpeed uses, asked as it asks Megatron: ours, which notices a killed rank and is NCCL on GPUs."""

    def __init__(self, rank: Rank, group: Any) -> None:
        self._rank, self._group = rank, group

    def get_data_parallel_group(self) -> Any:
        return self._group

    def get_data_parallel_rank(self) -> int:
        return self._rank.number

    def get_data_parallel_world_size(self) -> int:
        return self._rank.world_size

    def get_model_parallel_group(self) -> None:
        return None

    def get_model_parallel_rank(self) -> int:
        return 0

    def get_model_parallel_world_size(self) -> int:
        return 1


def _settings(job: TrainJob) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": job.batch,
        "managed_gradient_accumulation": False,  # a step is a call of step()
        "gradient_clipping": job.optimizer.max_grad_norm,
        "zero_optimization": {"stage": job.parallel.zero_stage},
        "zero_allow_untested_optimizer": True,  # it has a list of names; tests/backends/cuda/test_zero.py has tested
    }


def _import_deepspeed(device: str, rank: Rank) -> Any:
    os.environ.setdefault("DS_ACCELERATOR", device)
    os.environ["LOCAL_RANK"] = str(rank.local)  # Slurm's processes lack it
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().device_name() != device:
        raise UserError(
            f"DeepSpeed must compute on {device} as the run does, got {get_accelerator().device_name()}; "
            f"set DS_ACCELERATOR={device}"
        )
    deepspeed.utils.logger.setLevel(logging.ERROR)  # it says what it is about to do
    # torch 2.13 has new names for collectives that DeepSpeed calls by the old ones
    warnings.filterwarnings("ignore", "`torch.distributed.[a-z_]*_tensor` is deprecated", FutureWarning)
    if device == "cpu":  # else it compiles collectives in shared memory for minutes, to use none of them
        deepspeed.ops.__compatible_ops__ = {}
    return deepspeed
