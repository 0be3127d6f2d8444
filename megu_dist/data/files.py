"""Finds and opens data files: local paths, globs, brace ranges, lists, and every URI that Arrow or fsspec understands.

A file set is held as names below one base path, so that thousands of files pickle to a few kilobytes; the file system
is opened again in each process that reads.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import pyarrow.fs as pafs

from megu_dist.errors import UserError, nearest

READ_THREADS = 8
A = TypeVar("A")
B = TypeVar("B")
_GLOB = re.compile(r"[*?\[]")
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_QUERY = re.compile(r"\?\w+=[^?]*$")  # options of a URI, as in s3://bucket/folder?endpoint_override=…
_LISTS = (".txt", ".list", ".lst")
MAX_RANGE = 1_000_000


@dataclass(frozen=True)
class FileSet:
    """Files of one file system, sorted by name. ``root`` is the path or URI that the file system is opened from."""

    root: str
    base: str  # path in the file system that names are relative to
    names: list[str]
    sizes: np.ndarray
    mtimes: np.ndarray  # nanoseconds; 0 where the file system does not tell

    def path(self, number: int) -> str:
        """Path of a file inside its file system."""
        return f"{self.base.rstrip('/')}/{self.names[number]}" if self.base else self.names[number]

    def where(self, keep: Iterable[bool]) -> FileSet:
        """The files that ``keep`` is true for."""
        kept = [number for number, wanted in enumerate(keep) if wanted]
        names = [self.names[number] for number in kept]
        return FileSet(self.root, self.base, names, self.sizes[kept], self.mtimes[kept])

    def without(self, other: FileSet | None) -> FileSet:
        """The files that ``other`` does not hold: explicitly named test files must not stay in training."""
        taken = {other.path(number) for number in range(len(other.names))} if other else set()
        return self.where(self.path(number) not in taken for number in range(len(self.names)))

    def stamps(self) -> list[list[Any]]:
        """Name, size and modification time of every file, for fingerprints."""
        return [list(stamp) for stamp in zip(self.names, self.sizes.tolist(), self.mtimes.tolist(), strict=True)]


def is_uri(path: str) -> bool:
    """Whether ``path`` names its file system, as in ``s3://…``."""
    return "://" in path


def absolute(path: str) -> str:
    """A local path made absolute, so that workers with another working directory find it; URIs stay as they are."""
    return path if is_uri(path) else os.path.abspath(os.path.expanduser(path))


@lru_cache(maxsize=64)
def filesystem(location: str) -> tuple[Any, str]:
    """The Arrow file system of a path or URI, and the path inside it."""
    if not is_uri(location):
        return pafs.LocalFileSystem(), location
    try:
        found, path = pafs.FileSystem.from_uri(location)
        return found, path
    except (ValueError, NotImplementedError, OSError, ImportError) as error:
        arrow_error = error
    import fsspec

    try:
        opened, path = fsspec.core.url_to_fs(location)
    except (ValueError, ImportError, OSError) as error:
        raise UserError(
            f"cannot open {location}: {error} (Arrow: {arrow_error}); check the address, and install what its "
            "scheme needs (s3fs, gcsfs, …)"
        ) from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(opened)), path


def list_files(location: str, suffixes: tuple[str, ...], key: str) -> FileSet:
    """The files of ``location`` (setting ``key``), by name.

    A file, a folder (searched by suffix), a glob, a brace range (``train-{000..099}.tar``), or a text file with one of
    these a line, relative to its own folder.
    """
    location = absolute(location)
    lines = [location]
    if location.endswith(_LISTS) and not location.endswith(suffixes):
        lines = _read_list(location, key)
    named = [one for line in lines for one in _expand(line, key)]
    found = thread_map(lambda one: _list_one(one, suffixes, key), named)
    return found[0] if len(found) == 1 else _join(found, key)


def _read_list(location: str, key: str) -> list[str]:
    """Locations that a text file names; blank lines and lines that start with # are skipped."""
    try:
        text = read_bytes(location, filesystem(location)[1]).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{key}: cannot read the list {location}: {error}; give a text file with one path per line"
        ) from error
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    if not lines:
        raise UserError(f"{key}: the list {location} names no file; write one path per line")
    query = _QUERY.search(location) if is_uri(location) else None
    folder = posixpath.dirname(location[: query.start()] if query else location)
    options = query.group() if query else ""
    return [line if is_uri(line) or line.startswith("/") else f"{folder}/{line}{options}" for line in lines]


def _expand(location: str, key: str) -> list[str]:
    """``a-{08..10}`` → a-08, a-09, a-10; ``{a,b}`` → a, b. A local file whose name holds braces is itself."""
    found = _BRACES.search(location)
    if not found or (not is_uri(location) and os.path.exists(location)):
        return [location]
    first, last, words = found.groups()
    if words is None:
        if not 0 <= int(last) - int(first) < MAX_RANGE:
            raise UserError(
                f"{key}: {found.group()} in {location} is no range; the first number must be the smaller one, "
                "as in {000..099}"
            )
        parts = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    else:
        parts = words.split(",")
    return [one for part in parts for one in _expand(location[: found.start()] + part + location[found.end() :], key)]


