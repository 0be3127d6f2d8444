"""Stored ratings: what is found again, by which key, and what a torn or foreign line costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from megu_dist.oracle.base import About, Concept, Pair, Rating
from megu_dist.oracle.ratings import RatingStore, rating_key

ABOUT = About("model:1@host", prompts=("p0", "p1"), symmetric=False)
CAT, DOG, COW = Concept("cat"), Concept("dog"), Concept("cow")


def store(folder: Path, about: About = ABOUT) -> RatingStore:
    return RatingStore(folder, about)


def found(folder: Path, pair: Pair, about: About = ABOUT) -> Rating | None:
    return store(folder, about).get(rating_key(about, pair))


def test_a_rating_is_found_by_the_next_process_and_by_one_that_is_open(tmp_path: Path) -> None:
    writer, reader = store(tmp_path), store(tmp_path)
    writer.add([(Pair(CAT, DOG), Rating(7.25, 100, 2)), (Pair(CAT, COW), Rating(0.0, 90, 1))])
    key = rating_key(ABOUT, Pair(CAT, DOG))
    assert writer.get(key) == Rating(7.25, 100, 2)
    assert reader.get(key) is None
    reader.refresh()
    assert reader.get(key) == Rating(7.25, 100, 2)
    assert (len(reader), len(store(tmp_path))) == (2, 2)
    assert found(tmp_path, Pair(CAT, COW)) == Rating(0.0, 90, 1)
    assert found(tmp_path, Pair(DOG, COW)) is None


def test_each_line_says_what_it_is_about(tmp_path: Path) -> None:
    writer = store(tmp_path)
    writer.add([(Pair(Concept("chat élégant"), DOG, 1), Rating(3.5))])
    entry = json.loads(writer.path.read_text())
    assert (entry["oracle"], entry["prompt"], entry["first"], entry["second"]) == (
        "model:1@host",
        "p1",
        "chat élégant",
        "dog",
    )
    assert entry["rating"] == 3.5


def test_nan_is_not_kept(tmp_path: Path) -> None:
    writer = store(tmp_path)
    writer.add([(Pair(CAT, DOG), Rating(float("nan"), 5, 5))])
    assert not writer.path.exists()
    writer.add([(Pair(CAT, DOG), Rating(float("nan"))), (Pair(CAT, COW), Rating(1.0))])
    assert len(store(tmp_path)) == len(writer) == 1
    assert found(tmp_path, Pair(CAT, DOG)) is None


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_torn_last_line_is_skipped_and_the_next_one_can_be_read(tmp_path: Path, cut: int) -> None:
    writer = store(tmp_path)
    writer.add([(Pair(CAT, DOG), Rating(7.0))])
    writer.add([(Pair(CAT, COW), Rating(2.0))])
    os.truncate(writer.path, writer.path.stat().st_size - cut)  # 1: all but the end of the line got there
    reader = store(tmp_path)
    assert len(reader) == 1
    store(tmp_path).add([(Pair(DOG, COW), Rating(4.0))])
    reader.refresh()
    whole = cut == 1
    assert len(reader) == len(store(tmp_path)) == (3 if whole else 2)
    assert found(tmp_path, Pair(DOG, COW)) == Rating(4.0)
    assert found(tmp_path, Pair(CAT, COW)) == (Rating(2.0) if whole else None)
    store(tmp_path).add([(Pair(CAT, COW), Rating(2.5))])
    assert found(tmp_path, Pair(CAT, COW)) == Rating(2.5)


def test_a_reader_never_takes_half_a_line(tmp_path: Path) -> None:
    writer = store(tmp_path)
    writer.add([(Pair(CAT, DOG), Rating(7.0))])
    data = writer.path.read_bytes()
    for size in range(len(data)):
        writer.path.write_bytes(data[:size])
        assert len(store(tmp_path)) == 0
    growing = store(tmp_path)
    writer.path.write_bytes(data)
    growing.refresh()
    assert growing.get(rating_key(ABOUT, Pair(CAT, DOG))) == Rating(7.0)


FOREIGN = [
    b"",
    b"\0\0\0\0",
    b"\xff\xfe\x00 not text",
    b"[1, 2]",
    b"7",
    b"null",
    b"{}",
    b'{"key": "k", "rating": 5}',
    b'{"key": "k", "rating": "high", "prompt_tokens": 0, "answer_tokens": 0, "time": 0}',
    b'{"key": "k", "rating": NaN, "prompt_tokens": 0, "answer_tokens": 0, "time": 0}',
    b'{"key": "k", "rating": 11, "prompt_tokens": 0, "answer_tokens": 0, "time": 0}',
    b'{"key": "k", "rating": -0.1, "prompt_tokens": 0, "answer_tokens": 0, "time": 0}',
    b'{"key": "k", "rating": 5, "prompt_tokens": Infinity, "answer_tokens": 0, "time": 0}',
    b'{"key": "k", "rating": 5, "prompt_tokens": null, "answer_tokens": 0, "time": 0}',
]


def test_foreign_lines_are_ignored(tmp_path: Path) -> None:
    writer = store(tmp_path)
    writer.add([(Pair(CAT, DOG), Rating(7.0))])
    with writer.path.open("ab") as file:
        file.write(b"\n".join(FOREIGN) + b"\n")
    writer.add([(Pair(CAT, COW), Rating(10.0 + 1e-12))])  # a mean of tens may round to this
    assert len(store(tmp_path)) == 2
    assert store(tmp_path).get("k") is None


def test_names_of_any_kind(tmp_path: Path) -> None:
    names = ["naïve 猫\n🐈", "\u2028", '"}\n{"key": "x', os.fsdecode(b"caf\xe9"), "", "x" * 5000]
    pairs = [Pair(Concept(name), CAT) for name in names]
    store(tmp_path).add((pair, Rating(float(i))) for i, pair in enumerate(pairs))
    assert [found(tmp_path, pair) for pair in pairs] == [Rating(float(i)) for i in range(len(names))]


def test_oracles_do_not_share_a_file(tmp_path: Path) -> None:
    others = [
        About("model:1@host/", symmetric=False),
        About("model-1-host"),
        About("a" * 300),
        About("../../x"),
        About(""),
    ]
    for number, about in enumerate(others):
        store(tmp_path, about).add([(Pair(CAT, DOG), Rating(float(number)))])
    assert [found(tmp_path, Pair(CAT, DOG), about) for about in others] == [
        Rating(float(i)) for i in range(len(others))
    ]
    assert len(list(tmp_path.glob("*.jsonl"))) == len(others)


def test_what_a_key_depends_on() -> None:
    base = rating_key(ABOUT, Pair(CAT, DOG))
    assert base == rating_key(ABOUT, Pair(Concept("cat"), Concept("dog")))
    different = [
        rating_key(About("model:2@host", prompts=("p0", "p1"), symmetric=False), Pair(CAT, DOG)),
        rating_key(About("model:1@host", prompts=("p2", "p1"), symmetric=False), Pair(CAT, DOG)),
        rating_key(ABOUT, Pair(CAT, DOG, 1)),
        rating_key(ABOUT, Pair(DOG, CAT)),
        rating_key(ABOUT, Pair(CAT, COW)),
        rating_key(ABOUT, Pair(Concept("cat", "a pet"), DOG)),
        rating_key(ABOUT, Pair(Concept("cat", images=(b"1",)), DOG)),
        rating_key(ABOUT, Pair(Concept("cat", images=(b"1", b"2")), DOG)),
        rating_key(ABOUT, Pair(Concept("cat", images=(b"2", b"1")), DOG)),
        rating_key(ABOUT, Pair(Concept("cat", images=(b"12",)), DOG)),
        rating_key(ABOUT, Pair(CAT, Concept("dog", "a pet"))),
    ]
    assert len({base, *different}) == 1 + len(different)


def test_the_order_is_nothing_to_a_symmetric_oracle(tmp_path: Path) -> None:
    about = About("e", prompts=("p",))
    assert rating_key(about, Pair(CAT, DOG)) == rating_key(about, Pair(DOG, CAT)) != rating_key(about, Pair(DOG, COW))
    store(tmp_path, about).add([(Pair(CAT, DOG), Rating(3.0))])
    assert found(tmp_path, Pair(DOG, CAT), about) == Rating(3.0)


WRITER = """
import sys
from itertools import pairwise
from pathlib import Path
from megu_dist.oracle.base import About, Concept, Pair, Rating
from megu_dist.oracle.ratings import RatingStore

