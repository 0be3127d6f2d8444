"""A cluster without room: what is missing is said within a minute, and waiting for it ends as configured."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import disturb
import pytest

from megu_dist.placement import describe, pending

Run = Callable[[list[str]], Any]


@contextmanager
def held(cpus: float) -> Iterator[None]:
    """CPUs that another job has; without its own, Ray's groups are left as they were."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group([{"CPU": cpus}])
    ray.get(group.ready(), timeout=60)
    try:
        yield
    finally:
        remove_placement_group(group)


def groups() -> list[str]:
    """Names of the states of placement groups that are not removed."""
    from ray.util.placement_group import placement_group_table

    return [group["state"] for group in placement_group_table().values() if group["state"] != "REMOVED"]


def refused(done: Any, stage: str) -> None:
    assert done.code == 2, done.output
    words = " ".join(done.output.split())
    assert f"megu: {stage} waits for room on the cluster: Ray cannot place" in words
    assert "0.5 of 8 CPU free" in words
    assert "Given up after run.placement_timeout_s=5" in words
    assert "Traceback" not in done.output


def test_the_words_for_what_is_missing() -> None:
    worker = (("CPU", 2.0), ("GPU", 1.0))
    words = describe(Counter({(worker, worker): 1}), {"CPU": 8, "GPU": 4}, {"CPU": 1.0, "GPU": 4})
    assert words == (
        "Ray cannot place 2 × (2 CPU, 1 GPU) together; the cluster has 1 of 8 CPU free, 4 of 4 GPU free "
        "(other work holds the rest, or no node is large enough)"
    )
    words = describe(Counter({((("GPU", 1.0),),): 3}), {"CPU": 8}, {"CPU": 8})
    assert words == "Ray cannot place 3 × (1 GPU); the cluster has no GPU at all (more GPU than there is)"


def test_a_worker_group_without_room_gives_up_and_leaves_no_group(
    ray_local: None, request_words: list[str], run_megu: Run, tmp_path: Path
) -> None:
    words = ["train", *request_words[1:4], "train.epochs=1", "engine=ddp", f"run.dir={tmp_path}", "run.name=train"]
    with held(7.5):
        refused(run_megu([*words, "run.placement_timeout_s=5"]), "finetune")
    disturb.wait_for(lambda: not groups() and not pending(), "the end of the groups", 60)
    done = run_megu(words)
    assert done.code == 0, done.output


@pytest.mark.slow
def test_other_stages_without_room_give_up(
    ray_local: None, request_words: list[str], run_megu: Run, tmp_path: Path
) -> None:
    words = [*request_words, f"run.dir={tmp_path}", "run.name=run"]
    short = [*words, "run.placement_timeout_s=5"]
    with held(7.5):
        refused(run_megu(short), "oracle")
    done = run_megu(["oracle", *words[1:]])
    assert done.code == 0, done.output
    with held(7.5):
        refused(run_megu(short), "perturb")
    done = run_megu(words)
    assert done.code == 0, done.output
    with held(7.5):
        refused(run_megu([*short, "evaluate.split=validation", "data.validation_fraction=0.1"]), "perturb")
        refused(
            run_megu(["evaluate", *short[1:], f"evaluate.unlearned={tmp_path}/run/model", "run.name=e"]), "evaluate"
        )
    disturb.wait_for(lambda: not groups() and not pending(), "the end of the groups", 60)


@pytest.mark.slow
def test_a_run_says_within_a_minute_what_it_waits_for_and_goes_on_when_there_is_room(
    ray_local: None, request_words: list[str], undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    with disturb.command([*request_words, f"run.address={address}"], tmp_path, "run") as run:
        with held(7.5):
            run.until(lambda: "oracle: started" in run.output, "the first stage that needs room")
            start = time.monotonic()
            run.until(lambda: "oracle waits for room" in run.output, "the message", every=0.2)
            assert time.monotonic() - start < 60
            assert "0.5 of 8 CPU free" in run.output
        assert run.finish() == undisturbed
    assert not disturb.leftovers(tmp_path, run.folder)
