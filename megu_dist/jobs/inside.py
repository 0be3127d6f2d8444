"""What a job runs on the cluster: ``python -m megu_dist.jobs.inside [--version V] -- VERB key=value …``.

It checks what only the cluster knows (megu's version, secrets) and then runs the verb, whose exit status is the job's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

SECRETS = "MEGU_JOB_SECRETS"  # NAME or NAME=FILE, separated by commas: names only


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of a job."""
    words = list(sys.argv[1:] if argv is None else argv)
    at = words.index("--")
    problem = _version(words[:at]) or _missing_secrets()
    if problem:
        print(f"megu: {problem}", file=sys.stderr)
        sys.exit(2)
    from megu_dist.cli import main as verb

    verb(words[at + 1 :])


def load_secrets() -> None:
    """Puts secrets from files into the environment: of the job, and (as Ray's setup hook) of each of its workers.

    A file that is not there is left to whoever needs the variable: not every worker does.
    """
    for name, file in _named():
        if file and Path(file).is_file():
            os.environ[name] = Path(file).read_text().strip()


def _missing_secrets() -> str | None:
    load_secrets()
    for name, file in _named():
        if not os.environ.get(name):
            where = f"there is no readable file {file}" if file else "the head node's environment does not have it"
            return f"secret {name}: {where}"
    return None


def _named() -> list[tuple[str, str]]:
    given = [word.partition("=") for word in os.environ.get(SECRETS, "").split(",") if word]
    return [(name, file) for name, _, file in given]


def _version(options: Sequence[str]) -> str | None:
    from megu_dist import __version__

    wanted = options[1] if list(options[:1]) == ["--version"] else __version__
    if wanted == __version__:
        return None
    return f"the cluster has megu-dist {__version__}, and the job asks for {wanted}: update one, or submit with --code package"


if __name__ == "__main__":
    main()
