"""A multimodal model behind Ray Serve: found from any folder, rated as in this process, and plain about what is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_vlm

from megu_dist.errors import UserError
from megu_dist.oracle import serve
from megu_dist.oracle.backends.ensemble import EnsembleSettings
from megu_dist.oracle.backends.mllm import MllmOracle, MllmSettings
from megu_dist.oracle.base import Concept, Pair, Rating

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MllmSettings:
    """With a path that only this process can follow: Ray's workers started in another folder."""
    tiny_vlm.llava(tmp_path / "vlm", spread=0.5)
    monkeypatch.chdir(tmp_path)
    return MllmSettings(name="mllm", path="vlm", min_mass=0.0, max_batch_size=6, pairs_per_request=3)


def test_it_gives_the_ratings_that_it_gives_in_this_process(settings: MllmSettings) -> None:
    pictures = [(tiny_vlm.picture(30 * i), tiny_vlm.picture(20 * i, 1)) for i in range(6)]
    concepts = [Concept(f"thing {i}", "", shown) for i, shown in enumerate(pictures)]
    pairs = [Pair(a, b, w) for a in concepts[:2] for b in concepts for w in range(2)]
    expected = {id(pair): rating for pair, rating in zip(pairs, MllmOracle(settings).rate(pairs), strict=True)}
    found: dict[int, Rating] = {}

    def arrived(asked: list[Pair], rated: list[Rating]) -> None:
        found.update({id(pair): rating for pair, rating in zip(asked, rated, strict=True)})

    with serve.served(settings) as handle:
        serve.rate_all(handle, pairs, settings, arrived)
    assert found.keys() == expected.keys()
    for key, rating in found.items():
        assert rating.value == pytest.approx(expected[key].value, abs=1e-3)
        assert rating[1:] == expected[key][1:]


def test_a_model_that_does_not_load_says_why(settings: MllmSettings, tmp_path: Path) -> None:
    (tmp_path / "vlm" / "tokenizer.json").write_text("{}")
    with (
        pytest.raises(UserError, match=r"'mllm' does not start: oracle\.path=.*: its processor does not load"),
        serve.served(settings),
    ):
        pass


def test_the_name_of_a_served_model_is_that_of_its_folder(
    settings: MllmSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = replace(settings, path=str(tmp_path / "vlm"))
    ensemble = EnsembleSettings(name="ensemble", members={"mllm": {"path": "vlm", "weight": 2}, "uniform": None})
    names = [serve.app_name(one) for one in (settings, ensemble)]
    assert serve.app_name(same) == names[0]
    found = serve.located(ensemble)
    assert found.members == {"mllm": {"path": str(tmp_path / "vlm"), "weight": 2}, "uniform": None}
    assert serve.located(replace(settings, path="org/vlm")).path == "org/vlm"  # a hub id
    monkeypatch.chdir(tmp_path.parent)
    assert serve.app_name(replace(settings, images=5)) != names[0]  # another folder, or none
