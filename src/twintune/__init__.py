"""One LoRA recipe, run on two backends, measured to be the same job.

Importing this package imports no framework: torch, mindspore and transformers are loaded by the
function that needs them.
"""

__version__ = "0.1.0"
