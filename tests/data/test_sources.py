"""Parquet files: the layouts that are understood, and what is read of them."""

from __future__ import annotations

import functools
import http.server
import pickle
import threading
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_samples import CLASSES, HF_IMAGE, encode, full_index, parquet, values, write_hf

from megu_dist.data.sources import parquet as parquet_module
from megu_dist.errors import UserError


def test_hugging_face_folder(hf_folder: Path) -> None:
    source = parquet(hf_folder)
    assert source.splits == ["train", "test"]
    assert source.class_names == CLASSES
    assert [piece.count for piece in source.pieces("train")] == [4, 4, 2, 4, 2]
    assert [piece.first for piece in source.pieces("train")] == [0, 4, 8, 10, 14]
    assert [piece.part for piece in source.pieces("train")] == [0, 1, 2, 0, 1]
    assert source.pieces("train")[3].uri.endswith("train-00001-of-00002.parquet")
    assert values(source, "train") == list(range(16))
    assert values(source, "test") == list(range(100, 107))


def test_index_reads_no_image_and_gather_reads_each_row_group_once(
    hf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, seen = parquet(hf_folder), []
    read = pq.ParquetFile.read_row_group

    def spy(self: Any, part: int, columns: list[str], **options: Any) -> Any:
        seen.append((part, tuple(columns)))
        return read(self, part, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    source.index(source.pieces("train")[0])
    assert seen == [(0, ("label",))]
    seen.clear()
    source.gather("train", np.array([5, 0, 4, 5, 1]))
    assert seen == [(0, ("label", "img")), (1, ("label", "img"))]


def test_gather_reads_footers_once_per_process(hf_folder: Path) -> None:
    source = parquet(hf_folder)
    source.gather("train", np.arange(16))
    before = parquet_module._footer.cache_info().misses
    source.gather("train", np.arange(16))
    assert parquet_module._footer.cache_info().misses == before


@pytest.mark.parametrize("layout", ["train/a.parquet test/a.parquet", "my_train.parquet val-0.parquet test.parquet"])
def test_split_words_in_names_and_folders(tmp_path: Path, layout: str) -> None:
    for name in layout.split():
        write_hf(tmp_path / name, range(3))
    expected = ["train", "test", "validation"] if "val" in layout else ["train", "test"]
    assert parquet(tmp_path).splits == expected


def test_one_plain_file_with_binary_image_and_test_path(tmp_path: Path) -> None:
    table = pa.table({"photo": pa.array([encode(v) for v in range(5)], pa.large_binary()), "target": [0, 1, 2, 4, 0]})
    pq.write_table(table, tmp_path / "data.parquet")
    pq.write_table(table.slice(0, 2), tmp_path / "held.parquet")
    source = parquet(tmp_path / "data.parquet", test_path=str(tmp_path / "held.parquet"))
    assert source.class_names == ["0", "1", "2", "3", "4"]
    assert values(source, "train") == list(range(5))
    assert values(source, "test") == [0, 1]


def test_test_path_inside_path_leaves_training(tmp_path: Path) -> None:
    write_hf(tmp_path / "a.parquet", range(3))
    write_hf(tmp_path / "b.parquet", range(50, 54))
    source = parquet(tmp_path, test_path=str(tmp_path / "b.parquet"))
    assert values(source, "train") == [0, 1, 2]
    assert values(source, "test") == [50, 51, 52, 53]
    with pytest.raises(UserError, match="none is left to train on"):
        parquet(tmp_path / "a.parquet", test_path=str(tmp_path / "a.parquet"))


def test_glob(hf_folder: Path) -> None:
    write_hf(hf_folder / "deep" / "train-9.parquet", range(200, 202))
    assert values(parquet(hf_folder / "train-*.parquet"), "train") == list(range(16))
    assert values(parquet(hf_folder / "t?st-*.parquet"), "train") == list(range(100, 107))
    assert 200 in values(parquet(hf_folder / "**/train-*.parquet"), "train")


def test_relative_path_is_absolute_after_construction(hf_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hf_folder.parent)
    source = pickle.loads(pickle.dumps(parquet("hf")))
    monkeypatch.chdir("/")
    assert values(source, "test", [2]) == [102]


def test_file_uri_and_memory_uri(hf_folder: Path) -> None:
    assert values(parquet(f"file://{hf_folder}"), "train") == list(range(16))
    memory = fsspec.filesystem("memory")
    for file in hf_folder.iterdir():
        memory.pipe(f"/sources/{file.name}", file.read_bytes())
    source = pickle.loads(pickle.dumps(parquet("memory://sources")))
    assert source.splits == ["train", "test"]
    assert values(source, "train", [12, 1]) == [12, 1]
    assert values(parquet("memory://sources/train-00001*.parquet"), "train") == list(range(10, 16))
    assert values(parquet("memory://sources/test-00000-of-00001.parquet"), "train", [0]) == [100]


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Serves byte ranges, as object stores do."""

    def do_GET(self) -> None:
        content = Path(self.translate_path(self.path)).read_bytes()
        first, last = 0, len(content) - 1
        if wanted := self.headers.get("Range"):
            first, last = (int(bound) for bound in wanted.removeprefix("bytes=").split("-"))
            last = min(last, len(content) - 1)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[first : last + 1])

    def log_message(self, *_: object) -> None: ...


def test_http_uri(hf_folder: Path) -> None:
    handler = functools.partial(RangeHandler, directory=str(hf_folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = parquet(f"http://127.0.0.1:{server.server_port}/test-00000-of-00001.parquet?download=true")
        assert values(source, "train", [6, 0]) == [106, 100]
        server.shutdown()


def test_null_bytes_are_read_from_the_path(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for value in range(3):
        (tmp_path / "images" / f"{value}.png").write_bytes(encode(value))
    images = [{"bytes": None, "path": f"images/{v}.png"} for v in range(3)] + [{"bytes": encode(9), "path": "x.png"}]
    table = pa.table({"image": pa.array(images, HF_IMAGE), "label": [0, 1, 0, 1]})
    pq.write_table(table, tmp_path / "data.parquet")
    assert values(parquet(tmp_path / "data.parquet"), "train", [3, 2, 0]) == [9, 2, 0]
    (tmp_path / "images" / "1.png").unlink()
    with pytest.raises(UserError, match=r"row 1 of .*data\.parquet.*images/1\.png"):
        parquet(tmp_path / "data.parquet").gather("train", np.arange(4))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_string_labels(tmp_path: Path, kind: Any) -> None:
    labels = pa.array(["dog", "cat", "dog", "ant"]).cast(kind)
    table = pa.table({"image": [encode(v) for v in range(4)], "class": labels})
    pq.write_table(table, tmp_path / "data.parquet", row_group_size=2)
    source = parquet(tmp_path)
    assert source.class_names == ["ant", "cat", "dog"]
    assert full_index(source, "train")["label"].to_pylist() == [2, 1, 2, 0]


def test_string_test_label_that_training_lacks(tmp_path: Path) -> None:
    for name, label in (("train", "cat"), ("test", "cta")):
        pq.write_table(pa.table({"image": [encode(0)], "label": [label]}), tmp_path / f"{name}.parquet")
    source = parquet(tmp_path)
    with pytest.raises(UserError, match=r"row 0 of .*test\.parquet: label 'cta'.*'cat'"):
        source.index(source.pieces("test")[0])


@pytest.mark.parametrize("content", ['["x", "y", "z"]', "x\ny\nz\n"])
def test_class_names_file_goes_before_the_metadata(hf_folder: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "names").write_text(content)
    source = parquet(hf_folder, class_names_file=str(tmp_path / "names"))
    assert source.class_names == ["x", "y", "z"]
    assert source.fingerprint() != parquet(hf_folder).fingerprint()


def test_id_column(tmp_path: Path) -> None:
    write_hf(tmp_path / "data.parquet", range(6), key=[70, 71, 72, 73, 74, 75])
    source = parquet(tmp_path, id_column="key")
    assert full_index(source, "train")["id"].to_pylist() == ["70", "71", "72", "73", "74", "75"]
    assert source.gather("train", np.array([5, 0]))["id"].to_pylist() == ["75", "70"]


def test_coarse_and_fine_labels(tmp_path: Path) -> None:
    table = pa.table({"img": [encode(0), encode(1)], "fine_label": [1, 0], "coarse_label": [0, 0]})
    pq.write_table(table, tmp_path / "data.parquet")
    assert full_index(parquet(tmp_path), "train")["label"].to_pylist() == [1, 0]
    assert full_index(parquet(tmp_path, label_column="coarse_label"), "train")["label"].to_pylist() == [0, 0]
