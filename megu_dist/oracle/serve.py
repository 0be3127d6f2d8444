"""The oracle as a Ray Serve deployment with dynamic batching, called through its handle."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from megu_dist.config.registry import lookup
from megu_dist.config.schema import EXECUTION_ONLY, OracleSettings
from megu_dist.errors import UserError
from megu_dist.oracle.base import Pair, Rating

PREFIX = "megu-oracle-"
RETRIES = 3  # a rating is idempotent: asking again after a replica died is safe
BACK_OFF_S = 0.05  # first wait of a client whose requests the full queue turned away; doubles up to 2 s


def app_name(settings: OracleSettings) -> str:
    """The name under which ``megu oracle serve`` runs these settings, and under which fills look for it."""
    given = asdict(located(settings))
    keyed = {key: value for key, value in given.items() if key not in EXECUTION_ONLY | set(ASKING)}
    digest = hashlib.sha256(json.dumps(keyed, sort_keys=True, default=str).encode()).hexdigest()
    return f"{PREFIX}{settings.name}-{digest[:8]}"


# Settings of the fill, not of the served model: jobs that differ in these share a running oracle.
ASKING = ("images", "image_side", "descriptions", "shortlist", "tail_mass", "both_orders", "phrasings", "max_refused",
          "on_degenerate", "fallback", "price_prompt", "price_answer", "image_tokens")  # fmt: skip


def located(settings: OracleSettings) -> OracleSettings:
    """The same, with model folders as absolute paths: replicas run elsewhere than this process."""

    def absolute(given: Mapping[str, Any]) -> dict[str, Any]:
        path = Path(str(given.get("path"))).expanduser()
        return {"path": str(path.resolve())} if given.get("path") and path.exists() else {}  # else a hub id

    changed = absolute(vars(settings))
    if isinstance(members := getattr(settings, "members", None), Mapping):
        changed["members"] = {name: {**own, **absolute(own)} if isinstance(own, Mapping) else own
                              for name, own in members.items()}  # fmt: skip
    return replace(settings, **changed)


def application(settings: OracleSettings) -> Any:
    """A Serve application with one deployment; the batch never waits for more requests than a replica may hold."""
    from ray import serve

    settings = located(settings)
    requests_per_batch = max(1, settings.max_batch_size // max(1, settings.pairs_per_request))
    scaling: dict[str, Any] = {"num_replicas": settings.num_replicas}
    if settings.max_replicas is not None and settings.max_replicas > settings.num_replicas:
        bounds = {"min_replicas": settings.num_replicas, "max_replicas": settings.max_replicas}
        scaling = {"autoscaling_config": {**bounds, "target_ongoing_requests": requests_per_batch}}

    @serve.deployment(
        name="oracle",
        max_ongoing_requests=2 * requests_per_batch,
        max_queued_requests=settings.max_queued,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        health_check_period_s=settings.health_check_s,
        health_check_timeout_s=6 * settings.health_check_s,
        graceful_shutdown_timeout_s=5,
        graceful_shutdown_wait_loop_s=0.1,  # what a stopping replica waits at least
        max_constructor_retry_count=2,
        logging_config={"enable_access_log": False},
        **scaling,
    )
    class OracleDeployment:
        """Computation runs in a thread, so that the replica answers health checks while a forward pass lasts."""

        def __init__(self) -> None:
            self.backend = lookup("oracle", settings.name).target(settings)
            self.waits = inspect.iscoroutinefunction(self.backend.rate)

        @serve.batch(max_batch_size=requests_per_batch, batch_wait_timeout_s=settings.batch_wait_s)
        async def batched(self, requests: list[list[Pair]]) -> list[list[Rating]]:
            flat = [pair for pairs in requests for pair in pairs]
            size, rated = settings.max_batch_size, []
            for start in range(0, len(flat), size):
                rated += await asyncio.to_thread(self.backend.rate, flat[start : start + size])
            answers = iter(rated)
            return [[next(answers) for _ in pairs] for pairs in requests]

        async def rate(self, pairs: list[Pair]) -> list[Rating]:
            if self.waits:
                return await self.backend.rate(pairs)
            return await self.batched(pairs)

        async def check_health(self) -> None:
            check = getattr(self.backend, "check_health", None)
            if check is not None:
                check()

    return OracleDeployment.bind()  # type: ignore[attr-defined]


def running_apps() -> list[str]:
    """Names of the oracles that ``megu oracle serve`` keeps running on the connected cluster."""
    from ray import serve

    from megu_dist.oracle import cluster_has_serve

    if not cluster_has_serve():
        return []
    apps = serve.status().applications
    return sorted(name for name, app in apps.items() if name.startswith(PREFIX) and app.status == "RUNNING")


def deploy(settings: OracleSettings, name: str) -> Any:
    """Runs the oracle as the application ``name``; returns its handle once a replica is ready.

    Raises :class:`UserError` with what the replica said where none comes up. The failed application is left.
    """
    from ray import serve
    from ray.exceptions import ActorDiedError

    for attempt in range(RETRIES + 1):
        try:
            return serve.run(application(settings), name=name, route_prefix=None)
        except RuntimeError as error:  # says only that there was an error; the deployment's status holds the traceback
            failed = serve.status().applications.get(name)
            told = "\n".join(one.message for one in failed.deployments.values()) if failed else ""
            told = told.strip() or str(error)
        # Serve counts a replica that went down with its node, or was sent to a node not yet known to be dead, as one
        # that cannot start.
        if ActorDiedError.__name__ not in told or attempt == RETRIES:
            break
        serve.delete(name)
    raise UserError(f"the oracle {settings.name!r} does not start: {_last_words(told)}; see log.txt of the run")


def _last_words(traceback: str) -> str:
    """The first line of the last exception in a text; a user error's own sentence."""
    found = re.findall(r"^(?:\w+\.)*(\w*(?:Error|Exception|Exit)): (.+)$", traceback, re.MULTILINE)
    if not found:
        return traceback.strip().splitlines()[-1]
    kind, words = found[-1]
    return words if kind == UserError.__name__ else f"{kind}: {words}"


