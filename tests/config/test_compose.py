"""Words to settings: what is understood, and how mistakes are named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_type_hints

import pytest

from megu_dist.cli import VERBS
from megu_dist.config import schema
from megu_dist.config.compose import GROUPS, config_dir, group_options, known_keys, load, to_container
from megu_dist.config.registry import components
from megu_dist.data.sources.digits import DigitsSettings
from megu_dist.engine.backends.ddp import DdpSettings
from megu_dist.errors import UserError

EXPERIMENT_VERBS = {"train": "train", "pretrain": "train", "retrain": "train"}  # last word of the file name → verb


def refusal(*words: str, extra_dir: str | None = None) -> str:
    """The message with which ``words`` are refused; one line."""
    with pytest.raises(UserError) as caught:
        load(list(words), extra_dir=extra_dir)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_words_win_over_verb_defaults_and_files() -> None:
    settings = load(
        ["data=digits", "engine=ddp", "train.lr=0.5", "forget.classes=[three, 4]"], ["train=scratch"]
    ).settings
    assert isinstance(settings.data, DigitsSettings)
    assert isinstance(settings.engine, DdpSettings)
    assert settings.train.lr == 0.5
    assert settings.train.epochs == 10  # of configs/train/scratch.yaml
    assert settings.train.momentum == schema.TrainSettings().momentum
    assert settings.forget.classes == ["three", 4]


def test_an_experiment_gives_way_to_words() -> None:
    settings = load(["experiment=fashion_mnist_train", "train.epochs=1"], ["train=scratch"]).settings
    assert (settings.train.epochs, settings.train.batch_size) == (1, 128)
    assert settings.model.width == 16  # type: ignore[attr-defined]


def test_stored_yaml_is_the_settings() -> None:
    import yaml

    composed = load(["data=digits", "method.alpha=0.125"])
    stored = yaml.safe_load(composed.yaml)
    assert stored == to_container(composed.settings)
    assert stored["method"] == {"name": "megu", **stored["method"], "alpha": 0.125}


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("train.epoch=3", "'train.epochs'"),
        ("forget.class=[1]", "'forget.classes'"),
        ("method.alhpa=1", "'method.alpha'"),
        ("perturb.epsilom=1", "'perturb.epsilon'"),
        ("experimant=x", "'experiment'"),
    ],
)
def test_an_unknown_key_names_the_nearest(word: str, near: str) -> None:
    message = refusal(word)
    assert repr(word.split("=")[0]) in message
    assert near in message


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("data=fashion_mnsit", "'fashion_mnist'"),
        ("engine=deepsped", "'deepspeed'"),
        ("oracle=uniforn", "'uniform'"),
        ("train=finetun", "'finetune'"),
        ("experiment=fashion_mnist_shirts", "'fashion_mnist_shirt'"),
    ],
)
def test_an_unknown_choice_names_the_nearest(word: str, near: str) -> None:
    message = refusal(word)
    assert word in message
    assert near in message


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("train.epochs=many", "int"),
        ("train.lr=fast", "float"),
        ("train.use_gpu=perhaps", "bool"),
        ("forget.count=1.5", "int"),
        ("method.alpha=null", "alpha"),
        ("forget.classes=three", "list|List|Invalid"),
    ],
)
def test_a_value_of_the_wrong_type_names_the_word(word: str, kind: str) -> None:
    message = refusal(word)
    assert word.split("=")[0] in message
    assert re.search(kind, message, re.IGNORECASE)


@pytest.mark.parametrize("word", ["train.epochs", "train.epochs=[1", "forget.classes=[a b: c", "train.lr="])
def test_a_malformed_word_is_quoted(word: str) -> None:
    if word.endswith("="):  # Hydra reads it as an empty string, which is no number
        assert "train.lr" in refusal(word)
    else:
        assert repr(word) in refusal(word)


def test_a_key_of_another_component() -> None:
    message = refusal("engine=ddp", "engine.zero_stage=2")
    assert "'engine.zero_stage=2'" in message
    assert "chosen engine has no such setting" in message
    assert load(["engine=deepspeed", "engine.zero_stage=2"]).settings.engine.zero_stage == 2  # type: ignore[attr-defined]


def test_a_folder_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /data: digits\nforget:\n  classes: [three]\ntrain:\n  lr: 0.25\n"
    )
    settings = load(["experiment=mine", "train.epochs=7"], extra_dir=str(tmp_path)).settings
    assert (settings.data.name, settings.forget.classes) == ("digits", ["three"])
    assert (settings.train.lr, settings.train.epochs) == (0.25, 7)
    assert "mine" in group_options("experiment", str(tmp_path))
    assert "'mine'" in refusal("experiment=mines", extra_dir=str(tmp_path))
    assert "no such folder" in refusal("train.lr=1", extra_dir=str(tmp_path / "absent"))
    assert "there is no such choice" in refusal("experiment=mine")  # without the folder


def test_a_mistake_in_the_users_own_file(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ntrain:\n  epoch: 7\n")
    assert "train.epoch" in refusal("experiment=mine", extra_dir=str(tmp_path))


@pytest.mark.parametrize("name", group_options("experiment"))
def test_every_experiment_composes_and_passes_the_checks(name: str) -> None:
    from megu_dist.config.validate import check, check_forget

    if name.startswith("benchmark"):
        from megu_dist.benchmark.plan import make_cells

        settings = load([f"experiment={name}"]).settings
        check(settings)
        assert make_cells(settings.benchmark)
        return
    verb = EXPERIMENT_VERBS.get(name.rsplit("_", 1)[-1], "unlearn")
    settings = load([f"experiment={name}"], VERBS[verb].defaults).settings
    check(settings)
    if verb == "unlearn" and not name.startswith("imagenet"):  # there the request is the user's
        check_forget(settings)


@pytest.mark.parametrize("group", GROUPS)
def test_every_component_has_a_file_and_every_file_a_component(group: str) -> None:
    names = set(components(group))
    assert set(group_options(group)) == names
    for name in names:
        assert getattr(load([f"{group}={name}"]).settings, group).name == name


def test_known_keys_are_the_fields_of_all_settings() -> None:
    keys = known_keys()
    assert len(keys) == len(set(keys))
    for key in (
        "engine.zero_stage",
        "engine.bucket_mb",
        "model.width",
        "oracle.template",
        "exclude_forget",
        "seed.train",
    ):
        assert key in keys
    assert "train" not in keys  # a group, not a key
    for section in ("train", "perturb", "run"):
        hints = get_type_hints(get_type_hints(schema.MeguSettings)[section])
        assert {f"{section}.{name}" for name in hints} <= set(keys)


def test_config_dir_holds_the_default() -> None:
    assert (config_dir() / "config.yaml").is_file()


def test_free_mappings_take_new_keys_and_words_are_merged_in_order() -> None:
    words = ["model=transformers", "model.config={patch_size: 4, hidden_size: 32}", "model.config.hidden_size=48"]
    assert load(words).settings.model.config == {"patch_size": 4, "hidden_size": 48}  # type: ignore[attr-defined]
    members = load(["oracle=ensemble", "oracle.members={uniform: {weight: 2}}"]).settings.oracle.members  # type: ignore[attr-defined]
    assert members["uniform"] == {"weight": 2}


@pytest.mark.parametrize("name", [n for n in group_options("experiment") if n.endswith(("_1x8", "_4x8"))])
def test_more_gpus_change_how_a_step_is_cut_and_not_the_step(name: str) -> None:
    base, _, scale = name.rpartition("_")
    one, many = (load([f"experiment={n}"]).settings.train for n in (base, name))
    assert many.num_workers == {"1x8": 8, "4x8": 32}[scale]
    assert (many.batch_size, many.lr, many.epochs) == (one.batch_size, one.lr, one.epochs)
    assert many.micro_batch_size is not None
    assert many.micro_batch_size * many.num_workers <= many.batch_size
