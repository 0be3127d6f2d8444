"""A WordNet database of a few nouns, in the format of the real one."""

from __future__ import annotations

from pathlib import Path

PARENTS = {
    "entity": None,
    "animal": "entity",
    "feline": "animal",
    "cat": "feline",
    "canine": "animal",
    "dog": "canine",
    "artifact": "entity",
    "garment": "artifact",
    "t-shirt": "garment",
    "ankle_boot": "artifact",
}


def write(folder: Path) -> Path:
    """Writes it into ``folder``; path similarity is 1 / (1 + edges between two nouns)."""
    folder.mkdir(parents=True, exist_ok=True)
    children = {name: [child for child, parent in PARENTS.items() if parent == name] for name in PARENTS}

    def line(name: str, at: dict[str, int]) -> str:
        parent = PARENTS[name]
        pointers = [("@", parent)] if parent else []
        pointers += [("~", child) for child in children[name]]
        told = " ".join(f"{symbol} {at[other]:08d} n 0000" for symbol, other in pointers)
        return f"{at[name]:08d} 03 n 01 {name} 0 {len(pointers):03d} {told} | {name}\n"

    at = dict.fromkeys(PARENTS, 0)
    place = 0
    for name in PARENTS:  # a line's length does not depend on the numbers in it
        at[name] = place
        place += len(line(name, at))
    (folder / "data.noun").write_text("".join(line(name, at) for name in PARENTS))
    index = [f"{name} n 1 {'2 @ ~' if PARENTS[name] else '1 ~'} 1 0 {at[name]:08d}  \n" for name in PARENTS]
    (folder / "index.noun").write_text("".join(sorted(index)))
    for part in ("verb", "adj", "adv"):
        (folder / f"data.{part}").write_text("")
        (folder / f"index.{part}").write_text("")
    return folder
