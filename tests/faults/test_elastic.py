"""The number of training workers changes in mid-run: nodes go and come, or the user asks for another number."""

from __future__ import annotations

from pathlib import Path

import disturb
import nodes
import numpy as np
import outcomes
import pytest
from safetensors.numpy import load_file

from megu_dist.engine import checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
# One worker a node. Epochs are short: each waits half a second for Ray Train to take its checkpoint. At a learning rate of
# .02, rounding in another order grows to .3 in the 2,000 steps, with workers left alone, too; at .0005 to .0001.
GROUP = ["train.num_cpus=3", "train.max_failures=5", "train.epochs=500", "train.lr=0.0005"]


def newest(run: disturb.Command) -> Path | None:
    """The newest whole checkpoint."""
    roots = list((run.folder / "checkpoints").glob("*"))
    return checkpoints.newest(roots[0]) if roots else None


def written_by(run: disturb.Command, workers: int, after: int = -1) -> int:
    """Waits for a checkpoint of so many workers that has seen more epochs than ``after``; its epoch."""

    def look() -> Path | None:
        found = newest(run)
        fits = found is not None and checkpoints.world_of(found) == workers
        return found if found and fits and checkpoints.progress_of(found).epoch > after else None

    return checkpoints.progress_of(run.until(look, f"a checkpoint of {workers} workers", every=0.1)).epoch


def same(run: disturb.Command, expected: Path) -> None:
    """Sums over workers are added in another order, and nothing else differs."""
    found, wanted = (load_file(folder / "model" / "model.safetensors") for folder in (run.folder, expected))
    assert found.keys() == wanted.keys()
    assert max(float(np.abs(found[name] - value).max()) for name, value in wanted.items()) < 1e-3


@pytest.fixture(scope="module")
def expected(training_words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same training by one worker, left alone."""
    return outcomes.trained_here([*training_words, *GROUP], tmp_path_factory.mktemp("expected"))


def test_a_group_shrinks_when_a_node_is_lost_and_grows_when_one_comes(
    training_words: list[str], expected: Path, cluster: nodes.Nodes, tmp_path: Path
) -> None:
    words = ["train", *training_words, *GROUP, "train.num_workers=2", "train.min_workers=1"]
    with disturb.command([*words, f"run.address={cluster.address}"], tmp_path, "run") as run:
        seen = written_by(run, 2)
        cluster.kill(disturb.named(cluster.processes(), "train worker")[0])
        seen = written_by(run, 1, seen)
        cluster.add()
        written_by(run, 2, seen)
        assert run.wait(600) == 0, run.log[-8000:]
        same(run, expected)
        cluster.nothing_is_left(run)


def test_a_group_below_its_least_says_so_and_goes_on_with_a_new_node(
    training_words: list[str], expected: Path, cluster: nodes.Nodes, tmp_path: Path
) -> None:
    words = ["train", *training_words, *GROUP, "train.num_workers=3", "train.min_workers=2"]
    with disturb.command([*words, f"run.address={cluster.address}"], tmp_path, "run") as run:
        seen = written_by(run, 2)
        cluster.kill(disturb.named(cluster.processes(), "train worker")[0])
        run.until(lambda: "train waits for room" in run.output, "the message", every=0.2)
        assert "Ray cannot place 2 × (3 CPU) together" in " ".join(run.output.split())
        cluster.add()
        written_by(run, 2, seen)
        assert run.wait(600) == 0, run.log[-8000:]
        same(run, expected)
        cluster.nothing_is_left(run)


def test_a_group_below_its_least_gives_up_as_configured(
    training_words: list[str], cluster: nodes.Nodes, tmp_path: Path
) -> None:
    words = ["train", *training_words, *GROUP, "train.num_workers=3", "train.min_workers=2"]
    with disturb.command(
        [*words, f"run.address={cluster.address}", "run.placement_timeout_s=20"], tmp_path, "run"
    ) as run:
        written_by(run, 2)
        cluster.kill(disturb.named(cluster.processes(), "train worker")[0])
        assert run.wait() == 2, run.log[-8000:]
        told = " ".join(run.output.split())
        assert "Given up after run.placement_timeout_s=20: run the same command again" in told
        assert "(train.num_workers, train.num_cpus)" in told
        assert "Traceback" not in told
        cluster.nothing_is_left(run)


def test_a_killed_command_goes_on_with_another_number_of_workers(
    request_words: list[str], undisturbed: dict[str, object], tmp_path: Path
) -> None:
    with disturb.command([*request_words, "train.num_workers=2"], tmp_path, "run") as run:
        written_by(run, 2)
        assert run.process is not None
        run.process.kill()
        run.process.wait()
        disturb.gone(run.mark, agents=False)
        run.words = [*request_words, "train.num_workers=1"]
        found = run.start().finish()
        assert "perturb: already done" in run.output
        info = outcomes.record(run.folder, "finetune")["info"]
        assert (info["world_size"], info["resumed"]["workers"]) == (1, 2)
        assert info["resumed"]["fresh_optimizer"] is None
    outcomes.assert_close(found, undisturbed)
    disturb.gone(run.mark, agents=False)
    assert not disturb.leftovers(tmp_path, run.folder)
