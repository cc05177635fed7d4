"""use_rslora: PEFT's own network and ours have the same logits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the cuda backend's framework")
pytest.importorskip("peft", reason="the cuda extra is not installed")

from tests.tiny_models import save_tiny_model
from twintune.adapter_plan import seam_lora
from twintune.backends.cuda import CudaBackend
from twintune.converters.adapter import make_initial_adapter, write_adapter
from twintune.models import read_model_config
from twintune.recipe_sections import LoraSection

ROW = [3, 17, 90, 33, 5, 64]


def pefts_logits(model: Path, adapter: dict[str, Any], use_rslora: bool) -> Any:
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    config = LoraConfig(
        r=8, lora_alpha=4, target_modules=["q_proj", "v_proj"], use_rslora=use_rslora, task_type="CAUSAL_LM"
    )
    network = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).eval()
    set_peft_model_state_dict(network, {name: torch.from_numpy(tensor) for name, tensor in adapter.items()})
    with torch.no_grad():
        return network(torch.tensor([ROW])).logits[0].numpy()


# peft 0.21 asks transformers 5 for gradient checkpointing by its old name
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_logits_are_those_of_pefts_own_rslora(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", "llama")
    section = LoraSection(r=8, lora_alpha=4, use_rslora=True, target_modules=("q_proj", "v_proj"))
    config = read_model_config(model)
    lora = seam_lora(section, config)
    draw = np.random.default_rng(0)
    adapter = {
        name: draw.normal(scale=0.3, size=tensor.shape).astype(np.float32)
        for name, tensor in make_initial_adapter(config, lora, seed=0).items()
    }
    write_adapter(tmp_path / "adapter", adapter, lora, str(model))
    ours = CudaBackend().load_model(model, tmp_path / "adapter", pad_token_id=0, device="cpu", dtype="float32")
    logits = ours.logits([ROW])[0]
    np.testing.assert_allclose(logits, pefts_logits(model, adapter, use_rslora=True), rtol=0, atol=1e-5)
    assert np.abs(logits - pefts_logits(model, adapter, use_rslora=False)).max() > 0.1
