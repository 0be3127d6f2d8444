"""An oracle that stays: ``megu oracle serve`` and ``megu oracle stop``."""

from __future__ import annotations

import os
import re
import time

from megu_dist.config.schema import MeguSettings
from megu_dist.errors import UserError
from megu_dist.oracle import cluster_has_serve, serve
from megu_dist.oracle.fill import about
from megu_dist.raysession import ray_session

POLL_S = 1.0
_KEPT = re.compile(rf"{serve.PREFIX}[^-]+-[0-9a-f]{{8}}")  # a fill's own oracle has a second such word at its end


def keep(settings: MeguSettings) -> None:
    """Runs the oracle under the name that fills with the same settings look for.

    On a cluster the application stays there after this returns; a Ray of this process's own lives until Ctrl-C.
    """
    import ray
    from ray import serve as ray_serve

    known = about(settings.oracle)
    with ray_session(settings):
        name = serve.app_name(settings.oracle)
        ray_serve.start(proxy_location="Disabled")
        if name not in serve.running_apps():  # one that runs is left to the jobs that use it
            _deploy(settings, name)
        address = ray.get_runtime_context().gcs_address
        told = f"{name} serves {known.id}; jobs with the same oracle settings and run.address={address} use it"
        if os.environ.get("RAY_AUTH_MODE") == "token":  # Ray sets it for a cluster that it starts, not for who connects
            told += ", with RAY_AUTH_MODE=token in their environment"
        print(told, flush=True)
        if on_cluster(settings):
            print("it stays until `megu oracle stop`")
            return
        print("Ctrl-C stops it", flush=True)
        try:
            while True:
                time.sleep(POLL_S)
        finally:
            ray_serve.shutdown()


def stop(settings: MeguSettings) -> list[str]:
    """Deletes the oracles on the cluster; other Serve applications stay. Returns their names."""
    from ray import serve as ray_serve

    if not on_cluster(settings):
        raise UserError("run.address is not set: name the cluster, as in run.address=auto")
    with ray_session(settings):
        names = [name for name in _applications() if _KEPT.fullmatch(name)]
        for name in names:
            ray_serve.delete(name)
    return names


def _deploy(settings: MeguSettings, name: str) -> None:
    """One that does not come up leaves nothing behind."""
    from ray import serve as ray_serve

    try:
        serve.deploy(settings.oracle, name)
    except BaseException:
        ray_serve.delete(name)
        raise


def _applications() -> list[str]:
    """Serve's applications on the connected cluster, in whatever state."""
    from ray import serve as ray_serve

    return sorted(ray_serve.status().applications) if cluster_has_serve() else []


def on_cluster(settings: MeguSettings) -> bool:
    """Whether Ray outlives this process."""
    return bool(settings.run.address or os.environ.get("RAY_ADDRESS"))
