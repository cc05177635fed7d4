"""The ladder: twelve rungs, each compared only where all below it hold. No framework is needed for it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twintune.backends.job import Schedule
from twintune.parity.bundle import ADAPTER, Bundle
from twintune.parity.bundle import BASE as BASE_FORWARD
from twintune.parity.forward_rung import NAME as LOGITS
from twintune.parity.forward_rung import first_stage, forward_rung, stage_errors
from twintune.parity.gradient_rungs import GRADIENTS, LOSSES, gradient_rung, loss_rung
from twintune.parity.job_rungs import RECIPE, ROWS, recipe_rung, rows_rung
from twintune.parity.msprobe import write_msprobe
from twintune.parity.pair import Pair
from twintune.parity.result_rungs import FINAL, GENERATED, MERGED, adapter_rung, merged_rung, text_rung
from twintune.parity.step_rungs import ONE_STEP, SERIES, one_step_rung, series_rung
from twintune.parity.tolerances import limits
from twintune.parity.verdict import Rung, Side, Verdict
from twintune.parity.weight_rungs import BASE, INITIAL, base_rung, initial_adapter_rung
from twintune.schedule import schedule_words

LADDER: Mapping[str, Callable[[int, Pair], Rung]] = {
    RECIPE: recipe_rung,
    ROWS: rows_rung,
    BASE: base_rung,
    INITIAL: initial_adapter_rung,
    LOGITS: forward_rung,
    LOSSES: loss_rung,
    GRADIENTS: gradient_rung,
    ONE_STEP: one_step_rung,
    SERIES: series_rung,
    FINAL: adapter_rung,
    GENERATED: text_rung,
    MERGED: merged_rung,
}


def compare(first: Bundle, second: Bundle) -> Verdict:
    """Compare two bundles rung by rung, up to the first that does not hold."""
    pair = _pair(first, second)
    rungs: list[Rung] = []
    for number, (name, compared) in enumerate(LADDER.items(), start=1):
        broken = next((rung for rung in rungs if rung.status == "different"), None)
        if broken is None:
            rungs.append(compared(number, pair))
        else:
            rungs.append(Rung(number, name, "not measured", f"Rung {broken.number}, {broken.name}, does not hold."))
    return Verdict(
        sides=(_side(first), _side(second)),
        rungs=tuple(rungs),
        job=_job(first, second),
        stage_errors=stage_errors(pair) if _forward_is_comparable(rungs) else {},
        tolerances={name: (limit.value, limit.source) for name, limit in pair.limits.items()},
    )


def _pair(first: Bundle, second: Bundle) -> Pair:
    facts = first.facts
    layers, rate = facts["model_config"]["num_hidden_layers"], facts["recipe"]["train"]["learning_rate"]
    return Pair(first, second, limits(facts["dtype"], layers, rate))


def write_msprobe_for(first: Bundle, second: Bundle, verdict: Verdict, folder: Path) -> list[Path]:
    """Write what msprobe needs to look inside the first stage that differs, where bare networks do; else nothing."""
    pair = _pair(first, second)
    rung = verdict.first_difference
    if rung is None or rung.name != LOGITS:
        return []
    stage = first_stage(pair, BASE_FORWARD)
    if stage.error <= pair.limits["logits"].value:
        return []
    return write_msprobe(
        folder,
        stage=stage.name,
        config=first.facts["model_config"],
        row=first.arrays("forward")[f"ids.{stage.conversation}"].tolist(),
        pad_token_id=first.facts["rows"]["pad_token_id"],
        dtype=first.facts["dtype"],
    )


def _forward_is_comparable(rungs: list[Rung]) -> bool:
    return all(rung.status == "same" for rung in rungs[:4])


def _side(bundle: Bundle) -> Side:
    facts = bundle.facts
    return Side(bundle.name, facts["backend"], facts["device"], facts["dtype"], facts["versions"], bundle.steps)


def _job(first: Bundle, second: Bundle) -> dict[str, str]:
    """The job in words, for the run card."""
    recipe, rows = first.facts["recipe"], first.facts["rows"]
    train, lora = recipe["train"], recipe["lora"]
    schedule = Schedule(**first.facts["schedule"])
    return {
        "model": f"{recipe['model']['name_or_path']} ({first.facts['model_config']['model_type']})",
        **_quantization(recipe["model"]),
        **{f"data {file['name']}": f"sha256 {file['sha256']}" for file in rows["files"]},
        "template": _template(recipe),
        "rows": f"{rows['count']}, {rows['trained_tokens']} of {rows['tokens']} tokens trained",
        "LoRA": f"r {lora['r']}, lora_alpha {lora['lora_alpha']:g}, lora_dropout {lora['lora_dropout']:g} "
        f"on {', '.join(lora['target_modules'])}",
        "optimizer": f"{train['optim']}, learning rate {train['learning_rate']:g}, "
        f"weight decay {train['weight_decay']:g}, max_grad_norm {train['max_grad_norm']:g}",
        "schedule": f"{schedule_words(schedule)}, {schedule.warmup_steps} warm-up steps of {schedule.max_steps}",
        "batch": f"{train['per_device_train_batch_size']} rows x {train['gradient_accumulation_steps']} micro-batches",
        "steps compared": str(min(len(first.steps), len(second.steps))),
        **{f"bundle {bundle.name}": _bundle_line(bundle) for bundle in (first, second)},
    }


def _quantization(model: Mapping[str, Any]) -> dict[str, str]:
    if not model.get("load_in_4bit"):  # bundles of older versions have no such key
        return {}
    absmax = "8 bits, double quantization" if model["bnb_4bit_use_double_quant"] else "float32"
    return {"base weights": f"linear layers in {model['bnb_4bit_quant_type'].upper()}, absmax in {absmax}"}


def _template(recipe: Mapping[str, Any]) -> str:
    name = recipe["data"]["template"]
    return name if len(name) < 60 and "\n" not in name else "given in the recipe as a jinja text"


def _bundle_line(bundle: Bundle) -> str:
    adapter = bundle.facts["sha256"].get(f"{ADAPTER}/adapter_model.safetensors", "none: training failed")
    return f"format {bundle.facts['format']}, final adapter sha256 {adapter}"
