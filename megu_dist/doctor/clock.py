"""Clock skew between the nodes and this process, from the answer with the shortest way there and back."""

from __future__ import annotations

import time
from collections.abc import Callable

from megu_dist.doctor.base import FAIL, OK, WARN, Asked, Facts, Finding, Seen, duration, listed

ASK = 8
NOTED, HARMFUL = 1.0, 60.0  # seconds


def measure(now: Callable[[], float]) -> Facts:
    """Seconds that the clock behind ``now`` is ahead of this one, and how far off that may be."""
    best = (float("inf"), 0.0)
    for _ in range(ASK):
        before, mark = time.time(), time.monotonic()
        there = now()
        took = time.monotonic() - mark
        best = min(best, (took, there - (before + took / 2)))
    return {"ahead": best[1], "uncertain": best[0] / 2}


def judge(seen: Seen, asked: Asked) -> list[Finding]:
    """Each node that is off; two nodes may differ from each other by more than from this process."""
    found = []
    for name, facts in seen.items():
        off = abs(facts["ahead"]) - facts["uncertain"]
        if off > NOTED:
            told = f"the clock is {duration(abs(facts['ahead']))} {'ahead' if facts['ahead'] > 0 else 'behind'}"
            harm = ": object storage refuses requests, and times in logs and records are wrong" if off > HARMFUL else ""
            mend = "synchronise clocks: chronyd or systemd-timesyncd (timedatectl set-ntp true)"
            found.append(Finding("clock", FAIL if off > HARMFUL else WARN, told + harm, mend, (name,)))
    if found:
        return found
    worst = max(abs(facts["ahead"]) + facts["uncertain"] for facts in seen.values())
    return [Finding("clock", OK, f"clocks of {listed(list(seen))} agree within {max(worst, 0.001):.3f} s")]
