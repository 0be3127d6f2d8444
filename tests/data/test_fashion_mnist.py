"""Fashion-MNIST: found, converted once, and refused with advice."""

from __future__ import annotations

import gzip
import io
import multiprocessing
import pickle
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from megu_dist.data.sources import fashion_mnist
from megu_dist.data.sources.fashion_mnist import CLASSES, FashionMnistSettings, FashionMnistSource, read_idx
from megu_dist.errors import UserError


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_small(folder: Path, seed: int = 0, zipped: bool = True) -> Path:
    """The four files with 40 + 12 images."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", 40), ("t10k", 12)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        for name, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", np.arange(count) % 10)):
            path = folder / f"{prefix}-{name}{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    return folder


def source_of(folder: Path, cache: Path) -> FashionMnistSource:
    return FashionMnistSource(FashionMnistSettings(name="fashion_mnist", path=str(folder), cache_dir=str(cache)))


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No Debian package, no shared folder, no hub."""
    import huggingface_hub

    def fail(*_: object, **__: object) -> str:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", str(tmp_path / "none"))
    monkeypatch.delenv("MEGU_DATA_DIR", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)


def test_debian_files(fashion_settings: FashionMnistSettings) -> None:
    source = FashionMnistSource(fashion_settings)
    assert source.splits == ["train", "test"]
    assert (source.num_rows("train"), source.num_rows("test")) == (60_000, 10_000)
    assert source.class_names == list(CLASSES)
    labels = pa.concat_tables([source.index(piece) for piece in source.pieces("train")])["label"].to_numpy()
    assert np.bincount(labels).tolist() == [6000] * 10
    rows = np.array([59_999, 0, 31_234])
    table = source.gather("train", rows)
    original = read_idx(f"{fashion_mnist.DEBIAN_FOLDER}/train-images-idx3-ubyte.gz", 3)
    for content, label, row in zip(table["image"].to_pylist(), table["label"].to_pylist(), rows, strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), original[row])
        assert label == labels[row]
    assert len(pickle.dumps(source)) < 20_000
    folders = list((Path(fashion_settings.cache_dir) / "fashion_mnist-v1").iterdir())
    assert len(folders) == 1
    files = sorted(folders[0].glob("train-*.parquet"))
    assert len(files) == 4
    assert {pq.ParquetFile(file).metadata.row_group(0).num_rows for file in files} == {1000}


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_folder(tmp_path: Path, zipped: bool) -> None:
    source = source_of(write_small(tmp_path / "idx", zipped=zipped), tmp_path / "cache")
    assert source.gather("test", np.array([11, 3]))["label"].to_pylist() == [1, 3]
    again = source_of(tmp_path / "idx", tmp_path / "cache")
    assert again.fingerprint() == source.fingerprint()


def test_other_files_are_not_served_from_an_older_conversion(tmp_path: Path) -> None:
    first = source_of(write_small(tmp_path / "idx", seed=0), tmp_path / "cache")
    second = source_of(write_small(tmp_path / "idx", seed=1), tmp_path / "cache")
    assert first.fingerprint() != second.fingerprint()
    assert first.gather("train", np.array([0])) != second.gather("train", np.array([0]))


@pytest.mark.parametrize("prefix", ["train", "t10k"])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_file_is_named_and_leaves_nothing_behind(tmp_path: Path, prefix: str, zipped: bool) -> None:
    folder = write_small(tmp_path / "idx", zipped=zipped)
    path = next(folder.glob(f"{prefix}-images*"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"{path.name}.*truncated"):
        source_of(folder, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "fashion_mnist-v1").iterdir())


def test_wrong_magic_and_counts(tmp_path: Path) -> None:
    folder = write_small(tmp_path / "idx", zipped=False)
    labels = folder / "train-labels-idx1-ubyte"
    good = labels.read_bytes()
    labels.write_bytes(b"\x00\x00\x0d\x01" + good[4:])
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte is not an idx file"):
        source_of(folder, tmp_path / "cache")
    labels.write_bytes(idx(np.zeros(39)))
    with pytest.raises(UserError, match=r"40 images.* 39 labels"):
        source_of(folder, tmp_path / "cache")
    labels.write_bytes(idx(np.full(40, 10)))
    with pytest.raises(UserError, match="label 10"):
        source_of(folder, tmp_path / "cache")


def _open(folder: Path, cache: Path, barrier: object) -> None:
    barrier.wait(30)  # type: ignore[attr-defined]
    assert source_of(folder, cache).num_rows("train") == 40


def test_two_processes_convert_at_once(tmp_path: Path) -> None:
    folder = write_small(tmp_path / "idx")
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    workers = [context.Process(target=_open, args=(folder, tmp_path / "cache", barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    left = list((tmp_path / "cache" / "fashion_mnist-v1").iterdir())
    assert len(left) == 1
    assert not left[0].name.startswith(".")


def test_loser_of_the_race_uses_the_winners_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, build = write_small(tmp_path / "idx"), FashionMnistSource.build

    def slow(self: FashionMnistSource) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        monkeypatch.setattr(FashionMnistSource, "build", build)
        source_of(folder, tmp_path / "cache")  # another process finishes while this one converts
        return build(self)

    monkeypatch.setattr(FashionMnistSource, "build", slow)
    assert source_of(folder, tmp_path / "cache").num_rows("test") == 12
    assert len(list((tmp_path / "cache" / "fashion_mnist-v1").iterdir())) == 1


@pytest.mark.usefixtures("nowhere")
def test_nowhere_to_be_found_tells_all_remedies(tmp_path: Path) -> None:
    settings = FashionMnistSettings(name="fashion_mnist", cache_dir=str(tmp_path))
    with pytest.raises(UserError) as caught:
        FashionMnistSource(settings)
    message = str(caught.value)
    for part in ("no route to the hub", "apt-get install dataset-fashion-mnist", "hub reachable", "data.path="):
        assert part in message
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"data\.path=.*empty holds neither.*apt-get install dataset-fashion-mnist"):
        source_of(tmp_path / "empty", tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        source_of(tmp_path / "missing", tmp_path)


@pytest.mark.usefixtures("nowhere")
def test_order_of_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    converted = source_of(write_small(tmp_path / "idx"), tmp_path / "cache")
    hub = next((tmp_path / "cache" / "fashion_mnist-v1").iterdir())
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(hub))
    settings = FashionMnistSettings(name="fashion_mnist", cache_dir=str(tmp_path / "other"))
    source = FashionMnistSource(settings)  # Parquet of the hub, as it is
    assert not (tmp_path / "other").exists()
    assert pickle.loads(pickle.dumps(source)).gather("test", np.array([1])) == converted.gather("test", np.array([1]))
    write_small(tmp_path / "shared" / "fashion-mnist", seed=1)
    monkeypatch.setenv("MEGU_DATA_DIR", str(tmp_path / "shared"))
    from_shared = FashionMnistSource(settings)
    assert from_shared.fingerprint() not in (source.fingerprint(), converted.fingerprint())
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", str(tmp_path / "idx"))
    assert FashionMnistSource(settings).fingerprint() == converted.fingerprint()
