"""Tells the driver's reporter how a sweep goes. A module of its own: Ray Tune stores callbacks, a reporter cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.tune import Callback

from megu_dist.progress import Reporter
from megu_dist.tune.space import words

REPORTER: list[Reporter] = []  # the running sweep's, if any


class Watch(Callback):
    """Counts finished trials and names failed ones."""

    def on_trial_complete(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        """See :class:`ray.tune.Callback`."""
        self._count(trials, trial)

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        """See :class:`ray.tune.Callback`."""
        for reporter in REPORTER:
            reporter.say(f"failed: {' '.join(words(trial.config))}")
        self._count(trials, trial)

    def _count(self, trials: Sequence[Any], trial: Any) -> None:
        for reporter in REPORTER:
            reporter.update(1 + sum(other.is_finished() for other in trials if other is not trial))
