"""How protobuf reads messages where MindSpore's own are among them."""

import os

from twintune.backends import missing_packages


def share_with_mindspore() -> None:
    """Call it before anything that imports protobuf: MindSpore, imported later, cannot use its compiled reader.

    MindSpore itself asks for the slower one in Python, too late by then: its import fails, and ends the process.
    """
    if not missing_packages("ascend"):
        os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
