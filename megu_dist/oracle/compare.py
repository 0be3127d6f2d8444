"""Do two oracles agree? Rank correlation and top-k overlap by row; WordNet as an outside opinion where names resolve."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megu_dist.errors import UserError

TOP = (1, 3, 5)
WORDNET_PLACE = "corpora/wordnet"  # in nltk's folders
WORDNET_FOLDERS = ("/usr/share/wordnet",)  # Debian's package wordnet-base


@dataclass(frozen=True)
class Opinion:
    """Ratings by row name, each a value per column; NaN where there is none."""

    name: str
    columns: list[str]
    rows: dict[str, np.ndarray]


@dataclass(frozen=True)
class Agreement:
    """Of two opinions about one row, over the columns that both rated."""

    row: str
    columns: int
    spearman: float  # NaN where one side rates all alike
    overlap: dict[int, float]  # k → share of the k nearest that both name


def load(path: str) -> Opinion:
    """From a run folder or a ``transition.json``. Raises :class:`UserError`."""
    file = Path(path).expanduser()
    file = file / "transition.json" if file.is_dir() else file
    if not file.is_file():
        raise UserError(f"{path}: there is no transition.json; make one with `megu oracle fill`")
    try:
        data: dict[str, Any] = json.loads(file.read_text())
        own_columns = [None if data.get("fine") else label for label in data["row_labels"]]
        rows = {
            name: np.array([np.nan if r is None or j == own else r for j, r in enumerate(values)], np.float64)
            for name, own, values in zip(data["rows"], own_columns, data["ratings"], strict=True)
        }
        if any(values.shape != (len(data["columns"]),) for values in rows.values()):
            raise ValueError("a row does not have a rating for every column")
        return Opinion(f"{data['oracle']['name']} ({file.resolve().parent.name})", list(data["columns"]), rows)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is not a transition matrix of megu ({type(error).__name__}: {error}); make one with `megu "
            "oracle fill`"
        ) from None


def compare(a: Opinion, b: Opinion) -> list[Agreement]:
    """Row by row, over common rows and columns. Raises :class:`UserError` when there are none."""
    from scipy.stats import spearmanr

    place_a, place_b = ({name: j for j, name in enumerate(one.columns)} for one in (a, b))
    shared = [name for name in a.columns if name in place_b]
    rows = [name for name in a.rows if name in b.rows]
    if not rows or len(shared) < 3:
        raise UserError(
            f"{a.name} and {b.name} have {len(rows)} rows and {len(shared)} columns in common; give runs of "
            "the same request"
        )
    out = []
    for name in rows:
        x = a.rows[name][[place_a[c] for c in shared]]
        y = b.rows[name][[place_b[c] for c in shared]]
        both = ~np.isnan(x) & ~np.isnan(y)
        x, y = x[both], y[both]
        varied = len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0
        rho = float(spearmanr(x, y).statistic) if varied else float("nan")
        overlap = {}
        for k in (k for k in TOP if k < len(x)):
            first, second = (set(np.argsort(-v, kind="stable")[:k].tolist()) for v in (x, y))
            overlap[k] = len(first & second) / k
        out.append(Agreement(name, int(both.sum()), rho, overlap))
    return out


def wordnet_opinion(columns: list[str], rows: list[str]) -> Opinion:
    """Path similarity (Fellbaum 1998) of the names' first noun senses, times 10.

    Raises :class:`UserError` that says what is missing: nltk, its data, or names that WordNet knows.
    """
    wordnet = _wordnet()
    senses = {name: _sense(wordnet, name) for name in {*columns, *rows}}
    known = [name for name in rows if senses[name] is not None]
    if not known or sum(senses[c] is not None for c in columns) < 3:
        raise UserError(
            f"WordNet knows too few of these class names ({len(known)} of {len(rows)}); "
            "give runs whose classes are English nouns"
        )
    found = {}
    for name in known:
        values = [_similarity(senses[name], senses[c]) if c != name else float("nan") for c in columns]
        found[name] = np.array(values, np.float64)
    return Opinion("WordNet", columns, found)


def _wordnet() -> Any:
    try:
        import nltk.data
        from nltk.corpus import wordnet
        from nltk.corpus.reader.wordnet import WordNetCorpusReader
    except ImportError:
        raise UserError("`megu oracle compare` with WordNet needs nltk: pip install 'megu-dist[oracle]'") from None
    for folder in (os.environ.get("WORDNET_DIR"), *WORDNET_FOLDERS):
        if folder and (Path(folder) / "data.noun").is_file():
            root = _nltk_folder(Path(folder))
            nltk.data.path.insert(0, str(root))  # nltk reads from nowhere else
            return WordNetCorpusReader(str(root / WORDNET_PLACE), None)
    try:
        wordnet.ensure_loaded()
    except LookupError:
        raise UserError(
            "there is no WordNet data: apt install wordnet-base, set WORDNET_DIR to a dict folder, or "
            "python -m nltk.downloader wordnet"
        ) from None
    return wordnet


def _nltk_folder(folder: Path) -> Path:
    """A copy as nltk wants it, with the small files that Debian leaves out; nothing in those matters to path "
    "lengths."""
    root = Path(tempfile.mkdtemp(prefix="megu-wordnet-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    copy = root / WORDNET_PLACE
    copy.mkdir(parents=True)
    for file in folder.iterdir():
        if file.is_file():
            shutil.copyfile(file, copy / file.name)
    for name in ("noun.exc", "verb.exc", "adj.exc", "adv.exc", "index.sense", "cntlist.rev"):
        (copy / name).touch()
    if not (copy / "lexnames").exists():
        (copy / "lexnames").write_text("".join(f"{i:02d}\tlex.{i}\t1\n" for i in range(45)))
    return root


def _sense(wordnet: Any, name: str) -> Any:
    """First noun sense of the name or of its parts ("T-shirt/top", "tench, Tinca tinca")."""
    for part in (name, *name.replace("/", ",").split(",")):
        text = part.strip().lower()
        for form in (text.replace(" ", "_"), text.replace(" ", "-"), text.replace("-", "_")):
            synsets = wordnet.synsets(form, "n") if form else []
            if synsets:
                return synsets[0]
    return None


def _similarity(a: Any, b: Any) -> float:
    value = None if a is None or b is None else a.path_similarity(b)
    return float("nan") if value is None else 10 * float(value)
