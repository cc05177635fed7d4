"""Watchers to build others from: one that does nothing, and several told as one."""

from collections.abc import Sequence

from twintune.backends.job import Evaluation, Step, Watcher


class QuietWatcher:
    """A Watcher that does nothing; subclasses take up what concerns them."""

    def status(self, text: str) -> None:
        """A phase that takes long began."""

    def step(self, step: Step) -> None:
        """One optimizer step ended."""

    def evaluated(self, evaluation: Evaluation) -> None:
        """The validation rows were evaluated."""

    def saved(self, step: int) -> None:
        """The checkpoint after a step is whole."""


class Watchers:
    """A Watcher that hands on what it is told, in the given order."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self.watchers = watchers

    def status(self, text: str) -> None:
        """A phase that takes long began."""
        for watcher in self.watchers:
            watcher.status(text)

    def step(self, step: Step) -> None:
        """One optimizer step ended."""
        for watcher in self.watchers:
            watcher.step(step)

    def evaluated(self, evaluation: Evaluation) -> None:
        """The validation rows were evaluated."""
        for watcher in self.watchers:
            watcher.evaluated(evaluation)

    def saved(self, step: int) -> None:
        """The checkpoint after a step is whole."""
        for watcher in self.watchers:
            watcher.saved(step)
