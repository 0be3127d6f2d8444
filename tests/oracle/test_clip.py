"""Similarities of a tiny, random CLIP model as ratings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_vlm
import torch
from transformers import CLIPModel, CLIPProcessor

from megu_dist.errors import UserError
from megu_dist.oracle.backends import clip
from megu_dist.oracle.backends.clip import ClipOracle, ClipSettings
from megu_dist.oracle.backends.mllm import _pictures
from megu_dist.oracle.base import Concept, Pair

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("cat", "dog", "truck", "a_fire_engine", "ship")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlm.clip(
        tmp_path_factory.mktemp("clip"), seed=1, spread=0.5
    )  # some pictures like their names, some not


def load(folder: Path, **options: Any) -> ClipOracle:
    return ClipOracle(ClipSettings(name="clip", path=str(folder), **options))


def concept(name: str, *shades: int) -> Concept:
    return Concept(name, "", tuple(tiny_vlm.picture(shade, seed) for seed, shade in enumerate(shades)))


TEXT = [Pair(Concept(a), Concept(b)) for a in NAMES for b in NAMES]
SHOWN = [concept(name, 40 * place, 255 - 30 * place) for place, name in enumerate(NAMES)]
PICTURED = [Pair(a, b) for a in SHOWN for b in SHOWN]


def values(oracle: ClipOracle, pairs: list[Pair]) -> list[float]:
    return [rating.value for rating in oracle.rate(pairs)]


@pytest.mark.parametrize("pairs", [TEXT, PICTURED, PICTURED[:7] + TEXT[:9]], ids=["text", "pictures", "mixed"])
def test_a_rating_does_not_depend_on_its_batch_nor_on_the_order(folder: Path, pairs: list[Pair]) -> None:
    together = values(load(folder), pairs)
    assert all(0 <= value <= 10 for value in together)
    assert len({round(value, 2) for value in together}) > 5
    one_by_one = load(folder)
    for place in np.random.default_rng(0).permutation(len(pairs)):
        assert values(one_by_one, [pairs[place]]) == pytest.approx([together[place]], abs=1e-3)
    turned = [pair._replace(first=pair.second, second=pair.first) for pair in pairs]
    assert values(load(folder), turned) == pytest.approx(together, abs=1e-3)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_concept_is_wholly_like_itself(folder: Path, weight: float) -> None:
    oracle = load(folder, image_weight=weight)
    for pairs in (TEXT, PICTURED):
        grid = np.array(values(oracle, pairs)).reshape(len(NAMES), -1)
        np.testing.assert_allclose(np.diag(grid), 10, atol=1e-3)
        assert (grid <= 10 + 1e-9).all()


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_rating_places_similarities_between_those_of_no_concept_and_of_the_concept(
    folder: Path, weight: float
) -> None:
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)

    def unit(vectors: Any) -> np.ndarray:
        found = np.asarray(getattr(vectors, "pooler_output", vectors), np.float64)
        return found / np.linalg.norm(found, axis=-1, keepdims=True)

    def side(a: Concept, b: Concept) -> float:
        texts = [f"a photo of a {name}" for name in (a.name, b.name)] + ["a photo"]
        with torch.no_grad():
            own, other, neutral = (
                unit(model.get_text_features(**processor(text=[text], return_tensors="pt")))[0] for text in texts
            )
            pixels = processor(images=_pictures(a), return_tensors="pt")
            picture = unit(unit(model.get_image_features(**pixels)).mean(0))
        by_text = np.clip((own @ other - own @ neutral) / (1 - own @ neutral), 0, 1)
        low, high = picture @ neutral, picture @ own
        if high <= low:  # the picture is no more like the concept's name than like nothing
            return float(10 * by_text)
        by_picture = np.clip((picture @ other - low) / (high - low), 0, 1)
        return float(10 * ((1 - weight) * by_text + weight * by_picture))

    oracle = load(folder, image_weight=weight)
    chosen = [pair for pair in PICTURED if "_" not in pair.first.name + pair.second.name]
    expected = [(side(a, b) + side(b, a)) / 2 for a, b, _ in chosen]
    assert values(oracle, chosen) == pytest.approx(expected, abs=1e-3)


def test_pictures_matter_as_much_as_asked(folder: Path) -> None:
    off = values(load(folder, image_weight=0.0), PICTURED)
    assert off == pytest.approx(values(load(folder), TEXT), abs=1e-4)  # names alone
    half, full = (np.array(values(load(folder, image_weight=weight), PICTURED)) for weight in (0.5, 1.0))
    np.testing.assert_allclose(half, (np.array(off) + full) / 2, atol=1e-3)
    assert np.abs(full - off).max() > 0.5


def test_names_too_long_for_the_model_are_cut(folder: Path) -> None:
    oracle = load(folder)
    oracle.processor.tokenizer.model_max_length = 10**30  # as where a tokenizer's settings do not say
    oracle.rate([Pair(Concept("cat " * 2500), Concept("dog"))])
    assert load(folder).length == 77


@pytest.mark.parametrize("name", ["{0}", "{name!r}", "%s", "a\ud800b", "", "\n", "ᚠ" * 300])
def test_any_name_can_be_rated(folder: Path, name: str) -> None:
    (rating,) = load(folder).rate([Pair(Concept(name), Concept("cat"))])
    assert 0 <= rating.value <= 10


def test_it_is_known_by_its_folder_template_and_weight(folder: Path) -> None:
    def about(**options: Any) -> Any:
        return ClipOracle.about(ClipSettings(name="clip", path=str(folder), **options))

    known = about()
    assert known.symmetric
    assert known.id.startswith(f"clip:{folder.name}:")
    assert about(template="{}").prompts != known.prompts != about(image_weight=0.25).prompts
    (folder / "notes.json").write_text("{}")
    assert about().id != known.id


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"path": None}, "oracle=clip needs oracle.path"),
        ({"path": "./nowhere"}, "oracle.path=./nowhere: no such folder"),
        ({"image_weight": 1.1}, "oracle.image_weight=1.1: must be between 0 and 1"),
        ({"template": "a photo"}, "oracle.template='a photo'"),
        ({"template": "{} {}"}, "oracle.template='{} {}'"),
    ],
)
def test_settings_that_cannot_work_are_refused(folder: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as refusal:
        ClipOracle.about(ClipSettings(**{"name": "clip", "path": str(folder), **options}))
    assert told in str(refusal.value)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a model folder"):
        ClipOracle.about(ClipSettings(name="clip", path=str(tmp_path)))


def test_a_picture_that_the_model_does_not_recognise_counts_for_nothing() -> None:
    assert clip._between(0.3, 0.5, 0.4) is None
    assert clip._between(0.3, 0.1, 0.5) == pytest.approx(5)
    assert (clip._between(0.9, 0.1, 0.5), clip._between(0.0, 0.1, 0.5)) == (10, 0)
