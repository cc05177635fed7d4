"""What the probe of either backend must refuse, and in which words."""

import numpy as np
import pytest

from twintune.backends import Probe
from twintune.errors import UserError

PREFIX = "base_model.model.model.layers.0.self_attn"


def check_wrong_matrices_are_named(probe: Probe) -> None:
    """One matrix is missing, one unknown, one transposed: all three are named, and nothing is put in."""
    tensors = probe.adapter()
    before = dict(tensors)
    del tensors[f"{PREFIX}.q_proj.lora_A.weight"]
    tensors["stranger"] = np.zeros(1, np.float32)
    tensors[f"{PREFIX}.q_proj.lora_B.weight"] = tensors[f"{PREFIX}.q_proj.lora_B.weight"].T + 1
    with pytest.raises(UserError) as caught:
        probe.put_adapter(tensors)
    missing, unknown, shape = caught.value.messages
    assert f"got no {PREFIX}.q_proj.lora_A.weight" in missing
    assert "got stranger besides" in unknown
    assert "must have shape [64, 4], got [4, 64]" in shape
    for name, tensor in probe.adapter().items():
        np.testing.assert_array_equal(tensor, before[name])
