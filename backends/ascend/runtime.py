"""Starting MindSpore and MindFormers: quiet, in graph mode, with nothing written to the working folder."""

import gc
import logging
import os
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

from twintune.artifacts import cache_folder
from twintune.backends import Choice, Device, has_npu
from twintune.errors import UserError


@cache
def import_quietly() -> None:
    """Import the frameworks with their own logs sent to files; what fails raises all the same."""
    os.environ.setdefault("GLOG_v", "3")
    if os.environ.get("MS_COMPILER_CACHE_ENABLE") != "0":  # MindSpore would load graphs unseen: see compile_cache
        os.environ.pop("MS_COMPILER_CACHE_ENABLE", None)
    os.environ.setdefault("LOCAL_DEFAULT_PATH", str(_logs()))
    os.environ.setdefault("LOG_MF_PATH", str(_logs() / "log"))
    with redirect_stdout(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their own deprecations, which nobody here can mend
        from mindformers.tools.logger import get_logger
        from mindpet.log.log import logger as mindpet_logger

    mindpet_logger.setLevel(logging.WARNING)
    for handler in list(get_logger().handlers):
        if not isinstance(handler, logging.FileHandler):
            get_logger().removeHandler(handler)
    gc.freeze()  # all this stays anyway: a graph compiles in 6 % less time if no garbage collection looks at it


def _logs() -> Path:
    return cache_folder() / "mindformers"


def choose_device(asked: str) -> Choice:
    """`auto`, `cpu` or `npu` to a device that is there.

    Raises:
        UserError: if it is not there, or not one of this backend's.
    """
    if asked == "cuda":
        raise UserError(
            "--device must be auto, cpu or npu with --backend ascend, got 'cuda'; use --backend cuda for it"
        )
    here = has_npu()
    if asked == "npu" and not here:
        raise UserError(
            "--device npu must be a device that is here, got none (no /dev/davinci* or no CANN); "
            "use --device cpu, or source CANN's set_env.sh"
        )
    if asked == "auto":
        return Choice("npu", "an NPU is here") if here else Choice("cpu", "no NPU is here")
    return Choice(asked, "as asked")


def describe_device(device: str) -> Device:
    """The NPU at hand, whose memory MindSpore tells only once it has begun to use it; or a CPU."""
    if device == "cpu":
        return Device("CPU", None)
    import_quietly()
    import mindspore

    found = mindspore.hal.get_device_properties(0, "Ascend")
    return Device(found.name, found.total_memory or None)


def choose_dtype(asked: str, device: str) -> Choice:
    """`auto` or a dtype name to one that the device trains in.

    Raises:
        UserError: for bfloat16 on CPU, which fails at compile.
    """
    if device == "cpu" and asked == "bfloat16":
        raise UserError(
            "backend.dtype must be float32 or float16 with --backend ascend on CPU, got 'bfloat16' "
            "(MindSpore's CPU kernels have none); use backend.dtype=float32"
        )
    if asked == "auto":
        return Choice("bfloat16", "an NPU computes in it") if device == "npu" else Choice("float32", "CPU")
    return Choice(asked, "as asked")


def start(config_file: Path) -> Any:
    """Read a configuration as MindFormers does, build its context, and return it.

    Without the context MindFormers' Trainer sets PyNative mode and a step takes 40 times as long.

    Raises:
        UserError: for a key that MindFormers refuses.
    """
    import_quietly()
    from mindformers import MindFormerConfig, build_context

    try:
        config = MindFormerConfig(str(config_file))
    except KeyError as error:
        raise UserError(
            f"{config_file}: backend.ascend.overrides must be keys that MindFormers knows, got: {error}"
        ) from None
    if config.optimizer.get("swap"):  # MindFormers' AdamW wants this beside it
        os.environ.setdefault("MS_DEV_RUNTIME_CONF", "switch_inline:False")
    build_context(config)
    return config


def build(model: Mapping[str, Any], context: Mapping[str, Any], **arguments: Any) -> Any:
    """MindFormers' network on random weights.

    Args:
        model: the `model` section of its configuration.
        context: the `context` section.
        arguments: keys of model_config that MindFormers' Trainer sets from elsewhere.
    """
    import_quietly()
    from mindformers import MindFormerConfig, build_context
    from mindformers.models.build_model import build_network

    import twintune.backends.ascend.phi
    import twintune.backends.ascend.prefix  # noqa: F401  both register their networks with MindFormers

    # A network with LoRA writes an adapter_config.json of its own there; a training run leaves its folder in it.
    os.environ["LOCAL_DEFAULT_PATH"] = str(_logs())
    build_context({"context": dict(context), "parallel": {}, "use_parallel": False})
    with redirect_stdout(StringIO()):
        return build_network(MindFormerConfig(**model), default_args=arguments)
