"""What travels with a job, as one zip file: megu's code, a working directory, small input files.

The same content gives the same bytes, so that its name, which is a hash, says whether the cluster has it already.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from megu_dist.config.compose import config_dir
from megu_dist.errors import UserError

LIMIT_MB = 200  # Ray stores packages in the head's memory and refuses more than 512 MB
SKIPPED = ("__pycache__", "node_modules", "venv", "runs", "dist", "build", "*.egg-info", "*.pyc", "*.log")
INPUTS = "inputs"  # folder of the package with the input files


@dataclass(frozen=True)
class Package:
    """``files`` are names inside the zip and where they come from; ``uri`` is what the cluster calls it."""

    files: dict[str, Path]
    content: bytes

    @property
    def digest(self) -> str:
        """A hash of the content."""
        return hashlib.sha1(self.content).hexdigest()

    @property
    def uri(self) -> str:
        """Ray's own name of an uploaded zip."""
        return f"gcs://_ray_pkg_{self.digest}.zip"


def in_checkout() -> bool:
    """Whether this megu runs from a source tree."""
    root = Path(__file__).resolve().parents[2]
    return config_dir() == root / "configs" and (root / "pyproject.toml").is_file()


def own_code() -> dict[str, Path]:
    """megu's files as an installation has them: the experiment files are inside the package."""
    package = Path(__file__).resolve().parents[1]
    files = {f"megu_dist/{name}": path for name, path in _files(package, ())}
    if config_dir().parent != package:
        files |= {f"megu_dist/configs/{name}": path for name, path in _files(config_dir(), ())}
    return files


def folder(path: str, option: str, excludes: Sequence[str]) -> dict[str, Path]:
    """The files of a working directory. Hidden ones, caches and virtual environments stay at home."""
    root = Path(path).expanduser().resolve()
    if not root.is_dir():
        raise UserError(f"{option}={path}: no such folder; give one of this machine")
    return dict(_files(root, excludes))


def make(files: dict[str, Path], excludes: Sequence[str]) -> Package:
    """Packs ``files``; refuses more than a job should carry."""
    sizes = {name: path.stat().st_size for name, path in files.items()}
    total = sum(sizes.values()) / 2**20
    if total > LIMIT_MB:
        largest = max(sizes, key=lambda name: sizes[name])
        raise UserError(
            f"the job's package would hold {total:.0f} MB, more than {LIMIT_MB} MB (largest: {largest}, "
            f"{sizes[largest] / 2**20:.0f} MB): keep data and models on shared storage and leave them out with "
            "--exclude"
        )
    import io

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))  # no time of day in it
            info.external_attr = (0o755 if files[name].stat().st_mode & 0o100 else 0o644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, files[name].read_bytes())
    return Package(files, buffer.getvalue())


def _files(root: Path, excludes: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Name and path of each file below ``root``; links to folders are not followed."""
    for path in sorted(root.iterdir()):
        name = path.name
        if name.startswith(".") or any(fnmatch(name, pattern) for pattern in (*SKIPPED, *excludes)):
            continue
        if path.is_file():
            yield name, path
        elif path.is_dir() and not path.is_symlink() and not (path / "pyvenv.cfg").exists():
            inner = [p.removeprefix(f"{name}/") for p in excludes if p.startswith(f"{name}/")]
            yield from ((f"{name}/{below}", file) for below, file in _files(path, [*excludes, *inner]))
