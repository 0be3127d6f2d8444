"""An oracle that stays: ``megu oracle serve`` and ``megu oracle stop``."""

from __future__ import annotations

import time

from megu_dist.config.schema import MeguSettings
from megu_dist.errors import UserError
from megu_dist.oracle import serve
from megu_dist.oracle.fill import about
from megu_dist.raysession import ray_session

POLL_S = 1.0


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
        ray_serve.run(serve.application(settings.oracle), name=name, route_prefix=None)
        address = ray.get_runtime_context().gcs_address
        print(
            f"{name} serves {known.id}; jobs with the same oracle settings and run.address={address} use it", flush=True
        )
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
        names = serve.running_apps()
        for name in names:
            ray_serve.delete(name)
    return names


def on_cluster(settings: MeguSettings) -> bool:
    """Whether Ray outlives this process."""
    import os

    return bool(settings.run.address or os.environ.get("RAY_ADDRESS"))