@contextmanager
def served(settings: OracleSettings) -> Iterator[Any]:
    """Yields the handle of the oracle: one that runs already for these settings, or one for the length of the block.

    No HTTP route, no proxy. Serve itself is shut down afterwards only if this call started it and nobody has come to
    use it since: a cluster's other applications, and other fills, stay.
    """
    from ray import serve

    from megu_dist.oracle import cluster_has_serve

    ours = not cluster_has_serve()
    if not ours and app_name(settings) in running_apps():
        yield serve.get_app_handle(app_name(settings))
        return
    name = f"{app_name(settings)}-{uuid.uuid4().hex[:8]}"
    if ours:
        serve.start(proxy_location="Disabled")
    try:
        yield deploy(settings, name)
    finally:
        serve.delete(name)
        if ours and not serve.status().applications:
            serve.shutdown()


def rate_all(
    handle: Any,
    pairs: list[Pair],
    settings: OracleSettings,
    arrived: Callable[[list[Pair], list[Rating]], None],
    unknown: Callable[[list[Pair]], list[Pair]] = list,
) -> None:
    """Asks for all ``pairs``; ``arrived`` gets each answered request at once, in any order.

    ``unknown`` thins a request out just before it is sent: another job may have had its questions answered meanwhile.
    Open requests are bounded, so that an interrupted fill loses little; a full queue makes the client wait.
    """
    asyncio.run(_rate_all(handle, pairs, settings, arrived, unknown))


async def _rate_all(
    handle: Any,
    pairs: list[Pair],
    settings: OracleSettings,
    arrived: Callable[[list[Pair], list[Rating]], None],
    unknown: Callable[[list[Pair]], list[Pair]],
) -> None:
    size = max(1, settings.pairs_per_request)
    parts = iter([pairs[start : start + size] for start in range(0, len(pairs), size)])
    replicas = max(settings.num_replicas, settings.max_replicas or 0)
    window = max(2, 2 * replicas * max(1, settings.max_batch_size // size))

    async def work() -> None:
        for part in parts:
            wanted = unknown(part)
            if wanted:
                arrived(wanted, await _ask(handle, wanted, settings.timeout_s))

    tasks = [asyncio.ensure_future(work()) for _ in range(min(window, -(-len(pairs) // size)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _ask(handle: Any, pairs: list[Pair], timeout_s: float) -> list[Rating]:
    from ray.exceptions import ActorDiedError, ActorUnavailableError
    from ray.serve.exceptions import BackPressureError

    died, wait = 0, BACK_OFF_S
    while True:
        try:
            return [Rating(*rating) for rating in await asyncio.wait_for(_send(handle, pairs), timeout_s)]
        except BackPressureError:
            await asyncio.sleep(wait)
            wait = min(2.0, 2 * wait)
        except (ActorDiedError, ActorUnavailableError):
            died += 1
            if died > RETRIES:
                raise
        except TimeoutError:
            raise UserError(
                f"the oracle did not answer a request of {len(pairs)} pairs within "
                f"oracle.timeout_s={timeout_s:g}; what was "
                "answered is stored: ask for fewer pairs at a time (oracle.pairs_per_request), or wait longer"
            ) from None


async def _send(handle: Any, pairs: list[Pair]) -> Any:
    return await handle.rate.remote(pairs)