def _join(found: list[FileSet], key: str) -> FileSet:
    """One file set of several, named from the deepest folder that they share."""
    first = filesystem(found[0].root)[0]
    for other in (filesystem(one.root)[0] for one in found):
        # fsspec makes an instance per thread: those of one protocol are not equal, and the same.
        if other == first or (isinstance(first, pafs.PyFileSystem) and other.type_name == first.type_name):
            continue
        raise UserError(f"{key}: {found[0].root} and others lie in different file systems: give files of one")
    stamps = {
        one.path(number): (int(one.sizes[number]), int(one.mtimes[number]))
        for one in found
        for number in range(len(one.names))
    }
    paths = sorted(stamps)
    base = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    sizes, mtimes = np.array([stamps[path] for path in paths], dtype=np.int64).T
    return FileSet(found[0].root, base, [_relative(path, base) for path in paths], sizes, mtimes)


def _list_one(location: str, suffixes: tuple[str, ...], key: str) -> FileSet:
    """The files of one file, folder or glob."""
    root, pattern = _split_glob(location)
    found, base = filesystem(root)
    try:
        info = found.get_file_info(base)
        if info.type == pafs.FileType.File and not pattern:
            folder, name = posixpath.split(info.path)
            return _file_set(root, folder or ("/" if info.path.startswith("/") else ""), [(name, info)])
        if info.type == pafs.FileType.NotFound:
            raise UserError(_not_found(location, root, key))
        recursive = not pattern or "/" in pattern or "**" in pattern
        listed = found.get_file_info(pafs.FileSelector(base, recursive=recursive))
    except OSError as error:
        raise UserError(f"{key}: cannot read {location}: {error}; check the path and who may read it") from error
    matches = re.compile(_glob_regex(pattern)).fullmatch if pattern else None
    kept = []
    for item in listed:
        name = _relative(item.path, base)
        hidden = any(part.startswith((".", "_")) for part in name.split("/"))
        fits = bool(matches(name)) if matches else not hidden
        if item.type == pafs.FileType.File and fits and name.lower().endswith(suffixes):
            kept.append((name, item))
    if not kept:
        shown = ", ".join(suffixes[:6])
        raise UserError(
            f"{key}: no {shown} files in {location}{_hint(root)}; give the folder or pattern that holds them"
        )
    return _file_set(root, base, kept)


def read_bytes(root: str, path: str) -> bytes:
    """Content of one file in the file system of ``root``."""
    found, _ = filesystem(root)
    with found.open_input_stream(path, compression=None) as stream:
        content: bytes = stream.read()
    return content


def thread_map(function: Callable[[A], B], items: Iterable[A], parallel: bool = True) -> list[B]:
    """``map`` in threads where waiting for storage dominates, in this thread otherwise."""
    items = list(items)
    if not parallel or len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(READ_THREADS, len(items))) as pool:
        return list(pool.map(function, items))


def _file_set(root: str, base: str, items: list[tuple[str, Any]]) -> FileSet:
    items = sorted(items, key=lambda item: item[0])
    sizes = np.array([info.size or 0 for _, info in items], dtype=np.int64)
    mtimes = np.array([info.mtime_ns or 0 for _, info in items], dtype=np.int64)
    return FileSet(root, base, [name for name, _ in items], sizes, mtimes)


def _split_glob(location: str) -> tuple[str, str]:
    """The part before the first path segment with a wildcard, and the pattern below it ("" without one)."""
    if location.startswith(("http://", "https://")) or (not is_uri(location) and os.path.exists(location)):
        return location, ""  # a query string, or a file whose name holds a bracket, is no glob
    query = _QUERY.search(location) if is_uri(location) else None
    options, location = (query.group(), location[: query.start()]) if query else ("", location)
    parts = location.split("/")
    for number, part in enumerate(parts):
        if _GLOB.search(part):
            return ("/".join(parts[:number]) or "/") + options, "/".join(parts[number:])
    return location + options, ""


def _glob_regex(pattern: str) -> str:
    """Regular expression of a glob in which only ``**`` crosses folders."""
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    out = []
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]/]+\]|.", pattern, flags=re.DOTALL):
        is_class = len(token) > 1 and token[0] == "["
        out.append(tokens.get(token) or (token.replace("[!", "[^") if is_class else re.escape(token)))
    return "".join(out)


def _relative(path: str, base: str) -> str:
    path, base = path.strip("/"), base.strip("/")
    return path[len(base) :].lstrip("/") if base and path.startswith(base) else path


def _not_found(location: str, root: str, key: str) -> str:
    message = f"{key}: {location} does not exist"
    if is_uri(root):
        return message
    missing = root
    while (parent := os.path.dirname(missing)) and not os.path.isdir(parent):
        missing = parent
    return f"{message}; in {parent}: {nearest(os.path.basename(missing), _siblings(parent))}"


def _hint(root: str) -> str:
    if is_uri(root) or not os.path.isdir(root):
        return ""
    return f"; it holds {', '.join(names[:10])}" if (names := _siblings(root)) else "; the folder is empty"


def _siblings(folder: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []
