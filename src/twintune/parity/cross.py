"""What one side's backend computes with the other side's final adapter."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twintune.backends import Probe
from twintune.errors import UserError
from twintune.parity.bundle import ADAPTER, Bundle, add_arrays, cross_group
from twintune.parity.record import adapter_logits, probe_job
from twintune.parity.selection import Conversation
from twintune.recipe import Recipe
from twintune.training_plan import decide


def cross(recipe: Recipe, bundle: Bundle, peer: Bundle) -> Bundle:
    """Add to a bundle what its backend computes with the other side's final adapter.

    Raises:
        UserError: if the recipe is not the bundle's, or the adapter does not fit.
    """
    asked = recipe.model_copy(update={"backend": recipe.backend.model_copy(update={"name": bundle.facts["backend"]})})
    with tempfile.TemporaryDirectory() as workshop:
        run = decide(asked, Path(workshop) / "run")
        if run.prepared.summary.fingerprint != bundle.facts["rows"]["fingerprint"]:
            raise UserError(
                f"{bundle.folder}: must be recorded from this recipe and data, got another; record it again"
            )
        probe = run.framework.open_probe(probe_job(run, Path(workshop)))
        conversations = read_conversations(bundle)
        return add_arrays(bundle, cross_group(peer), cross_logits(probe, peer, conversations, bundle))


def read_conversations(bundle: Bundle) -> list[Conversation]:
    """The conversations whose forward a bundle holds."""
    ids = bundle.arrays("forward")
    found = [
        Conversation(fact["row"], fact["start"], tuple(ids[f"ids.{number}"].tolist()), fact["prompt_length"])
        for number, fact in enumerate(bundle.facts["conversations"])
    ]
    return found[: bundle.facts["measured_conversations"]]


def cross_logits(
    probe: Probe, peer: Bundle, conversations: Sequence[Conversation], bundle: Bundle
) -> dict[str, NDArray[np.float32]]:
    """Logits of a bundle's conversations and positions with the other side's final adapter."""
    forward = bundle.arrays("forward")
    places = [forward[f"positions.{number}.logits"] for number in range(len(conversations))]
    return adapter_logits(probe, peer.folder / ADAPTER, conversations, places)
