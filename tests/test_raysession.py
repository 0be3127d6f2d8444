"""What a session sets before it starts Ray."""

from __future__ import annotations

import subprocess
import sys

LOOK = """
import sys
from megu_dist import cli, raysession
from megu_dist.config.compose import load

def look():
    raise SystemExit("Ray is imported" if "ray" in sys.modules else None)

raysession.worker_environment = look
with raysession.ray_session(load(["data=digits"]).settings):
    pass
"""


def test_the_environment_is_set_before_ray_is_imported() -> None:
    """Ray reads RAY_DEDUP_LOGS once, on import; what it holds back to fold would come after the command's last word."""
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
