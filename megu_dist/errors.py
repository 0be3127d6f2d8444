"""Errors that a user can mend: printed in one paragraph, without a traceback, with exit status 2."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator

FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))


class UserError(Exception):
    """Bad input (a key, a value, a file, an image). The message names what is wrong and what to do next."""


def nearest(word: object, choices: Iterable[object], limit: int = 3) -> str:
    """A sentence fragment that offers the valid choices nearest to ``word``; all of them when there are few."""
    names = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(word), names, n=limit, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    if not names:
        return "there is nothing to choose from"
    shown = ", ".join(names[:20]) + (f", … ({len(names)} in all)" if len(names) > 20 else "")
    return f"valid: {shown}"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exceptions in a chain, nearest first; Ray wraps what its workers raise in exceptions of its own.

    Ray gives a task's exception as ``.cause`` and Ray Train as ``.worker_failures``; both are followed.
    """
    queue: list[BaseException | None] = [error]
    seen: set[int] = set()
    while queue:
        item = queue.pop(0)
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        cause = getattr(item, "cause", None)
        queue.append(cause if isinstance(cause, BaseException) else None)
        queue += list(getattr(item, "worker_failures", {}).values())
        queue += [item.__cause__, item.__context__]
        yield item


def is_full_disk(error: BaseException | None) -> bool:
    """Whether a disk, or a quota, was full, wherever that was noticed: libraries keep the system's words at most."""
    return any(
        getattr(item, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(words in str(item) for words in FULL)
        for item in causes(error)
    )


def find_user_error(error: BaseException | None) -> UserError | None:
    """The ``UserError`` inside an exception chain."""
    for item in causes(error):
        cause = getattr(item, "cause", None)
        if type(item) is UserError:
            return item
        if isinstance(
            item, UserError
        ):  # Ray's dual-typed wrapper: its text holds a remote traceback, the cause does not
            if isinstance(cause, UserError):
                return cause
            return UserError(str(item).strip().splitlines()[-1])
        # Ray Data's UserCodeException keeps only the text of what the worker raised.
        told = re.findall(rf"^{UserError.__module__}\.UserError: (.+)$", str(item), re.MULTILINE)
        if told:
            return UserError(told[-1])
    return None
