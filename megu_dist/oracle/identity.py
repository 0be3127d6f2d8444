"""Names the version of a model folder without reading its weights."""

from __future__ import annotations

import hashlib
from pathlib import Path


def folder_hash(folder: Path) -> str:
    """Twelve hex digits of the names, sizes and (for files below 1 MiB) contents of a model folder.

    Large files are told apart by size and modification time: hashing tens of gigabytes before every job is too dear.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
        stat = path.stat()
        digest.update(f"{path.name}:{stat.st_size}:".encode())
        digest.update(path.read_bytes() if stat.st_size < 1 << 20 else str(stat.st_mtime_ns).encode())
    return digest.hexdigest()[:12]
