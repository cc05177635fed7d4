"""The MindFormers configuration of a job, written in one place; its registry names appear nowhere else.

Two profiles: on an NPU flash attention, fused norms, half precision and data sinking; on CPU the
settings that MindSpore's CPU kernels allow. Only the keys of `model_section` and `context` that
ask for the device differ.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from twintune.backends import Choice
from twintune.backends.ascend.parallel import on_many_devices
from twintune.backends.job import Lora, Optimizer, OptimizerName, PrefixTuning, Schedule, TrainJob
from twintune.converters.names import biased_modules
from twintune.converters.nf4 import BLOCK_SIZE
from twintune.converters.pet_config import to_pet_config
from twintune.errors import UserError
from twintune.models import read_model_config, rotary_size
from twintune.trees import laid_over

LENGTH_MULTIPLE = 16  # NPU matrix units work in blocks of 16
LEAST_COMPRESSED = 2048  # tokens; MindFormers refuses to compress the mask of shorter rows
CONVERSATION_NUMBERS = "conversation_numbers"  # columns of the dataset that say where conversations end
CONVERSATION_ENDS = "conversation_ends"
NETWORK_INPUTS = {CONVERSATION_NUMBERS: "attention_mask", CONVERSATION_ENDS: "actual_seq_len"}  # made of them
SCHEDULES = {
    "linear": "LinearWithWarmUpLR",
    "cosine": "CosineWithWarmUpLR",
    "constant": "ConstantWarmUpLR",
    "constant_with_warmup": "ConstantWarmUpLR",
}

OPTIMIZERS: dict[OptimizerName, str] = {
    "adamw_torch": "AdamW",
    "adam_weight_decay": "AdamWeightDecay",
    "sgd": "Momentum",  # MindSpore's own SGD forgets its momentum when a run goes on from a checkpoint
    "lion_32bit": "TwintuneLion",
}


def compiled_length(row_length: int) -> int:
    """The fixed length a graph is compiled for: the longest row, rounded up to a multiple of 16."""
    return -(-row_length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE


def packed_borders(job: TrainJob, device: str) -> Choice:
    """How attention is told where the conversations of packed rows end."""
    if device != "npu":
        return Choice(CONVERSATION_NUMBERS, f"a mask column, as {device} has no flash attention")
    if compiled_length(job.row_length) < LEAST_COMPRESSED:
        return Choice(CONVERSATION_NUMBERS, f"a mask column, as MindFormers compresses none below {LEAST_COMPRESSED}")
    return Choice(CONVERSATION_ENDS, "flash attention's compressed EOD mask")


def training_config(job: TrainJob, device: str) -> dict[str, Any]:
    """The whole configuration for MindFormers' Trainer, overrides laid over it.

    Args:
        job: what to train.
        device: `npu` or `cpu`.

    Raises:
        UserError: for modules trained whole in another dtype than float32.
    """
    _require_float32(job)
    rows_per_step = job.order.shape[1] * job.batch
    config: dict[str, Any] = {
        "seed": job.seed,
        "output_dir": str(job.output_dir / "mindformers"),
        "run_mode": "finetune",
        "use_legacy": True,
        "use_legacy_format": True,
        "load_checkpoint": "",
        "load_ckpt_format": "ckpt",
        "resume_training": False,
        "trainer": {"type": "CausalLanguageModelingTrainer", "model_name": "twintune"},
        "runner_config": {
            "epochs": 1,  # the dataset holds the whole run in order, its epochs one after the other
            "batch_size": rows_per_step,
            "sink_mode": device == "npu",
            "sink_size": 1,
            "gradient_accumulation_steps": 1,  # MindFormers ignores it; the step cell accumulates
        },
        "runner_wrapper": {
            "type": "TwintuneTrainOneStepCell",
            "accumulation": job.order.shape[1],
            "scale_sense": 1.0,  # gradients of a sum over tokens need no scale, even in float16
            "use_clip_grad": True,
            "max_grad_norm": job.optimizer.max_grad_norm,
            "calculate_per_token_loss": True,
            **({"borders": packed_borders(job, device).value} if job.packed else {}),
            **({"nf4_block_size": BLOCK_SIZE} if job.quantization else {}),
        },
        "calculate_per_token_loss": True,  # the network then gives (loss sum, trained tokens)
        "optimizer": _optimizer(job.optimizer, device),
        "lr_schedule": _lr_schedule(job.schedule, job.optimizer.learning_rate),
        **_dataset(job, rows_per_step, device),
        "micro_batch_interleave_num": 1,
        "use_parallel": False,
        "parallel": {"parallel_mode": 0, "gradients_mean": False, "full_batch": True},
        "parallel_config": {"data_parallel": 1, "model_parallel": 1, "pipeline_stage": 1},
        "recompute_config": {"recompute": job.gradient_checkpointing, "select_recompute": False},
        "callbacks": [_checkpoint_monitor(job)],
        "context": context(device),
        "model": model_section(
            read_model_config(job.model),
            batch_size=job.batch,
            seq_length=compiled_length(job.row_length),
            pad_token_id=job.pad_token_id,
            device=device,
            dtype=job.dtype,
        ),
    }
    put_on_adapter_section(config["model"], job.adapter, job.dtype)
    if job.packed and packed_borders(job, device).value == CONVERSATION_ENDS:
        config["model"]["model_config"]["use_eod_attn_mask_compression"] = True
    return laid_over(on_many_devices(config, job), job.overrides)


def _require_float32(job: TrainJob) -> None:
    if isinstance(job.adapter, Lora) and job.adapter.modules_to_save and job.dtype != "float32":
        raise UserError(
            f"recipe: backend.dtype must be float32 for lora.modules_to_save with --backend ascend, got {job.dtype} "
            "(MindFormers would train the head's own half-precision numbers); set backend.dtype=float32"
        )


def model_section(
    config: Mapping[str, Any], *, batch_size: int, seq_length: int, pad_token_id: int, device: str, dtype: str
) -> dict[str, Any]:
    """The `model` section for a checked config.json."""
    sizes = {
        "batch_size": batch_size,
        "seq_length": seq_length,
        "hidden_size": config["hidden_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"] or config["num_attention_heads"],
        "vocab_size": config["vocab_size"],
        "intermediate_size": config["intermediate_size"],
        "theta": config["rope_theta"],
        "max_position_embedding": max(seq_length, config["max_position_embeddings"]),
        "bos_token_id": config.get("bos_token_id"),
        "eos_token_id": config.get("eos_token_id"),
        "pad_token_id": pad_token_id,
        "ignore_token_id": -100,
        "offset": 0,
        "checkpoint_name_or_path": "",
        "compute_dtype": dtype,
        "param_init_type": dtype,
        "layernorm_compute_type": "float32",
        "softmax_compute_type": "float32",
        "rotary_dtype": "float32",
        "use_flash_attention": device == "npu",
    }
    name, own = ("Phi", _phi(config)) if config["model_type"] == "phi" else ("Llama", _llama(config, device))
    return {"model_config": {"type": f"{name}Config", **sizes, **own}, "arch": {"type": f"{name}ForCausalLM"}}


def _phi(config: Mapping[str, Any]) -> dict[str, Any]:
    """What only the network in phi.py reads."""
    return {"rotary_size": rotary_size(config), "layer_norm_eps": config["layer_norm_eps"]}


def _llama(config: Mapping[str, Any], device: str) -> dict[str, Any]:
    """What only MindFormers' LlamaForCausalLM reads."""
    biased = biased_modules(config)
    return {
        "multiple_of": 1,
        "rms_norm_eps": config["rms_norm_eps"],
        **_rope_scaling(config),
        "tie_word_embeddings": config["tie_word_embeddings"],
        "qkv_has_bias": "self_attn.q_proj" in biased,
        "attn_proj_has_bias": "self_attn.o_proj" in biased,
        "use_past": False,
        "fused_rms_norm": device == "npu",
        "use_rope_slice": device != "npu",  # the default rotary broadcasts in a BatchMatMul, which CPU refuses
    }


