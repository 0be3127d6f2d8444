"""``megu doctor``: words in, findings out, exit status."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from megu_dist.config.compose import load
from megu_dist.doctor.base import FAIL, LEVELS, OK, Finding
from megu_dist.doctor.examine import Outcome, examine
from megu_dist.errors import UserError, nearest

SCHEMA = 1
OPTIONS = ("--address", "--storage", "--config-dir", "--json", "--help")
HELP = """megu doctor: check this machine or a Ray cluster, and say how to mend what is wrong

Usage: megu doctor [--address auto|HOST:PORT] [--storage DIR] [--json] [key=value …]

Examples:
  megu doctor
  megu doctor --storage /shared/runs
  megu doctor --address auto --storage /shared/runs
  megu doctor --address auto --json
  megu doctor experiment=imagenet_vit_l16_1x8 run.dir=/shared/runs run.address=auto

  --address ADDR    every node of the Ray cluster there; auto: the one that this machine belongs to
  --storage DIR     the folder that all nodes share; else run.dir
  --json            one JSON object in place of the table
  key=value         settings, as for other verbs; run.dir, run.address and run.object_store_gb are looked at

Looks at: versions of Python and packages, GPUs and driver, shared storage, DeepSpeed's operators and stale build locks,
free disk and shared memory, clocks, ports, tokens. It writes small files into the storage folder, and removes them.
Exit status: 0 nothing fails (warnings may be there), 1 something does, 2 wrong words."""


def doctor(words: Sequence[str]) -> int:
    """``megu doctor``."""
    if "--help" in words or "-h" in words:
        print(HELP)
        return 0
    options, rest = _read(words)
    run = load(rest, (), options.get("--config-dir")).settings.run
    folder = Path(options.get("--storage") or run.dir).expanduser()
    if "://" in str(options.get("--storage") or run.dir):
        raise UserError(
            f"--storage={options.get('--storage') or run.dir}: must be a folder that the nodes have mounted"
        )
    address = options.get("--address") or run.address
    if sys.stderr.isatty():
        print("looking at every node; this takes some seconds …" if address else "looking …", file=sys.stderr)
    outcome = examine(str(folder.absolute()), int(run.object_store_gb * 2**30), address)
    if "--json" in options:
        print(as_json(outcome))
    else:
        show(outcome)
    return int(worst(outcome) == FAIL)


def _read(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Options with their values, and the key=value words."""
    options: dict[str, str] = {}
    rest: list[str] = []
    queue = list(words)
    while queue:
        flag, given, value = (word := queue.pop(0)).partition("=")
        if not word.startswith("--"):
            rest.append(word)
        elif flag not in OPTIONS:
            raise UserError(f"unknown option {flag}: {nearest(flag, OPTIONS)}")
        elif flag == "--json":
            options[flag] = "yes"
        elif given or queue:
            options[flag] = value if given else queue.pop(0)
        else:
            raise UserError(f"{flag} needs a value; megu doctor --help shows examples")
    return options, rest


def worst(outcome: Outcome) -> str:
    """The worst level found."""
    return max((one.level for one in outcome.findings), key=LEVELS.index, default=OK)


def merged(findings: Sequence[Finding]) -> list[Finding]:
    """What is the same on several nodes, once."""
    nodes: dict[Finding, list[str]] = {}
    for one in findings:
        nodes.setdefault(Finding(one.check, one.level, one.text, one.mend), []).extend(one.nodes)
    return [Finding(one.check, one.level, one.text, one.mend, tuple(names)) for one, names in nodes.items()]


def as_json(outcome: Outcome) -> str:
    """``nodes``, ``worst`` and ``findings`` (check, level, text, mend, nodes; no nodes: all of them)."""
    findings = [asdict(one) for one in merged(outcome.findings)]
    whole = {"schema": SCHEMA, "nodes": outcome.nodes, "worst": worst(outcome), "findings": findings}
    return json.dumps(whole, indent=1, ensure_ascii=False)


def show(outcome: Outcome) -> None:
    """A table on a terminal; in a pipe one line a finding, and its ``mend`` on the next."""
    findings = merged(outcome.findings)
    several = len(outcome.nodes) > 1
    if sys.stdout.isatty():
        _table(outcome, findings, several)
    else:
        for one in findings:
            where = f" [{_where(one, outcome)}]" if several else ""
            print(f"{one.level:5}{one.check}{where}: {one.text}")
            if one.mend:
                print(f"     mend: {one.mend}")
    counts = {level: sum(one.level == level for one in findings) for level in LEVELS}
    about = f"{len(outcome.nodes)} nodes" if several else outcome.nodes[0]
    print(f"{about}: {counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} to mend")


def _where(one: Finding, outcome: Outcome) -> str:
    return "all nodes" if set(one.nodes) in (set(), set(outcome.nodes)) else ", ".join(one.nodes)


def _table(outcome: Outcome, findings: Sequence[Finding], several: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table("", "check", *(["where"] if several else []), "found, and how to mend it", box=box.SIMPLE)
    for one in findings:
        told = Text(one.text)
        if one.mend:
            told.append(f"\n→ {one.mend}", style="bold")
        where = [Text(_where(one, outcome))] if several else []
        table.add_row(Text(one.level, style=colours[one.level]), one.check, *where, told)
    Console(width=min(os.get_terminal_size().columns, 160)).print(table)
