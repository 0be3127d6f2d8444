"""Nodes of a cluster are killed or frozen while a run's parts are on them; the run ends in the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import disturb
import nodes
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def seen(run: disturb.Command, cluster: nodes.Nodes, what: str) -> disturb.Process:
    """A process of the kind, at work on a node."""
    run.until(disturb.moments(run.folder)[what], f"the moment of the {what}")
    found: list[disturb.Process] = run.until(lambda: disturb.named(cluster.processes(), what), f"a {what}")
    return found[0]


def test_the_node_of_every_part_is_killed(
    request_words: list[str], undisturbed: dict[str, Any], cluster: nodes.Nodes, tmp_path: Path
) -> None:
    """The oracle's replica, a reader, the model actor of perturb, a train worker, the model actor of evaluate."""
    with disturb.command([*request_words, f"run.address={cluster.address}"], tmp_path, "run") as run:
        for what in disturb.moments(run.folder):
            cluster.kill(seen(run, cluster, what))
            cluster.add()
        assert run.finish() == undisturbed
        cluster.nothing_is_left(run)


def test_the_node_of_every_part_is_frozen(
    request_words: list[str], undisturbed: dict[str, Any], cluster: nodes.Nodes, tmp_path: Path
) -> None:
    """Past its heartbeat; it wakes up when others have its work."""
    with disturb.command([*request_words, f"run.address={cluster.address}"], tmp_path, "run") as run:
        after = dict(zip(disturb.STAGES, disturb.STAGES[1:], strict=False))
        for what, stage in (("replica", "oracle"), ("perturber", "perturb"), ("train worker", "finetune")):
            cluster.freeze(seen(run, cluster, what))
            cluster.add()
            run.until(lambda stage=stage: f"{after[stage]}: started" in run.output, f"the end of {stage}")  # type: ignore[misc]
            cluster.thaw()
        cluster.freeze(seen(run, cluster, "predictor"))
        assert run.finish() == undisturbed
        cluster.thaw()
        cluster.nothing_is_left(run)
