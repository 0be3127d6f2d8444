"""Which files are training, test and validation data, told by words in their names and folders."""

from __future__ import annotations

import re

from megu_dist.data.files import FileSet, list_files
from megu_dist.errors import UserError

_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}
_SPLIT_WORD = re.compile(r"(?<![a-z])(" + "|".join(sorted(_SPLIT_WORDS, key=len, reverse=True)) + r")(?![a-z])")


def files_by_split(path: str, test_path: str | None, suffixes: tuple[str, ...]) -> dict[str, FileSet]:
    """The files of ``data.path`` and ``data.test_path`` by split (see :func:`assign_splits`)."""
    files = list_files(path, suffixes, "data.path")
    test = None
    if test_path:
        listed = list_files(test_path, suffixes, "data.test_path")
        test = assign_splits(listed).get("test", listed)
    splits = assign_splits(files.without(test))
    if test is not None:
        splits["test"] = test
    if not splits["train"].names:
        raise UserError(
            f"data.test_path takes every file of data.path={path}: none is left to train on; give other files"
        )
    return splits


def assign_splits(files: FileSet) -> dict[str, FileSet]:
    """Files by split, in the Hugging Face convention: a word in the file's name, else in a folder above it.

    Files without such a word are training files when none is named so, else they are left out (as the hub does). A
    lone test or validation file that the user pointed at is what they want to train on.
    """
    words = [split_of(name) for name in files.names]
    named = sorted({word for word in words if word})
    if "train" not in named:
        if None not in words and len(named) > 1:
            raise UserError(
                f"no training files in {files.root}: found only {' and '.join(named)} files; name some "
                "train-*, or give them as data.path and the others as data.test_path"
            )
        if None not in words:
            return {"train": files}
        words = [word or "train" for word in words]
        named.append("train")
    return {split: files.where([word == split for word in words]) for split in named}


def split_of(name: str) -> str | None:
    """The split that a relative file name tells: by the file's own name first, then by the nearest folder."""
    for part in reversed(name.lower().split("/")):
        if word := _SPLIT_WORD.search(part):
            return _SPLIT_WORDS[word.group(1)]
    return None