def _rope_scaling(config: Mapping[str, Any]) -> dict[str, Any]:
    scaling = config["rope_scaling"]
    if scaling is None:
        return {}
    numbers = {key: value for key, value in scaling.items() if key != "rope_type"}
    if scaling["rope_type"] == "linear":
        return {"extend_method": "PI", "scaling_factor": float(numbers["factor"])}
    floats = {key: float(numbers[key]) for key in ("factor", "low_freq_factor", "high_freq_factor")}
    original = {"original_max_position_embeddings": numbers["original_max_position_embeddings"]}
    return {"extend_method": "LLAMA3", "scaling_factor": floats | original}


def put_on_adapter_section(section: dict[str, Any], adapter: Lora | PrefixTuning, dtype: str) -> None:
    """Say in a `model` section what is trained.

    Raises:
        UserError: for a prefix before another network than MindFormers' own.
    """
    settings = section["model_config"]
    if isinstance(adapter, Lora):
        settings["pet_config"] = pet_config(adapter, dtype)
        return
    if settings["type"] != "LlamaConfig":
        raise UserError(
            "recipe: adapter must be lora for phi with --backend ascend, got 'ptuning_v2'; use --backend cuda"
        )
    settings["type"], section["arch"]["type"] = "PrefixLlamaConfig", "PrefixLlamaForCausalLM"
    settings["num_virtual_tokens"] = adapter.num_virtual_tokens
    settings["encoder_hidden_size"] = adapter.encoder_hidden_size or 0
    behind = adapter.num_virtual_tokens + settings["seq_length"]
    settings["max_position_embedding"] = max(behind, settings["max_position_embedding"])


