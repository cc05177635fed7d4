import filecmp
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_models import save_tiny_model
from twintune.backends import missing_packages
from twintune.converters import checkpoint_export
from twintune.converters.checkpoint_export import NAME_MAP, FileFormat, export_weights
from twintune.converters.mindformers_files import LORA_MATRICES, OPTIMIZER_STATE, TRAINING_STATE, read_mindformers
from twintune.converters.mindspore_checkpoint import write_checkpoint
from twintune.converters.names import base_names
from twintune.converters.sharded import read_sharded, write_sharded
from twintune.converters.stored_tensors import StoredTensor, TensorSpec, read_each
from twintune.converters.weights import BUFFERS, EMBEDDING, HEAD, TIED_HEAD, same_bytes
from twintune.errors import UserError
from twintune.models import read_model_config

needs_torch = pytest.mark.skipif(bool(missing_packages("cuda")), reason="makes models with torch")
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "tie_word_embeddings": True}),
    ("qwen2", {}),
    ("qwen2", {"tie_word_embeddings": False}),
    ("mistral", {}),
    ("phi", {}),
]


def save_model(folder: Path, family: str = "llama", dtype: str = "float32", **changes: Any) -> Path:
    import torch
    from transformers import AutoModelForCausalLM

    save_tiny_model(folder, family, **changes)
    if dtype != "float32":
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        shutil.rmtree(folder)
        model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if missing_packages("cuda"):
        pytest.skip("makes models with torch")
    return save_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if missing_packages("cuda"):
        pytest.skip("makes models with torch")
    return save_model(tmp_path_factory.mktemp("models") / "tied", "qwen2")


def weights_of(folder: Path) -> dict[str, StoredTensor]:
    return read_sharded(sorted(folder.glob("*.safetensors")))