folder, name = Path(sys.argv[1]), sys.argv[2]
store = RatingStore(folder, About("shared", symmetric=False))
print("ready", flush=True)
sys.stdin.readline()
for start in range(0, 1500, 3):
    pairs = [Pair(Concept(name + "-" + str(i)), Concept("x" * (1 + i * 37 % 6000))) for i in range(start, start + 3)]
    store.add((pair, Rating(5.0, start)) for pair in pairs)
    store.refresh()
print(len(store), flush=True)
"""


def test_processes_that_append_at_once_lose_and_tear_nothing(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [
        subprocess.Popen([*command, n], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        for n in names
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    outputs = []
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
    for writer in writers:
        outputs.append(int(writer.communicate(timeout=60)[0]))
        assert writer.returncode == 0
    about = About("shared", symmetric=False)
    final = store(tmp_path, about)
    assert len(final) == 4500 == max(outputs)
    lines = final.path.read_text().splitlines()
    entries = [json.loads(line) for line in lines]  # every single line is whole
    assert Counter(entry["first"].split("-")[0] for entry in entries) == {"a": 1500, "b": 1500, "c": 1500}
    runs = sum(one["first"][0] != other["first"][0] for one, other in pairwise(entries))
    assert runs > 2  # they did not write one after the other
    key = rating_key(about, Pair(Concept("b-1499"), Concept("x" * (1 + 1499 * 37 % 6000))))
    assert final.get(key) == Rating(5.0, 1497)


def test_experience_is_the_mean_of_what_is_stored(tmp_path: Path) -> None:
    writer = store(tmp_path)
    assert writer.experience() is None
    entry = {"rating": 1, "prompt_tokens": 100, "answer_tokens": 1}
    times = [1000, 1002, 1003, 5000, 5003]  # the long pause was no work
    lines = [
        json.dumps({**entry, "key": str(i), "prompt_tokens": 100 + 10 * i, "time": t}) for i, t in enumerate(times)
    ]
    writer.path.write_text("\n".join(lines) + "\n")
    assert store(tmp_path).experience() == (120.0, 1.0, pytest.approx((2 + 1 + 3) / 3))
