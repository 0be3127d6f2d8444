"""The oracle as a Ray Serve deployment with dynamic batching, called through its handle."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from megu_dist.config.registry import lookup
from megu_dist.config.schema import OracleSettings
from megu_dist.oracle.base import Pair

IN_FLIGHT = 512  # requests that the client keeps open
RETRIES = 3  # a rating is idempotent: asking again after a replica died is safe


def application(settings: OracleSettings) -> Any:
    """A Serve application with one deployment; the batch never waits for more requests than a replica may hold."""
    from ray import serve

    @serve.deployment(
        name="oracle",
        num_replicas=settings.num_replicas,
        max_ongoing_requests=2 * settings.max_batch_size,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        max_constructor_retry_count=2,
    )
    class OracleDeployment:
        def __init__(self) -> None:
            self.backend = lookup("oracle", settings.name).target(settings)

        @serve.batch(max_batch_size=settings.max_batch_size, batch_wait_timeout_s=settings.batch_wait_s)
        async def rate(self, pairs: list[Pair]) -> list[float]:
            return self.backend.rate(pairs)

        def about(self) -> dict[str, str]:
            return {"id": self.backend.identity, "stand_in": self.backend.stand_in}

    return OracleDeployment.bind()  # type: ignore[attr-defined]


@contextmanager
def served(settings: OracleSettings) -> Iterator[Any]:
    """Runs the oracle for the length of the block and yields its handle; no HTTP route, no proxy.

    Serve itself is shut down afterwards only if this call started it: a cluster's other applications stay.
    """
    from ray import serve

    from megu_dist.oracle import cluster_has_serve

    ours = not cluster_has_serve()
    name = f"megu-oracle-{uuid.uuid4().hex[:8]}"
    if ours:
        serve.start(proxy_location="Disabled")
    try:
        yield serve.run(application(settings), name=name, route_prefix=None)
    finally:
        if ours:
            serve.shutdown()
        else:
            serve.delete(name)


def rate_all(
    handle: Any, pairs: list[Pair], timeout_s: float, progress: Callable[[int], None] | None = None
) -> list[float]:
    """Ratings of ``pairs`` in order; at most :data:`IN_FLIGHT` requests wait at the replicas at a time."""
    out: list[float] = []
    for start in range(0, len(pairs), IN_FLIGHT):
        part = pairs[start : start + IN_FLIGHT]
        waiting = [handle.rate.remote(pair) for pair in part]
        for pair, response in zip(part, waiting, strict=True):
            out.append(_result(handle, pair, response, timeout_s))
        if progress:
            progress(len(out))
    return out


def _result(handle: Any, pair: Pair, response: Any, timeout_s: float) -> float:
    from ray.exceptions import ActorDiedError, ActorUnavailableError

    for attempt in range(RETRIES + 1):
        try:
            return float(response.result(timeout_s=timeout_s))
        except (ActorDiedError, ActorUnavailableError):
            if attempt == RETRIES:
                raise
            response = handle.rate.remote(pair)
    raise AssertionError("unreachable")
