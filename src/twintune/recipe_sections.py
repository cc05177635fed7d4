"""The sections of a recipe: every key, its type, its limits and its default.

Names are those of HF TrainingArguments, PEFT LoraConfig and LLaMA-Factory, so that fingers know them.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from twintune.backends.job import OptimizerName, ScheduleName
from twintune.schedule_settings import schedule_settings

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

FormatName = Literal[
    "auto",
    "alpaca",
    "sharegpt",
    "messages",
    "prompt_completion",
    "question_answer",
    "message_list",
    "logic_contest",
    "math23k",
    "cmath",
]
TargetModule = Literal[
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",  # llama, qwen2, mistral
    "dense", "fc1", "fc2",  # phi, with q_proj, k_proj, v_proj
    "Wqkv", "out_proj",  # as Phi-2's remote code had them
]  # fmt: skip
BackendName = Literal["auto", "cuda", "ascend"]
DeviceName = Literal["auto", "cpu", "cuda", "npu"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
CacheName = Literal["auto", "static", "paged"]


class Section(BaseModel):
    """A part of the recipe: unknown keys are refused, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class ModelSection(Section):
    """Which model: a Hugging Face folder, an embedded model's name, or a hub name."""

    name_or_path: str
    trust_remote_code: bool = False
    pad_token: str | None = None  # None: chosen by the tokenizer rules of converters.tokens, and printed
    added_tokens: tuple[str, ...] = ()  # special tokens that the tokenizer gets, such as ChatML's turn marks
    pad_to_multiple_of: int | None = Field(None, ge=1)  # embeddings are resized to the tokenizer, rounded up to it
    load_in_4bit: bool = False  # the frozen linear layers of the decoder, as bitsandbytes does for QLoRA
    bnb_4bit_quant_type: Literal["nf4"] = "nf4"
    bnb_4bit_use_double_quant: bool = False

    @field_validator("bnb_4bit_use_double_quant")
    @classmethod
    def _of_four_bits(cls, twice: bool, info: ValidationInfo) -> bool:
        if twice and not info.data.get("load_in_4bit"):
            raise ValueError("should be false where model.load_in_4bit is false")
        return twice


class DataFile(Section):
    """Some records, and how often each is taken: 2 twice, 0.25 a quarter of them, chosen by a hash of the record."""

    path: str  # a file, a folder or a glob
    weight: float = Field(1.0, gt=0)


def _as_data_files(value: Any) -> Any:
    """One path, or a list of paths and of mappings with path and weight."""
    values = value if isinstance(value, list | tuple) else [value]
    return [{"path": str(item)} if isinstance(item, str | Path) else item for item in values]


class DataSection(Section):
    """Which records, how they are read, rendered, cut and packed."""

    train: Annotated[tuple[DataFile, ...], BeforeValidator(_as_data_files), Field(min_length=1)]
    format: FormatName = "auto"  # auto: told by the first records
    instruction_join: Literal["newline", "concatenate", "alpaca"] = "newline"
    template: str = "tokenizer"  # a template's name, `tokenizer` for its own chat template, or a jinja text
    system: str | None = None  # None: the template's own system prompt
    mask_history: bool = False  # train the last answer of a conversation only
    train_on_prompt: bool = False  # train all that is rendered, not the answers alone
    split_special_tokens: bool = True  # special tokens written in a record are plain text
    cutoff_len: int = Field(1024, ge=8)  # tokens of a row
    truncation_strategy: Literal["right", "left", "delete"] = "right"  # right keeps the prompt and cuts the answer
    packing: bool = False  # several conversations in one row of cutoff_len, none seeing another
    max_rejected_share: float = Field(0.01, ge=0, le=1)  # of the records; above it prepare fails
    val_size: float = Field(0.0, ge=0, lt=1)  # share of the records kept for validation, by a hash of the record
    preprocessing_num_workers: int | None = Field(None, ge=1)  # processes; None: one for each core

    @field_validator("train_on_prompt")
    @classmethod
    def _not_both(cls, train_on_prompt: bool, info: ValidationInfo) -> bool:
        if train_on_prompt and info.data.get("mask_history"):
            raise ValueError("should be false where data.mask_history is true")
        return train_on_prompt


def _at_least_one(modules: tuple[TargetModule, ...]) -> tuple[TargetModule, ...]:
    if not modules:  # Field(min_length=1) would also complain of a list whose one item is wrong
        raise ValueError("should name at least one layer")
    return modules


class LoraSection(Section):
    """The adapter, as PEFT's LoraConfig spells it."""

    r: int = Field(8, ge=1)
    lora_alpha: float = Field(16, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    use_rslora: bool = False  # scale by lora_alpha / sqrt(r) in place of lora_alpha / r
    modules_to_save: tuple[Literal["embed_tokens", "lm_head"], ...] = ()  # trained whole, beside the matrices
    target_modules: Annotated[tuple[TargetModule, ...], AfterValidator(_at_least_one)] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    )


class PtuningV2Section(Section):
    """Keys and values before the first token of every layer, as PEFT's PrefixTuningConfig spells them."""

    num_virtual_tokens: int = Field(20, ge=1)
    prefix_projection: bool = False  # made of one embedding by a two-layer network, in place of trained as they are
    encoder_hidden_size: int | None = Field(None, ge=1)  # of that network

    @field_validator("encoder_hidden_size")
    @classmethod
    def _of_the_projection(cls, size: int | None, info: ValidationInfo) -> int | None:
        if size is not None and info.data.get("prefix_projection") is False:
            raise ValueError("should be left out where ptuning_v2.prefix_projection is false")
        return size


def _known_beforehand(kind: Any) -> Any:
    """Both backends follow one table of learning rates, made before the first step."""
    if kind in ("reduce_lr_on_plateau", "greedy"):
        raise ValueError("should be a schedule known before the first step (this one follows the evaluation loss)")
    return kind