def pet_config(lora: Lora, dtype: str) -> dict[str, Any]:
    """The LoRA section: matrices in float32, whatever the base computes in."""
    return {**to_pet_config(lora), "param_init_type": "float32", "compute_dtype": dtype}


def choose_optimizer(asked: OptimizerName, device: str) -> Choice:
    """The class that does what `train.optim` asks, as MindFormers registers it.

    Raises:
        UserError: for moments in 8 bits.
    """
    if asked in ("adamw_8bit", "paged_adamw_8bit"):
        raise UserError(
            f"recipe: train.optim must keep its moments in 32 bits with --backend ascend, got {asked!r} (MindSpore has "
            "no 8-bit moments); use train.optim=paged_adamw_32bit, or --backend cuda"
        )
    if asked == "paged_adamw_32bit":
        where = "moments in the host's memory" if device == "npu" else "the same numbers, for a CPU has no other memory"
        return Choice("AdamW", f"{asked}: {where}")
    return Choice(OPTIMIZERS[asked], asked)


def _optimizer(settings: Optimizer, device: str) -> dict[str, Any]:
    kind = {"type": choose_optimizer(settings.optim, device).value, "weight_decay": settings.weight_decay}
    if settings.optim == "sgd":
        return {**kind, "momentum": settings.sgd_momentum}
    beta1, beta2 = settings.adam_beta1, settings.adam_beta2
    if settings.optim == "lion_32bit":
        return {**kind, "beta1": beta1, "beta2": beta2}
    if settings.optim == "adam_weight_decay":
        return {**kind, "beta1": beta1, "beta2": beta2, "eps": settings.adam_epsilon}
    paged = {"swap": True} if settings.optim == "paged_adamw_32bit" and device == "npu" else {}
    return {**kind, "betas": [beta1, beta2], "eps": settings.adam_epsilon, **paged}


def _lr_schedule(schedule: Schedule, learning_rate: float) -> dict[str, Any]:
    """MindFormers' own schedule where it has the formula of twintune.schedule, else that formula's table."""
    kind = schedule.lr_scheduler_type
    own = {"lr_scheduler_type": kind, "lr_scheduler_kwargs": dict(schedule.lr_scheduler_kwargs)}
    return {
        "type": SCHEDULES.get(kind, "TwintuneLR"),
        "learning_rate": learning_rate,
        "warmup_steps": 0 if kind == "constant" else schedule.warmup_steps,
        "total_steps": schedule.max_steps,
        **({} if kind in SCHEDULES else own),
    }


def _dataset(job: TrainJob, rows_per_step: int, device: str) -> dict[str, Any]:
    borders = [NETWORK_INPUTS[packed_borders(job, device).value]] if job.packed else []
    dataset = {
        "data_loader": {
            "type": "MindDataset",
            "dataset_dir": str(job.rows / "rows.mindrecord"),  # read in dealt order by data.ordered_dataset
            "shuffle": False,
        },
        "input_columns": ["input_ids", "labels", *borders],  # the network's arguments, in this order
        "batch_size": rows_per_step,
        "drop_remainder": True,
    }
    task = {"type": "CausalLanguageModelDataset", "dataset_config": deepcopy(dataset)}
    return {"train_dataset": dataset, "train_dataset_task": task}


def _checkpoint_monitor(job: TrainJob) -> dict[str, Any]:
    return {
        "type": "CheckpointMonitor",
        "prefix": "twintune",
        "save_checkpoint_steps": len(job.order) - job.steps_done,
        "integrated_save": False,
        "async_save": False,
        "save_trainable_params": True,
    }


def context(device: str) -> dict[str, Any]:
    """The `context` section: graph mode on the device."""
    settings: dict[str, Any] = {
        "mode": 0,  # graph
        "device_target": "Ascend" if device == "npu" else "CPU",
        "device_id": 0,
        "max_call_depth": 10000,
    }
    if device == "npu":
        settings["jit_config"] = {"jit_level": "O1"}
    return settings