def with_weights(model: Path, folder: Path, changes: dict[str, Any]) -> Path:
    """A copy of a model folder with tensors changed, added, or, where None, gone."""
    shutil.copytree(model, folder)
    tensors = dict(read_each(weights_of(model).items())) | changes
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    specs = {name: TensorSpec(tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    write_sharded(folder, tensors.items(), specs, 10**9, {"format": "pt"})
    return folder


def checkpoint(model: Path, folder: Path, changes: dict[str, Any]) -> Path:
    """A model's weights under MindFormers' names in a .ckpt, with tensors changed, added, or, where None, gone."""
    names = base_names(read_model_config(model))
    tensors = {names[name]: tensor for name, tensor in read_each(weights_of(model).items())} | changes
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(folder / "some.ckpt", ((name, tensor) for name, tensor in tensors.items() if tensor is not None))
    return folder / "some.ckpt"


@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("family", "changes"), CASES)
def test_there_and_back_is_the_same_file(tmp_path: Path, family: str, changes: dict[str, Any], dtype: str) -> None:
    model = save_model(tmp_path / "model", family, dtype, **changes)
    for file_format, source in (("ckpt", "there/ckpt/model.ckpt"), ("safetensors", "there/safetensors")):
        form: FileFormat = file_format  # type: ignore[assignment]  # a literal in a loop is a str to mypy
        there = export_weights(model, tmp_path / "there" / form, form, max_shard_size="40KB")
        assert there.dtypes == {dtype: there.tensors}
        assert there.rounded == 0
        back = export_weights(tmp_path / source, tmp_path / "back" / form, "huggingface", model=model)
        assert back.tensors == there.tensors == len(base_names(read_model_config(model)))
        names = sorted(file.name for file in model.iterdir())
        assert filecmp.cmpfiles(model, tmp_path / "back" / form, names, shallow=False) == (names, [], [])


def test_shards_come_back_as_shards(llama: Path, tmp_path: Path) -> None:
    there = export_weights(llama, tmp_path / "there", "safetensors", max_shard_size="100KB")
    assert len(there.files) > 2
    weight_map = json.loads((tmp_path / "there" / NAME_MAP).read_text())["weight_map"]
    assert set(weight_map.values()) == set(there.files)
    assert weight_map.keys() == set(base_names(read_model_config(llama)).values())
    sharded = export_weights(
        tmp_path / "there", tmp_path / "sharded", "huggingface", model=llama, max_shard_size="70KB"
    )
    assert len(sharded.files) > len(there.files)
    export_weights(tmp_path / "sharded", tmp_path / "again", "ckpt")  # shards as a source
    export_weights(tmp_path / "again" / "model.ckpt", tmp_path / "whole", "huggingface", model=tmp_path / "sharded")
    assert filecmp.cmp(llama / "model.safetensors", tmp_path / "whole" / "model.safetensors", shallow=False)


@needs_torch
@pytest.mark.parametrize(("family", "changes"), [CASES[1], CASES[3]])
def test_plain_transformers_loads_it_whole(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = save_model(tmp_path / "model", family, **changes)
    export_weights(model, tmp_path / "there", "ckpt")
    export_weights(
        tmp_path / "there" / "model.ckpt", tmp_path / "back", "huggingface", model=model, max_shard_size="50KB"
    )
    loaded, told = AutoModelForCausalLM.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    expected = AutoModelForCausalLM.from_pretrained(model).state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.skipif(bool(missing_packages("ascend") or missing_packages("cuda")), reason="loads into MindFormers")
@pytest.mark.parametrize(("family", "changes"), CASES)
def test_plain_mindformers_loads_it_whole(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    """The `.ckpt` by mindspore's functions, the shards by the loader that MindFormers' Trainer calls."""
    from twintune.backends.ascend.runtime import import_quietly

    import_quietly()
    import mindspore as ms
    from mindformers.models.build_model import build_network
    from mindformers.tools.register import MindFormerConfig
    from mindformers.utils.load_checkpoint_utils import load_safetensors_checkpoint

    from twintune.backends.ascend.profile import model_section

    model = save_model(tmp_path / "model", family, **changes)
    config = read_model_config(model)
    section = model_section(config, batch_size=1, seq_length=16, pad_token_id=0, device="cpu", dtype="float32")
    names = base_names(config)

    def assert_loaded(network: Any) -> None:
        parameters = {parameter.name: parameter.asnumpy() for parameter in network.get_parameters()}
        assert parameters.keys() == set(names.values())
        for name, tensor in read_each(weights_of(model).items()):
            assert np.array_equal(parameters[names[name]], tensor), name

    export_weights(model, tmp_path / "ckpt", "ckpt")
    network = build_network(MindFormerConfig(**section))
    loaded = ms.load_checkpoint(str(tmp_path / "ckpt" / "model.ckpt"))
    assert ms.load_param_into_net(network, loaded) == ([], [])
    assert loaded.keys() == set(names.values())
    assert_loaded(network)

    export_weights(model, tmp_path / "shards", "safetensors", max_shard_size="100KB")
    network = build_network(MindFormerConfig(**section))
    settings = MindFormerConfig(load_ckpt_format="safetensors", use_parallel=False, model=section)
    files = sorted(str(file) for file in (tmp_path / "shards").glob("*.safetensors"))
    assert len(files) > 1
    load_safetensors_checkpoint(settings, files, network, None, str(tmp_path / "shards"), None)
    assert_loaded(network)


@pytest.mark.skipif(bool(missing_packages("ascend")), reason="mindspore is not installed")
def test_mindspore_finds_each_shard_by_the_name_map(llama: Path, tmp_path: Path) -> None:
    """What MindFormers calls where the network is spread over devices (auto_trans_ckpt)."""
    from twintune.backends.ascend.runtime import import_quietly

    import_quietly()
    import mindspore as ms

    export_weights(llama, tmp_path / "shards", "safetensors", max_shard_size="100KB")
    ms.load_distributed_checkpoint(
        None,
        unified_safetensors_dir=str(tmp_path / "shards"),
        dst_safetensors_dir=str(tmp_path / "loaded"),
        format="safetensors",
        rank_id=0,
    )
    (loaded,) = (tmp_path / "loaded").rglob("*.safetensors")
    written, expected = read_sharded([loaded]), read_mindformers(tmp_path / "shards")
    assert written.keys() == expected.keys()
    assert all(same_bytes(tensor, expected[name]) for name, tensor in written.items())


def test_a_dtype_that_is_asked_for_is_rounded_to(llama: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    export_weights(llama, tmp_path / "there", "ckpt", dtype="bfloat16")
    done = export_weights(tmp_path / "there" / "model.ckpt", tmp_path / "back", "huggingface", model=llama)
    assert done.dtypes == {"bfloat16": done.tensors}
    expected = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(llama / "model.safetensors").items()}
    got = load_file(tmp_path / "back" / "model.safetensors")
    assert got.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in got.items())
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    given = json.loads((llama / "config.json").read_text())
    assert {key: value for key, value in config.items() if given[key] != value} == {"dtype": "bfloat16"}


def test_what_is_too_large_for_the_dtype_is_told_and_nothing_is_kept(llama: Path, tmp_path: Path) -> None:
    large = np.full((64,), 1e5, np.float32)
    model = with_weights(llama, tmp_path / "model", {"model.norm.weight": large})
    with pytest.raises(UserError, match=r"model\.norm\.weight must fit the dtype, .* 100000 is too large for float16"):
        export_weights(model, tmp_path / "out" / "there", "ckpt", dtype="float16")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_head_that_is_the_embedding_is_left_out_and_said(tied: Path, tmp_path: Path) -> None:
    embedding = weights_of(tied)[EMBEDDING].read()
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    model = with_weights(tied, tmp_path / "model", {HEAD: embedding, **buffer})
    assert export_weights(model, tmp_path / "there", "ckpt").left_out == {TIED_HEAD: 1, BUFFERS: 1}
    source = checkpoint(tied, tmp_path, {HEAD: embedding})
    assert export_weights(source, tmp_path / "back", "huggingface", model=tied).left_out == {TIED_HEAD: 1}
    assert filecmp.cmp(tied / "model.safetensors", tmp_path / "back" / "model.safetensors", shallow=False)


def test_a_head_that_differs_from_the_embedding_is_refused(tied: Path, tmp_path: Path) -> None:
    other = weights_of(tied)[EMBEDDING].read()
    other[-1, -1] = np.nextafter(other[-1, -1], np.float32(np.inf))
    model = with_weights(tied, tmp_path / "model", {HEAD: other})
    for source, form in ((model, "ckpt"), (checkpoint(tied, tmp_path, {HEAD: other}), "huggingface")):
        with pytest.raises(UserError, match=r"lm_head\.weight must equal .*embed.*weight, as config\.json says"):
            export_weights(
                source,
                tmp_path / "out",
                form,  # type: ignore[arg-type]  # a literal in a tuple is a str to mypy
                model=tied if form == "huggingface" else None,
            )


def training_state(model: Path) -> dict[str, Any]:
    """What MindFormers' training leaves beside the weights, a trained layer and an adapter's matrix included."""
    norm = np.ones(64, np.float32)
    matrix = np.ones((4, 64), np.float32)
    return {
        "adam_m.model.norm_out.weight": norm,
        "adam_v.model.norm_out.weight": norm,
        "adam_m.model.layers.0.attention.wq.mindpet_delta_lora_a": matrix,
        "model.layers.0.attention.wq.mindpet_delta_lora_a": matrix,
        "global_step": np.array([4], np.int32),
        "loss_scale": np.array(1, np.float32),
    }


def test_what_training_leaves_beside_is_counted_by_kind(llama: Path, tmp_path: Path) -> None:
    source = checkpoint(llama, tmp_path, training_state(llama))
    with pytest.raises(UserError, match=r"got 1 LoRA matrices too.*twintune export adapter.*--leave-out-lora"):
        export_weights(source, tmp_path / "back", "huggingface", model=llama)
    done = export_weights(source, tmp_path / "back", "huggingface", model=llama, leave_out_lora=True)
    assert done.left_out == {OPTIMIZER_STATE: 3, LORA_MATRICES: 1, TRAINING_STATE: 2}
    assert filecmp.cmp(llama / "model.safetensors", tmp_path / "back" / "model.safetensors", shallow=False)


def test_every_mismatch_of_a_checkpoint_comes_at_once(llama: Path, tmp_path: Path) -> None:
    name = "model.layers.1.feed_forward.w2.weight"
    source = checkpoint(
        llama,
        tmp_path,
        {
            "model.norm_out.weight": None,
            name: np.ones((112, 64), np.float32),  # un-transposed would be [64, 112]
            "model.layers.0.attention.w_qkv.weight": np.ones((3, 4), np.float32),
            "lm_head.weight": np.ones((128, 64), np.int8),
            "adam_m": np.ones((2, 3), np.float32),
        },
    )
    with pytest.raises(UserError) as caught:
        export_weights(source, tmp_path / "out", "huggingface", model=llama)
    assert [message.removeprefix(f"{source}: ") for message in caught.value.messages] == [
        "adam_m must not be in the weights of a llama",
        "lm_head.weight must be one of float32, float16, bfloat16, got int8",
        "model.layers.0.attention.w_qkv.weight must not be in the weights of a llama",
        f"{name} must be [64, 112] by config.json, got [112, 64]",
        "model.norm_out.weight must be in the weights, got no such tensor",
    ]
    assert not (tmp_path / "out").exists()


def test_weights_of_another_size_are_told(llama: Path, tmp_path: Path) -> None:
    model = with_weights(llama, tmp_path / "model", {EMBEDDING: np.ones((127, 64), np.float32)})
    with pytest.raises(UserError, match=r"embed_tokens\.weight must be \[128, 64\] by config\.json, got \[127, 64\]"):
        export_weights(model, tmp_path / "out", "ckpt")


def test_what_is_read_back_otherwise_is_not_kept(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_badly(path: Path, tensors: Any) -> None:
        """A disk that loses one bit."""
        written = dict(tensors)
        written["lm_head.weight"].view(np.int32)[5, 7] ^= 1
        write_checkpoint(path, written.items())

    monkeypatch.setattr(checkpoint_export, "write_checkpoint", write_badly)
    with pytest.raises(UserError) as caught:
        export_weights(llama, tmp_path / "out", "ckpt")
    (message,) = caught.value.messages
    assert message.startswith(f"{tmp_path / 'out'}: lm_head.weight must be read back as it was written")
    assert list(tmp_path.iterdir()) == []


def test_tokenizer_and_generation_settings_come_along(llama: Path, tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(llama, model)
    shutil.copytree(tiny_tokenizer_folder, model, dirs_exist_ok=True)
    (model / "pytorch_model.bin").write_bytes(b"a pickle")
    export_weights(model, tmp_path / "there", "ckpt")
    done = export_weights(
        tmp_path / "there" / "model.ckpt", tmp_path / "back", "huggingface", model=model / "config.json"
    )
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"} <= set(done.copied)
    assert "pytorch_model.bin" not in {file.name for file in (tmp_path / "back").iterdir()}
    for name in done.copied:
        assert filecmp.cmp(model / name, tmp_path / "back" / name, shallow=False)


def test_the_wrong_sources_are_told(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="--model must be the Hugging Face folder"):
        export_weights(checkpoint(llama, tmp_path, {}), out, "huggingface")
    with pytest.raises(UserError, match="--model must be left out"):
        export_weights(llama, out, "ckpt", model=llama)
    with pytest.raises(UserError, match="--dtype must be one of float32, float16, bfloat16, got 'int8'"):
        export_weights(llama, out, "ckpt", dtype="int8")
    with pytest.raises(UserError, match=r"model\.bin: MindFormers weights must be a \.ckpt file"):
        export_weights(tmp_path / "model.bin", out, "huggingface", model=llama)
    with pytest.raises(UserError, match=r"must hold \*\.safetensors, got none; for a \.ckpt name the file itself"):
        export_weights(tmp_path, out, "huggingface", model=llama)
    with pytest.raises(UserError, match=r"must be a new or empty folder"):
        export_weights(llama, tmp_path, "ckpt")


def test_the_front_end_needs_no_framework_for_it(llama: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from twintune.converters.checkpoint_export import export_weights; "
        f"export_weights(Path({str(llama)!r}), Path({str(tmp_path / 'there')!r}), 'ckpt'); "
        f"export_weights(Path({str(tmp_path / 'there' / 'model.ckpt')!r}), Path({str(tmp_path / 'back')!r}), "
        f"'huggingface', model=Path({str(llama)!r})); "
        "sys.exit(', '.join({'torch', 'mindspore', 'transformers'} & sys.modules.keys()) or 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.once
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory as Linux tells it")
def test_memory_is_that_of_one_shard_at_most() -> None:
    """100 MB of weights in shards of 20 MB; a process that held the model would grow by 100 MB."""
    script = Path(__file__).parents[2] / "scripts" / "measure_export_memory.py"
    done = subprocess.run(
        [sys.executable, str(script), "--megabytes", "100", "--shard-megabytes", "20"],
        check=True,
        capture_output=True,
        text=True,
    )
    told = json.loads(done.stdout)
    assert told["shards"] >= 5
    assert told["model_bytes"] > 4 * told["largest_shard_bytes"]
    assert len(told["growth_bytes"]) == 5
    for title, growth in told["growth_bytes"].items():
        # Above 0.5: an export that reads whole tensors must show, or nothing was measured.
        assert 0.5 < growth / told["largest_shard_bytes"] < 1.5, title
