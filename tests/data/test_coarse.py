"""Coarse labels over fine ones: mapping files, coarse columns, what the source then shows, what is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_samples import write_hf, write_images

from megu_dist.config.schema import ForgetSettings
from megu_dist.data.base import Source
from megu_dist.data.coarse import CoarseSource, read_mapping, refuse_fine_names, resolve_subclasses
from megu_dist.data.open import open_source
from megu_dist.data.sources.digits import DigitsSettings
from megu_dist.data.sources.image_folder import ImageFolderSettings
from megu_dist.data.sources.parquet import ParquetSettings
from megu_dist.data.split import make_split, scan
from megu_dist.errors import UserError

ROUND = ["zero", "three", "six", "eight", "nine"]
STRAIGHT = ["seven", "one", "two", "four", "five"]
Write = Callable[[str, str], str]


@pytest.fixture
def mapping(tmp_path: Path) -> Write:
    """Writes a mapping file and gives its path."""

    def write(text: str, name: str = "groups.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> CoarseSource:
    file = tmp_path_factory.mktemp("mapping") / "digits.json"
    file.write_text(json.dumps({"straight": STRAIGHT, "round": ROUND}))
    source = open_source(DigitsSettings(name="digits", cache_dir=str(cache_dir), coarse=str(file)))
    assert isinstance(source, CoarseSource)
    return source


def test_rows_ids_and_images_are_those_of_the_fine_source(coarse: CoarseSource, digits: Source) -> None:
    assert coarse.class_names == ["straight", "round"]  # the order of the file
    assert coarse.fine.class_names == digits.class_names
    rows = np.array([5, 0, 700, 5])
    mine, fine = coarse.gather("train", rows), digits.gather("train", rows)
    assert mine.drop_columns(["label", "fine"]).equals(fine.drop_columns("label"))
    assert mine["fine"].to_pylist() == fine["label"].to_pylist()
    for piece in coarse.pieces("test"):
        index = coarse.index(piece)
        names = [digits.class_names[label] for label in index["fine"].to_pylist()]
        assert index["label"].to_pylist() == [int(name in ROUND) for name in names]


def test_pickling_and_fingerprint(coarse: CoarseSource, digits: Source, cache_dir: Path, mapping: Write) -> None:
    again = pickle.loads(pickle.dumps(coarse))
    assert again.fingerprint() == coarse.fingerprint() != digits.fingerprint()
    assert again.index(again.pieces("test")[0]).equals(coarse.index(coarse.pieces("test")[0]))
    other = mapping(json.dumps({"straight": STRAIGHT[1:], "round": [*ROUND, STRAIGHT[0]]}), "other.json")
    moved = open_source(DigitsSettings(name="digits", cache_dir=str(cache_dir), coarse=other))
    assert moved.fingerprint() != coarse.fingerprint()


def test_yaml_and_json_say_the_same(mapping: Write) -> None:
    names = ["no", "10", "frog"]
    yaml = read_mapping(mapping("a: [no, frog]\nb:\n- 10\n"), names)
    as_json = read_mapping(mapping('{"a": ["no", "frog"], "b": ["10"]}', "groups.json"), names)
    assert yaml.names == as_json.names == ["a", "b"]
    assert yaml.coarse_of.tolist() == as_json.coarse_of.tolist() == [0, 1, 0]


def test_the_mapping_that_comes_with_the_package() -> None:
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    grouping = read_mapping("cifar10_pairs", names)
    pairs = {frozenset(np.array(names)[grouping.coarse_of == label].tolist()) for label in range(5)}
    wanted = "cat dog,deer horse,automobile truck,airplane ship,bird frog"
    assert pairs == {frozenset(pair.split()) for pair in wanted.split(",")}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [cat, dgo]\nb: [frog]", "no class 'dgo'; did you mean 'dog'"),
        ("a: [cat, dog]\nb: [dog, frog]", "'dog' is in 'a' and in 'b'"),
        ("a: [cat]\nb: [frog]", "'dog' in no coarse class"),
        ("a: [cat, dog, frog]", "nothing to tell apart"),
        ("a: cat\nb: [dog, frog]", "must be a file of coarse name"),
        ("- cat\n- dog", "must be a file of coarse name"),
        ("a: [cat", "cannot be read as YAML"),
        ("", "must be a file of coarse name"),
    ],
)
def test_mappings_that_do_not_fit(mapping: Write, text: str, part: str) -> None:
    with pytest.raises(UserError, match=part) as error:
        read_mapping(mapping(text), ["cat", "dog", "frog"])
    assert "groups.yaml" in str(error.value)


def test_a_mapping_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.coarse=cifar10_pair: .*comes with megu: cifar10_pairs"):
        read_mapping("cifar10_pair", ["cat"])
    with pytest.raises(UserError, match=r"missing\.yaml: cannot be read"):
        read_mapping(str(tmp_path / "missing.yaml"), ["cat"])


@pytest.mark.parametrize(
    ("column", "names"),
    [
        ([value % 3 // 2 for value in range(16)], ["0", "1"]),
        (["wild" if value % 3 == 2 else "pet" for value in range(16)], ["pet", "wild"]),
    ],
)
def test_a_coarse_column(tmp_path: Path, column: list[object], names: list[str]) -> None:
    write_hf(tmp_path / "train.parquet", range(16), kind=column)
    settings = ParquetSettings(name="parquet", path=str(tmp_path), test_fraction=0.25, coarse_column="kind")
    source = open_source(settings)
    assert isinstance(source, CoarseSource)
    assert source.class_names == names
    table = source.gather("train", np.arange(12))
    for number, label, fine in zip(*(table[n].to_pylist() for n in ("id", "label", "fine")), strict=True):
        value = int(number.split("/")[1])
        assert fine == value % 3
        assert label == int(value % 3 == 2)


def test_a_coarse_column_with_stated_names(tmp_path: Path) -> None:
    """ClassLabel names keep their order, also those of classes without images."""
    write_hf(tmp_path / "train.parquet", range(16))
    table = pq.read_table(tmp_path / "train.parquet").append_column("kind", pa.array([v % 3 // 2 for v in range(16)]))
    info = json.loads(table.schema.metadata[b"huggingface"])
    info["info"]["features"]["kind"] = {"_type": "ClassLabel", "names": ["pet", "wild", "none yet"]}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), tmp_path / "train.parquet")
    settings = ParquetSettings(
        name="parquet", path=str(tmp_path), test_fraction=0.25, coarse_column="kind", label_column="label"
    )
    source = open_source(settings)
    assert source.class_names == ["pet", "wild", "none yet"]
    assert resolve_subclasses(["dog"], source) == [1]


def test_coarse_columns_that_do_not_fit(tmp_path: Path, cache_dir: Path, mapping: Write) -> None:
    write_hf(
        tmp_path / "data" / "train.parquet",
        range(16),
        mixed=[value % 2 for value in range(16)],
        share=[value / 3 for value in range(16)],
        below=[value % 3 - 1 for value in range(16)],
    )

    def opened(column: str, **more: str) -> Source:
        path = str(tmp_path / "data")
        return open_source(ParquetSettings(name="parquet", path=path, test_fraction=0.25, coarse_column=column, **more))

    for column, part in (
        ("mixd", r"no column 'mixd'; did you mean 'mixed'"),
        ("mixed", r"images of '\w+' have 0 and 1 there"),
        ("share", r"'share' holds double"),
        ("below", r"labels go from -1 to 1"),
    ):
        with pytest.raises(UserError, match=part):
            opened(column)
    with pytest.raises(UserError, match="set one of them"):
        opened("mixed", coarse=mapping("a: [cat]", "a.yaml"))


def test_image_folders(tmp_path: Path, mapping: Write) -> None:
    write_images(tmp_path / "images", "cat/a.png cat/b.png dog/c.png dog/d.png frog/e.png frog/f.png")
    groups = mapping("pet: [cat, dog]\nwild: [frog]", "pets.yaml")
    settings = ImageFolderSettings(name="image_folder", path=str(tmp_path / "images"), test_fraction=0.3, coarse=groups)
    source = open_source(settings)
    table = source.gather("train", np.arange(source.num_rows("train")))
    for name, label in zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True):
        assert source.class_names[label] == ("wild" if name.startswith("frog") else "pet")


def test_requests(coarse: CoarseSource, digits: Source) -> None:
    assert resolve_subclasses(["three"], coarse) == [3]
    assert resolve_subclasses(["eight", 3], coarse) == [3, 8]
    for wanted, part in (
        (["thre"], "did you mean 'three'"),
        (["round"], "'round' is a coarse class: name fine classes .zero, three, six, eight, nine"),
        (ROUND, r"every fine class of 'round'.*forget\.classes=\[round\]"),
    ):
        with pytest.raises(UserError, match=part):
            resolve_subclasses(wanted, coarse)
    with pytest.raises(UserError, match=r"needs coarse labels.*data\.coarse=FILE"):
        resolve_subclasses(["three"], digits)
    with pytest.raises(UserError, match=r"'three' is a fine class.*forget\.scenario=subclass"):
        refuse_fine_names(["three"], coarse)
    refuse_fine_names(["three"], digits)
    refuse_fine_names(["round"], coarse)


def test_split(ray_local: None, coarse: CoarseSource, digits: Source) -> None:
    found = make_split(coarse, ForgetSettings(scenario="subclass"), [3, 8], 0, lambda done: None)
    everything, counts = scan(digits, "train", None)
    fine = everything["label"].to_numpy()
    assert found.rows.tolist() == np.flatnonzero(np.isin(fine, [3, 8])).tolist()
    assert found.labels == [3, 8]
    assert set(found.forget["label"].to_pylist()) == {1}
    assert found.class_counts.tolist() == [counts[[1, 2, 4, 5, 7]].sum(), counts[[0, 3, 6, 8, 9]].sum()]
    whole = make_split(coarse, ForgetSettings(scenario="class"), [1], 0, lambda done: None)
    assert whole.rows.tolist() == np.flatnonzero(np.isin(fine, [0, 3, 6, 8, 9])).tolist()
    assert whole.labels == [1]
    assert whole.forget.column_names == ["row", "id", "label"]