class TrainSection(Section):
    """The optimizer, its schedule and the batch, as HF TrainingArguments spells them."""

    per_device_train_batch_size: int = Field(2, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    num_train_epochs: float = Field(3.0, gt=0)
    max_steps: int = Field(-1, ge=-1)  # optimizer steps; above 0 it replaces num_train_epochs
    learning_rate: float = Field(1e-4, gt=0)
    lr_scheduler_type: Annotated[ScheduleName, BeforeValidator(_known_beforehand)] = "cosine"
    lr_scheduler_kwargs: dict[str, Any] = Field(default_factory=dict, validate_default=True)  # numbers of that type
    warmup_ratio: float = Field(0.0, ge=0, lt=1)  # of all steps, rounded up
    warmup_steps: int = Field(0, ge=0)  # above 0 it replaces warmup_ratio
    optim: OptimizerName = "adamw_torch"
    sgd_momentum: float = Field(0.0, ge=0, lt=1)  # momentum of torch.optim.SGD, for train.optim: sgd alone
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)
    group_by_length: bool = False  # batches of rows of like length: less padding, without packing
    gradient_checkpointing: bool = False  # activations of a layer are computed again for its gradient
    per_device_eval_batch_size: int = Field(8, ge=1)
    eval_steps: int | None = Field(None, ge=1)  # evaluate every so many steps, on the rows of data.val_size
    evals_per_epoch: int | None = Field(None, ge=1)  # in place of eval_steps
    save_steps: int | None = Field(None, ge=1)  # a checkpoint every so many steps; the last step has one in any case
    saves_per_epoch: int | None = Field(None, ge=1)  # in place of save_steps
    save_total_limit: int | None = Field(None, ge=1)  # checkpoints kept: the best and the newest ones
    save_only_model: bool = False  # checkpoints hold the adapter alone, and no run can be resumed from them
    load_best_model_at_end: bool = False  # the adapter is that of the checkpoint with the lowest evaluation loss
    # None: TensorBoard, where tensorboardX is installed
    report_to: tuple[Literal["tensorboard", "wandb", "swanlab", "mlflow"], ...] | None = None
    run_name: str | None = None  # for report_to; None: the output folder's name
    seed: int = Field(42, ge=0)

    @field_validator("lr_scheduler_kwargs")
    @classmethod
    def _numbers_of_the_schedule(cls, given: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if not {"lr_scheduler_type", "learning_rate"} <= info.data.keys():  # they are refused themselves
            return given
        return schedule_settings(info.data["lr_scheduler_type"], given, info.data["learning_rate"])

    @field_validator("sgd_momentum")
    @classmethod
    def _momentum_of_sgd(cls, momentum: float, info: ValidationInfo) -> float:
        if momentum and info.data.get("optim", "sgd") != "sgd":
            raise ValueError(f"should be left out where train.optim is {info.data['optim']}")
        return momentum

    @field_validator("warmup_steps")
    @classmethod
    def _one_warmup(cls, steps: int, info: ValidationInfo) -> int:
        if steps and info.data.get("warmup_ratio"):
            raise ValueError("should be 0 where train.warmup_ratio is given")
        return steps

    @field_validator("evals_per_epoch", "saves_per_epoch")
    @classmethod
    def _one_rhythm(cls, times: int | None, info: ValidationInfo) -> int | None:
        other = "eval_steps" if info.field_name == "evals_per_epoch" else "save_steps"
        if times is not None and info.data.get(other) is not None:
            raise ValueError(f"should be left out where train.{other} is given")
        return times

    @field_validator("load_best_model_at_end")
    @classmethod
    def _best_of_something(cls, best: bool, info: ValidationInfo) -> bool:
        if best and info.data.get("eval_steps") is None and info.data.get("evals_per_epoch") is None:
            raise ValueError("should be false where neither train.eval_steps nor train.evals_per_epoch is given")
        return best


def _not_compiled(asked: bool) -> bool:
    """Measured on 2 CPU cores with 6 layers and ragged rows (docs/benchmarks.md); no GPU was at hand."""
    if asked:
        raise ValueError("should be false (compiling took 38 s of CPU to save 0.1 s of a step; never tried on a GPU)")
    return asked


class CudaSection(Section):
    """How several GPUs share a run, and whose kernels they run."""

    # fsdp shards the frozen base; zero1 to zero3 are DeepSpeed's stages (docs/scaling.md), and its stage 0 is ddp
    parallel: Literal["ddp", "fsdp", "zero0", "zero1", "zero2", "zero3"] = "ddp"
    use_liger_kernel: bool = False  # norms and gated networks by Liger's kernels; interpreted in tests, on no GPU yet
    torch_compile: Annotated[bool, AfterValidator(_not_compiled)] = False


class AscendSection(Section):
    """How several NPUs share a run, and what only MindFormers knows."""

    data_parallel: int | None = Field(None, ge=1)  # None: as many as the ranks give with the two below
    model_parallel: int = Field(1, ge=1)
    pipeline_stage: int = Field(1, ge=1)
    overrides: dict[str, Any] = {}  # keys of MindFormers' YAML, laid over the generated one


class BackendSection(Section):
    """What belongs to the machine, and can be given by flags instead."""

    name: BackendName = "auto"
    device: DeviceName = "auto"
    dtype: DtypeName = "auto"
    device_memory_gib: float | None = Field(None, gt=0)  # of one device, for the plan; None: as it is found
    device_peak_tflops: float | None = Field(None, gt=0)  # in this dtype, for MFU; None: as known by the device's name
    cuda: CudaSection = CudaSection()
    ascend: AscendSection = AscendSection()
