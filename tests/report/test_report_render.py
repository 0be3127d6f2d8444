"""The HTML report of synthetic runs: self-contained, true to the numbers, safe with any name, whole when parts lack."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from megu_dist.errors import UserError
from megu_dist.report.render import public_settings, write_report

MakeRun = Callable[..., Path]
FIGURES = {"per_class_accuracy", "destinations", "transition", "perturbed", "loss", "timings"}


class Links(HTMLParser):
    """Collects what a browser would fetch, and images without alternative text."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "poster")]
        self.silent += tag == "img" and not dict(attrs).get("alt")


def report(run: Path, tmp_path: Path, **options: Any) -> tuple[str, set[str]]:
    """The page without its embedded images, and the names of the figures; both are checked on the way."""
    out = tmp_path / "out" / run.name
    page = write_report(run, out, **options)
    assert page == out / "report.html"
    html = page.read_text(encoding="utf-8")
    links = Links()
    links.feed(html)
    assert all(link.startswith("data:") for link in links.fetched)
    assert not {"script", "iframe", "object"} & set(links.tags)
    assert not re.search(r"@import|url\(", html)
    assert links.silent == 0
    figures = sorted((out / "figures").iterdir())
    for path in figures:
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG"
            assert min(image.size) >= 200
            assert len(image.convert("L").getcolors(256) or []) > 8  # something is drawn
    assert html.count("data:image/png;base64,") == len(figures)
    return re.sub(r"base64,[\w+/=]+", "", html), {path.stem for path in figures}


@pytest.mark.parametrize("channels", [1, 3])
def test_full_report(make_run: MakeRun, tmp_path: Path, channels: int) -> None:
    html, figures = report(make_run(channels=channels), tmp_path)
    assert figures == FIGURES
    assert (
        "Forgot Shirt: accuracy on forgotten test images 0.843 → 0.007 (retrained 0.003); "
        "retained test accuracy 0.921 → 0.918 (retrained 0.920)."
    ) in html
    for text in ("0.137", "0.383", "0.991", "Tug of war", "stand-in", "any &lt;cpu&gt;", "max_tokens: 7", "21", "7.2%"):
        assert text in html
    assert "hunter2" not in html
    assert '<html lang="en">' in html


def test_hundred_long_class_names(make_run: MakeRun, tmp_path: Path) -> None:
    names = [f"a very long class name, number {index}, with $signs$ in it" for index in range(100)]
    run = make_run(class_names=names, forget=(3, 98), channels=3, side=8)
    html, figures = report(run, tmp_path)
    assert figures == FIGURES
    assert "of 100 classes shown" in html


def test_without_retrained_model(make_run: MakeRun, tmp_path: Path) -> None:
    html, figures = report(make_run(retrained=False), tmp_path)
    assert figures == FIGURES
    assert "evaluate.retrained=PATH" in html
    assert "Tug of war" not in html
    assert "(retrained" not in html


def test_names_are_escaped_and_perturbed_may_be_absent(make_run: MakeRun, tmp_path: Path) -> None:
    names = [f"<b>x</b>{index}\"'&" for index in range(10)]
    html, figures = report(make_run("<i>run", class_names=names, perturbed=False), tmp_path)
    assert figures == FIGURES - {"perturbed"}
    assert "<b>" not in html
    assert "<i>" not in html
    assert "&lt;b&gt;x&lt;/b&gt;6" in html


def test_random_scenario_shows_dashes(make_run: MakeRun, tmp_path: Path) -> None:
    html, figures = report(make_run(scenario="random", history_per_epoch=True), tmp_path)
    assert figures == FIGURES
    assert "Asked to forget 6,000 training images: accuracy on forgotten training images" in html
    row = html[html.index("Accuracy, forgotten, test") :]
    assert row[: row.index("</tr>")].count("–</td>") == 3


def test_says_that_it_did_not_forget(make_run: MakeRun, tmp_path: Path) -> None:
    models = {
        "original": {"acc_forget_test": 0.84, "acc_retain_test": 0.92},
        "unlearned": {"acc_forget_test": 0.5, "acc_retain_test": 0.8},
    }
    html, _ = report(make_run(retrained=False, changes={"models": models}), tmp_path, images=0)
    assert "Did NOT forget Shirt: accuracy on forgotten test images 0.840 → 0.500" in html
    assert "Retained accuracy paid for it: -0.120." in html
    assert 'class="verdict failed"' in html


def test_compared_runs(make_run: MakeRun, tmp_path: Path) -> None:
    run, other = make_run("mine"), make_run("theirs", forget=(2,), changes={"method": "neggrad<"})
    html, _ = report(run, tmp_path, compare=[other, run, other], images=2)
    table = html[html.index("Beside other runs") : html.index('id="figures"')]
    assert table.count("<tr") == 3
    assert "neggrad&lt; / embedding" in table
    assert "another request: Pullover" in table
    assert table.count("93.5") == 2


def test_floor_column(make_run: MakeRun, tmp_path: Path) -> None:
    html, _ = report(make_run(changes={"versus_floor": {"kl_forget": 0.271}}), tmp_path, images=1)
    assert "second retrained" in html
    assert "0.271" in html


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("metrics.json", "megu evaluate"),
        ("predictions/unlearned.parquet", "megu evaluate"),
        ("config.yaml", "megu unlearn"),
    ],
)
def test_missing_file_names_the_command(make_run: MakeRun, tmp_path: Path, missing: str, command: str) -> None:
    run = make_run()
    (run / missing).unlink()
    with pytest.raises(UserError, match=re.escape(missing)) as caught:
        write_report(run, tmp_path / "out")
    assert command in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_compared_run_without_metrics(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.json is missing"):
        write_report(make_run(), tmp_path / "out", compare=[tmp_path])


def test_secrets_are_hidden() -> None:
    text = "a:\n  api_key: abc\n  token: null\n  api_key_env: NAME\n  max_tokens: 5\n  path: s3://me:pw@host/x\n"
    shown = public_settings(text)
    assert "abc" not in shown
    assert "pw" not in shown
    for kept in ("token: null", "api_key_env: NAME", "max_tokens: 5", "host/x"):
        assert kept in shown
