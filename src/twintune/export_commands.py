"""The commands that take weights elsewhere: `export weights`, `export adapter` and `merge`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from twintune.errors import UserError

if TYPE_CHECKING:
    from twintune.converters.adapter_export import AdapterExport
    from twintune.merging import Merge

export_app = typer.Typer(help="Take weights or an adapter to MindFormers, or back.", no_args_is_help=True)

OutputDir = Annotated[Path, typer.Option(help="A new folder.")]
Dtype = Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.", show_default="the base's own")]
ShardSize = Annotated[str, typer.Option(help="Of a file of weights; a GB is 10^9 bytes.")]


@export_app.command()
def weights(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A Hugging Face folder, or MindFormers' file.")],
    output_dir: OutputDir,
    to: Annotated[Literal["ckpt", "safetensors", "huggingface"], typer.Option(help="What to write.")],
    model: Annotated[
        Path | None, typer.Option(help="For huggingface: the folder with the config.json.", show_default=False)
    ] = None,
    dtype: Dtype = None,
    max_shard_size: ShardSize = "5GB",
    leave_out_lora: Annotated[
        bool, typer.Option("--leave-out-lora", help="Take the base of a checkpoint that has LoRA too.")
    ] = False,
) -> None:
    """Take base weights to MindFormers' files and names, or back, bit for bit."""
    from twintune.converters.checkpoint_export import export_weights

    done = export_weights(
        source,
        output_dir,
        to,
        model=model,
        dtype=dtype,
        max_shard_size=max_shard_size,
        leave_out_lora=leave_out_lora,
    )
    dtypes = ", ".join(f"{count} in {name}" for name, count in done.dtypes.items())
    print(f"weights: {', '.join(str(done.folder / name) for name in done.files)}")
    print(f"{done.tensors} tensors ({dtypes}), {done.parameters:,} numbers, {done.nbytes / 1e9:.2f} GB")
    print(f"read back and compared: all the same{f', {done.rounded} rounded as asked' if done.rounded else ''}")
    _print_left_out(done.left_out)
    if done.copied:
        print(f"copied beside them: {', '.join(done.copied)}")


@export_app.command()
def adapter(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A PEFT folder, or MindFormers' checkpoint.")],
    output_dir: OutputDir,
    to: Annotated[Literal["ckpt", "safetensors", "peft"], typer.Option(help="What to write.")],
    model: Annotated[str | None, typer.Option(help="The base model.", show_default="as the adapter says")] = None,
    pet_config: Annotated[
        Path | None,
        typer.Option(help="For peft: the MindFormers YAML it was trained by.", show_default="what lies beside it"),
    ] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="For peft.", show_default="as that file says")] = None,
    target_modules: Annotated[
        str | None, typer.Option(help="For peft: q_proj,v_proj,...", show_default="as that file says")
    ] = None,
) -> None:
    """Take a LoRA adapter from PEFT to MindFormers' files and names, or back, bit for bit."""
    from twintune.exporting import adapter_from_mindformers, adapter_to_mindformers

    if to == "peft":
        done, told_by = adapter_from_mindformers(
            source,
            output_dir,
            model=model,
            pet_config=pet_config,
            lora_alpha=lora_alpha,
            target_modules=tuple(target_modules.split(",")) if target_modules is not None else None,
        )
        print(f"settings: {told_by}")
    else:
        if (pet_config, lora_alpha, target_modules) != (None, None, None):
            raise UserError(
                "command line: --pet-config, --lora-alpha and --target-modules must be left out with "
                f"--to {to}, got them: a PEFT folder holds its settings"
            )
        done, remarks = adapter_to_mindformers(source, output_dir, to, model=model)
        for remark in remarks:
            print(remark)
    _print_adapter(done)


def _print_adapter(done: "AdapterExport") -> None:
    lora = done.lora
    print(f"adapter: {done.file}")
    print(f"r {lora.r}, lora_alpha {lora.lora_alpha:g}, target_modules {', '.join(lora.target_modules)}")
    print(f"{done.matrices} matrices, read back and compared: all the same")
    if done.step is not None:
        print(f"saved after optimizer step {done.step}")
    _print_left_out(done.left_out)
    if done.square:
        print(
            f"not told by any shape: whether a matrix of {len(done.square)} layers is transposed or swapped, as the "
            f"rank is their width ({done.square[0]}, ...); compare logits: twintune merge"
        )


def _print_left_out(left_out: Mapping[str, int]) -> None:
    for kind, count in left_out.items():
        print(f"left out: {count} entries, {kind}")


def merge(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="A PEFT adapter folder.")],
    output_dir: OutputDir,
    model: Annotated[str | None, typer.Option(help="The base model.", show_default="as the adapter says")] = None,
    dtype: Dtype = None,
    backend: Annotated[str, typer.Option(help="Where it is checked: auto, cuda or ascend.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or npu.")] = "auto",
    max_shard_size: ShardSize = "5GB",
) -> None:
    """Put an adapter into its base for good, and compare logits and greedy text before it is kept."""
    from twintune.merging import merge_adapter

    done = merge_adapter(
        adapter, output_dir, model=model, dtype=dtype, backend=backend, device=device, max_shard_size=max_shard_size
    )
    _print_merge(done)


def _print_merge(done: "Merge") -> None:
    check = done.check
    for name, choice in done.choices.items():
        print(f"{name}: {choice.value} ({choice.reason})")
    whole = "".join(f", {module} replaced whole" for module in done.lora.modules_to_save)
    print(f"merged: {done.layers} layers, r {done.lora.r}, scaling {done.lora.lora_alpha / done.lora.r:g}{whole}")
    print(
        f"logits, merged against adapter, {check.positions} positions: largest difference "
        f"{check.largest_difference:.1e} (limit {check.tolerance:.1e}), mean {check.mean_difference:.1e} "
        f"(limit {check.mean_tolerance:.1e}); the adapter itself moves them by up to {check.adapter_effect:.1e}"
    )
    print(f"limit: {check.rule}")
    print(f"greedy texts: {check.same_texts} of {check.texts} identical")
    for note in done.notes:
        print(f"note: {note}")
    print(f"model: {done.folder} ({len(done.files)} file{'s' if len(done.files) > 1 else ''} of weights, merge.json)")
