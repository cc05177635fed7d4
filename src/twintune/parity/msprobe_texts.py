"""The texts beside msprobe's settings: a script for each side, and how to use them."""

DUMP_PYTORCH = '''"""Dump the forward of {stage} in PyTorch: python dump_pytorch.py MODEL_FOLDER ADAPTER_FOLDER"""

import json
import sys
from pathlib import Path

import torch
from msprobe.pytorch import PrecisionDebugger

from twintune.backends.cuda.device import choose_device
from twintune.backends.cuda.model import autocast, load_base, put_on_adapter
from twintune.converters.adapter import read_adapter

model, adapter = map(Path, sys.argv[1:])
device = choose_device("auto").value
network = load_base(model, device, "{dtype}")
lora, matrices = read_adapter(adapter)
put_on_adapter(network, lora, matrices, adapter).eval()  # puts LoRA into `network` itself
row = torch.tensor([json.loads(Path("row.json").read_text())], device=device)

debugger = PrecisionDebugger(config_path="config_pytorch.json")
debugger.start(model=network)
with torch.no_grad(), autocast(device, "{dtype}"):
    network(input_ids=row, use_cache=False)
debugger.stop()
debugger.step()
'''

DUMP_MINDSPORE = '''"""Dump the forward of {stage} in MindSpore: python dump_mindspore.py MODEL_FOLDER ADAPTER_FOLDER"""

import json
import sys
from pathlib import Path

from twintune.backends.ascend.runtime import choose_device, import_quietly

import_quietly()

import mindspore
from msprobe.mindspore import PrecisionDebugger

from twintune.backends.ascend.decode import MindFormersModel

model, adapter = map(Path, sys.argv[1:])
row = json.loads(Path("row.json").read_text())
device = choose_device("auto").value
loaded = MindFormersModel(model, adapter, pad_token_id={pad_token_id}, device=device, dtype="{dtype}")
loaded.logits([row])  # builds the network, and compiles its graph: minutes for a large model

mindspore.set_context(mode=mindspore.PYNATIVE_MODE)  # msprobe compares the frameworks' dynamic graphs
network = loaded.network.network.network  # inside MindFormers' two LoRA wrappers
debugger = PrecisionDebugger(config_path="config_mindspore.json")
debugger.start(model=network)
loaded.logits([row])
debugger.stop()
debugger.step()
'''

README = """# Look inside {stage} with msprobe

Parity found that {stage} is the first stage of the network whose output differs. msprobe, Ascend's precision
debugger, compares the modules inside it, one by one.

| file | what it is |
|---|---|
| `config_pytorch.json`, `config_mindspore.json` | the forward of {stage}, whole tensors, by module (level L0) |
| `layer_mapping.yaml` | each MindFormers cell and the Hugging Face module that computes the same |
| `row.json` | token ids of a conversation that shows the difference, a multiple of 16 long, so that no side pads |
| `dump_pytorch.py`, `dump_mindspore.py` | load the model and adapter, and run that row between `start` and `stop` |

## Run it

On each machine, beside twintune: `pip install mindstudio-probe`. Copy this folder, the model's Hugging Face folder and
the adapter (PEFT) to both, and inside this folder run

```bash
python dump_pytorch.py MODEL_FOLDER ADAPTER_FOLDER      # where PyTorch is: writes dump_pytorch/
python dump_mindspore.py MODEL_FOLDER ADAPTER_FOLDER    # where MindSpore is: writes dump_mindspore/
```

Then, with both dumps in this folder, where both frameworks are installed (a CPU will do):

```bash
python -c 'import mindspore; from msprobe.msprobe import main; main()' compare \\
    -tp dump_mindspore/step0/*/dump.json -gp dump_pytorch/step0/*/dump.json -lm layer_mapping.yaml -o result
```

MindSpore is imported first because a newer protobuf, which msprobe brings in, refuses it afterwards; where
`msprobe compare` alone works, it does the same.

## Read it

`result/compare_result_*.csv` has a line for each input, output and weight. Look for the first line, in the order of
the computation, whose output is off while its input is not (`Cosine` below 1, a large `MaxAbsErr`).

- The output of `feed_forward.w1` always differs from that of `mlp.gate_proj`: MindFormers' w1 ends with the activation.
  The lines of `w1.activation` compare both: their input is what the projection gave.
- Lines without a partner (masks, rotary tables, LoRA matrices under MindFormers' names) are internal to one side.
  Parity has compared all weights before.
- MindSpore runs in PyNative mode and without flash attention here. If nothing differs in this dump, though parity sees
  a difference, then it comes from the graph compiler or from flash attention: set `use_flash_attention: False` under
  `backend.ascend.overrides`, in `model.model_config`, and record again.
- To go inside a module, set `level` to `mix` in both configurations (calls of the framework too). For more of the
  network, change `list`; the module map covers all of it.

## In a script of your own

```python
from msprobe.pytorch import PrecisionDebugger    # or msprobe.mindspore

debugger = PrecisionDebugger(config_path="config_pytorch.json")    # or config_mindspore.json
debugger.start(model=network)    # the causal language model itself, without wrappers: names begin with `model.`
...                              # one forward
debugger.stop()
debugger.step()
```
"""
