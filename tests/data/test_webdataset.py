"""WebDataset shards: layouts, labels, the index, and what is refused."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from image_samples import encode, full_index, values, webdataset, write_shard, write_tar

from megu_dist.data import tar_index
from megu_dist.data.base import Source
from megu_dist.data.sources import webdataset as webdataset_module
from megu_dist.errors import UserError


def one_shard(root: Path, members: dict[str, bytes], **settings: str) -> Source:
    write_tar(root / "shards" / "train-0.tar", members)
    return webdataset(root / "shards", root / "cache", **settings)


def test_ids_are_shard_and_key(tmp_path: Path) -> None:
    members = {"./a/x.png": encode(1), "./a/x.cls": b"0\n", "a/y.seg.png": b"", "a/y.PNG": encode(2), "a/y.cls": b"1"}
    source = one_shard(tmp_path, members | {"a/._y.png": b"junk", "readme": b"notes"})
    assert full_index(source, "train")["id"].to_pylist() == ["train-0/a/x", "train-0/a/y"]
    assert source.class_names == ["0", "1"]
    assert values(source, "train") == [1, 2]


@pytest.mark.parametrize("kind", ["png", "jpg", "jpeg", "webp"])
def test_image_formats(tmp_path: Path, kind: str) -> None:
    source = one_shard(tmp_path, {f"x.{kind}": encode(7), "x.cls": b"0"})
    assert values(source, "train") == [7]


def test_labels_as_names(tmp_path: Path) -> None:
    for extension, other in (("cls", "dog"), ("txt", "dog\n"), ("json", '{"label": "dog"}')):
        members = {"a.png": encode(0), f"a.{extension}": other.encode(), "b.png": encode(1), "b.cls": b"cat"}
        source = one_shard(tmp_path / extension, members)
        assert source.class_names == ["cat", "dog"]
        assert full_index(source, "train")["label"].to_pylist() == [1, 0]


def test_label_key_chooses_among_several(tmp_path: Path) -> None:
    json = b'{"label": 0, "fine": 2, "caption": "a photograph"}'
    members = {"a.png": encode(0), "a.cls": b"1", "a.txt": b"some caption", "a.json": json}
    labels = {}
    for key in (None, "cls", "fine", "txt"):
        source = one_shard(tmp_path / str(key), members, **({"label_key": key} if key else {}))
        labels[key] = source.class_names[full_index(source, "train")["label"][0].as_py()]
    assert labels == {None: "1", "cls": "1", "fine": "2", "txt": "some caption"}
    with pytest.raises(UserError, match=r"no 'fin' in its JSON: set data\.label_key.*'fine'"):
        one_shard(tmp_path / "wrong", members, label_key="fin")


def test_class_names_from_a_sidecar_or_a_file(tmp_path: Path) -> None:
    members = {"a.png": encode(0), "a.cls": b"1", "b.png": encode(1), "b.cls": b"0"}
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "classes.json").write_text('["cat", "dog"]')
    source = one_shard(tmp_path, members)
    assert source.class_names == ["cat", "dog"]
    assert full_index(source, "train")["label"].to_pylist() == [1, 0]
    (tmp_path / "names").write_text("x\ny\nz\n")
    stated = webdataset(tmp_path / "shards", tmp_path / "cache", class_names_file=str(tmp_path / "names"))
    assert stated.class_names == ["x", "y", "z"]
    assert stated.fingerprint() != source.fingerprint()
    named = one_shard(tmp_path, {"a.png": encode(0), "a.txt": b"dog"})
    assert full_index(named, "train")["label"].to_pylist() == [1]
    (tmp_path / "shards" / "classes.json").write_text('{"0": "cat"}')
    with pytest.raises(UserError, match=r"classes\.json holds JSON that is no list"):
        one_shard(tmp_path, members)


def test_brace_ranges_lists_and_globs(tmp_path: Path) -> None:
    for number in range(12):
        write_shard(tmp_path / "s" / f"train-{number:02d}.tar", [number])
    (tmp_path / "some.txt").write_text("# two of them\ns/train-03.tar\n\ns/train-{10..11}.tar\n")
    expected = {"s/train-{08..11}.tar": [8, 9, 10, 11], "s/train-{01,05}.tar": [1, 5], "s/train-0[89].tar": [8, 9]}
    for pattern, held in (expected | {"some.txt": [3, 10, 11], "s/{t,}rain-02.tar": None}).items():
        if held is None:
            with pytest.raises(UserError, match=r"rain-02\.tar does not exist"):
                webdataset(tmp_path / pattern, tmp_path / "cache")
        else:
            source = webdataset(tmp_path / pattern, tmp_path / "cache")
            assert values(source, "train") == held
            assert full_index(source, "train")["id"][0].as_py() == f"train-{held[0]:02d}/{held[0]:06d}"
    with pytest.raises(UserError, match=r"data\.path: \{9\.\.3\}"):
        webdataset(tmp_path / "s" / "train-{9..3}.tar", tmp_path / "cache")
    fsspec.filesystem("memory").pipe("/elsewhere.tar", (tmp_path / "s" / "train-00.tar").read_bytes())
    (tmp_path / "mixed.txt").write_text("s/train-00.tar\nmemory://elsewhere.tar\n")
    with pytest.raises(UserError, match="different file systems"):
        webdataset(tmp_path / "mixed.txt", tmp_path / "cache")
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(UserError, match="names no file"):
        webdataset(tmp_path / "none.txt", tmp_path / "cache")


def test_split_folders_and_test_path(tmp_path: Path) -> None:
    for name, held in (("train/0", [1, 2]), ("val/0", [3]), ("test/0", [4])):
        write_shard(tmp_path / "s" / f"{name}.tar", held)
    source = webdataset(tmp_path / "s", tmp_path / "cache")
    assert source.splits == ["train", "test", "validation"]
    assert full_index(source, "validation")["id"].to_pylist() == ["val/0/000003"]
    source = webdataset(tmp_path / "s" / "train", tmp_path / "cache", test_path=str(tmp_path / "s" / "val"))
    assert source.splits == ["train", "test"]
    assert full_index(source, "test")["id"].to_pylist() == ["test/0/000003"]


class CountedReads(io.FileIO):
    """A file that knows how many bytes were read of it."""

    count = 0

    def readinto(self, buffer: object) -> int:
        got = super().readinto(buffer)  # type: ignore[arg-type]
        CountedReads.count += got
        return got


def test_the_index_reads_headers_and_labels_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = {f"{i}.{e}": c for i in range(20) for e, c in (("jpg", b"\xff" * 200_000), ("cls", b"1"))}
    write_tar(tmp_path / "train.tar", large)

    class Local:
        type_name = "local"

        def open_input_file(self, path: str) -> CountedReads:
            return CountedReads(path)

    monkeypatch.setattr(tar_index, "filesystem", lambda root: (Local(), root))
    shard = tar_index.Shard(str(tmp_path), str(tmp_path / "train.tar"), 4_000_000, 1)
    table = tar_index.read_index(shard)
    assert len(table) == 20
    assert CountedReads.count < 20 * 3 * tar_index.READ_AHEAD  # of 4,000,000 bytes
    assert tar_index.index_of(shard, str(tmp_path / "cache")).equals(table)
    before = CountedReads.count
    tar_index.index_of.cache_clear()
    assert tar_index.index_of(shard, str(tmp_path / "cache")).equals(table)
    assert CountedReads.count == before


def test_a_worker_without_the_index_builds_it_again(tmp_path: Path) -> None:
    write_shard(tmp_path / "s" / "train-0.tar", range(8))
    source = webdataset(tmp_path / "s", tmp_path / "cache")
    state = pickle.dumps(source)
    assert len(state) < 3_000
    for file in (tmp_path / "cache").rglob("*.parquet"):
        file.unlink()
    tar_index.index_of.cache_clear()
    assert values(pickle.loads(state), "train", [5, 2]) == [5, 2]
    assert list((tmp_path / "cache").rglob("*.parquet"))


def test_a_rewritten_shard_is_indexed_anew(tmp_path: Path) -> None:
    write_shard(tmp_path / "s" / "train-0.tar", range(8))
    assert webdataset(tmp_path / "s", tmp_path / "cache").num_rows("train") == 8
    write_shard(tmp_path / "s" / "train-0.tar", range(50, 90))
    assert values(webdataset(tmp_path / "s", tmp_path / "cache"), "train") == list(range(50, 90))


def test_near_images_are_read_together_and_far_ones_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shard(tmp_path / "s" / "train-0.tar", range(200))
    source = webdataset(tmp_path / "s", tmp_path / "cache")
    reads: list[int] = []
    opened = webdataset_module._handle

    class Spy:
        def __init__(self, shard: tar_index.Shard) -> None:
            self.file = opened(shard)

        def read_at(self, count: int, offset: int) -> bytes:
            reads.append(count)
            return self.file.read_at(count, offset)

    monkeypatch.setattr(webdataset_module, "_handle", Spy)
    assert values(source, "train", list(range(10, 30))) == list(range(10, 30))
    assert len(reads) == 1
    reads.clear()
    assert values(source, "train", [3, 190]) == [3, 190]
    assert len(reads) == 2
    assert max(reads) < 200


def test_memory_uri(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-0.tar", range(5))
    write_shard(tmp_path / "test-0.tar", range(9, 11))
    memory = fsspec.filesystem("memory")
    for file in tmp_path.glob("*.tar"):
        memory.pipe(f"/shards/{file.name}", file.read_bytes())
    source = webdataset("memory://shards/{train,test}-0.tar", tmp_path / "cache")
    assert source.splits == ["train", "test"]
    assert values(source, "train", [4, 0]) == [4, 0]


@pytest.mark.parametrize("name", ["x.pyd", "x.pkl", "x.label.pickle"])
def test_pickled_members_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"train-0\.tar holds pickled members .* never opened"):
        one_shard(tmp_path, {"x.png": encode(1), name: pickle.dumps(0)})


def test_samples_that_are_refused(tmp_path: Path) -> None:
    image = encode(0)
    cases = [
        ({"x.png": image}, "sample 'x' of .* has no label"),
        ({"x.png": image, "x.cls": b" \n"}, "empty label"),
        ({"x.png": image, "x.jpg": image, "x.cls": b"0"}, "two images"),
        ({"x.png": image, "x.cls": b"0", "y.png": image, "y.cls": b"0", "x.json": b"{}"}, "'x' twice"),
        ({"x.cls": b"0", "x.tiff": image}, r"no image .*its members end in \.cls, \.tiff"),
        ({"x.png": image, "x.json": b"{"}, "JSON cannot be read"),
        ({"x.png": image, "x.json": b'{"label": [1]}'}, r"\[1\], neither a class number nor a name"),
        ({"x.png": image, "x.cls": b"-1"}, "label '-1' is none of the"),
        ({"x.png": image, "x.cls": b"99999999"}, "no class label"),
    ]
    for number, (members, message) in enumerate(cases):
        with pytest.raises(UserError, match=message):
            one_shard(tmp_path / str(number), members)


def test_a_label_outside_the_classes_names_the_shard(tmp_path: Path) -> None:
    write_tar(tmp_path / "s" / "train.tar", {"a.png": encode(0), "a.cls": b"cat"})
    write_tar(tmp_path / "s" / "test.tar", {"a.png": encode(0), "a.cls": b"cta"})
    with pytest.raises(UserError, match=r"test\.tar: label 'cta'.*'cat'"):
        webdataset(tmp_path / "s", tmp_path / "cache")
    write_tar(tmp_path / "n" / "train.tar", {"a.png": encode(0), "a.cls": b"2"})
    (tmp_path / "n" / "classes.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"label '2' is none of the 2 classes \(labels are 0 … 1\)"):
        webdataset(tmp_path / "n", tmp_path / "cache")


def test_damaged_shards(tmp_path: Path) -> None:
    write_shard(tmp_path / "s" / "train-0.tar", range(30))
    whole = (tmp_path / "s" / "train-0.tar").read_bytes()
    file = tmp_path / "s" / "train-0.tar"
    with tarfile.open(file) as tar:
        middle = tar.getmembers()[31].offset
    for content, message in (
        (b"no tar at all" * 100, "as an uncompressed tar"),
        (whole[:middle] + b"\x07" * 512 + whole[middle + 512 :], f"damaged at byte {middle:,}"),
        (whole[: middle + 600], "unexpected end"),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            webdataset(tmp_path / "s", tmp_path / "cache")
    file.write_bytes(whole)
    source = webdataset(tmp_path / "s", tmp_path / "cache")
    file.write_bytes(whole[:middle])
    webdataset_module._handle.cache_clear()
    with pytest.raises(UserError, match="cut short after it was indexed"):
        source.gather("train", np.array([29]))
