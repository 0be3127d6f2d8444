"""Parquet, image folders and WebDataset shards in an S3-compatible store: a real server on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.fs as pafs
import pytest
from image_samples import CLASSES, folder_source, full_index, parquet, values, webdataset, write_layouts, write_shard

from megu_dist.config.compose import load
from megu_dist.data.base import Source
from megu_dist.data.files import filesystem
from megu_dist.data.open import open_source
from megu_dist.data.split import make_split
from megu_dist.data.stream import in_this_process
from megu_dist.errors import UserError

pytest.importorskip("moto.server", reason="moto is not installed")
KINDS = ["parquet", "image_folder", "webdataset"]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """``127.0.0.1:port`` of an S3 server with the bucket ``data``."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        server.start()
        host, port = server.get_host_and_port()
        yield f"{host}:{port}"
        filesystem.cache_clear()
        server.stop()


@pytest.fixture(scope="module")
def stored(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The server with 16 training and 7 test images in each layout below ``s3://data/<kind>``."""
    root = tmp_path_factory.mktemp("upload")
    write_layouts(root, list(range(16)), list(range(100, 107)))
    store = pafs.S3FileSystem(endpoint_override=endpoint, scheme="http", allow_bucket_creation=True)
    store.create_dir("data")
    pafs.copy_files(str(root), "data", destination_filesystem=store)
    return endpoint


def uri(path: str, endpoint: str) -> str:
    return f"s3://data/{path}?endpoint_override={endpoint}&scheme=http"


def open_kind(kind: str, path: str, cache: Path) -> Source:
    if kind == "webdataset":
        return webdataset(path, cache)
    return {"parquet": parquet, "image_folder": folder_source}[kind](path)


@pytest.mark.parametrize("kind", KINDS)
def test_list_index_split_gather(stored: str, tmp_path: Path, kind: str) -> None:
    words = [f"data={kind}", f"data.path='{uri(kind, stored)}'", f"data.cache_dir={tmp_path}", "forget.classes=[dog]"]
    settings = load(words).settings
    source = open_source(settings.data)
    assert source.splits == ["train", "test"]
    assert source.class_names == CLASSES
    with in_this_process():
        split = make_split(source, settings.forget, [1], 0, lambda _: None)
    assert split.class_counts.tolist() == [6, 5, 5]
    assert sorted(values(source, "train", split.rows.tolist())) == [1, 4, 7, 10, 13]
    assert sorted(values(source, "train")) == list(range(16))
    assert sorted(values(source, "test")) == list(range(100, 107))
    rows = np.arange(16)
    assert full_index(source, "train").equals(source.gather("train", rows).drop_columns("image"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_endpoint_from_the_environment(
    stored: str, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{stored}")
    filesystem.cache_clear()
    assert sorted(values(open_kind(kind, f"s3://data/{kind}", tmp_path), "train")) == list(range(16))
    filesystem.cache_clear()


def test_patterns_in_a_store(stored: str, tmp_path: Path) -> None:
    for pattern, held in (
        ("webdataset/train-{000..001}.tar", 16),
        ("webdataset/train-*.tar", 16),
        ("webdataset/train-00[0].tar", 10),
        ("webdataset/train-00?.tar", 16),
    ):
        assert values(webdataset(uri(pattern, stored), tmp_path), "train") == list(range(held))
    fsspec.filesystem("memory").pipe("/shards.txt", uri("webdataset/train-000.tar", stored).encode())
    assert values(webdataset("memory://shards.txt", tmp_path), "train") == list(range(10))
    source = parquet(uri("parquet/train-*.parquet", stored), test_path=uri("parquet/test-0.parquet", stored))
    assert (source.num_rows("train"), source.num_rows("test")) == (16, 7)


def test_what_is_missing_in_a_store(stored: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.path: s3://data/webdatset.* does not exist"):
        webdataset(uri("webdatset", stored), tmp_path)
    with pytest.raises(UserError, match=r"train-003\.tar.* does not exist"):
        webdataset(uri("webdataset/train-{000..003}.tar", stored), tmp_path)
    with pytest.raises(UserError, match=r"no \.parquet.* files in s3://data/webdataset"):
        parquet(uri("webdataset", stored))


def test_workers_read_through_ray(stored: str, tmp_path: Path, ray_local: None) -> None:
    """Ray Data tasks open the store by themselves; credentials come with the URI here."""
    from megu_dist.data import stream
    from megu_dist.data.readers import ImageReader
    from megu_dist.models.preprocess import Preprocess

    location = f"s3://test:test@data/webdataset?endpoint_override={stored}&scheme=http"
    source = webdataset(location, tmp_path)
    reader = ImageReader(source, "train", Preprocess(4, 4, 1, (0.5,), (0.5,)))
    blocks = list(stream.blocks(np.arange(16), reader, 5))
    assert np.concatenate([block["image"][:, 0, 0, 0] for block in blocks]).tolist() == list(range(16))


def test_fingerprints_follow_the_objects(stored: str, tmp_path: Path) -> None:
    store, path = pafs.FileSystem.from_uri(uri("changing/train-0.tar", stored))
    prints = []
    for held in (3, 40):  # of another size: a store tells times by the second only
        write_shard(tmp_path / "shard.tar", range(held))
        pafs.copy_files(str(tmp_path / "shard.tar"), path, destination_filesystem=store)
        source = webdataset(uri("changing", stored), tmp_path)
        assert values(source, "train") == list(range(held))
        prints.append(source.fingerprint())
    assert prints[0] != prints[1]
