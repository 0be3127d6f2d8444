"""What the documentation says exists: commands parse, keys and choices are known, links and paths lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import PAGES, ROOT, page_commands, spans
from pages import commands as commands_in

from megu_dist.cli import VERBS, WITHOUT_SETTINGS, main
from megu_dist.config.compose import FREE, GROUPS, group_options, known_keys, load
from megu_dist.config.validate import check
from megu_dist.doctor import commands as doctor
from megu_dist.errors import UserError
from megu_dist.jobs import commands as jobs
from megu_dist.jobs import options as opts

EXAMPLES = {"method": "to_uniform", "oracle": "table", "data": "npz"}  # of docs/extending.md, run by test_extending.py
EXAMPLES["experiment"] = "recommended"  # what a sweep writes
GROUP_CHOICES = [*GROUPS, "train", "experiment"]
FILES = (".html", ".json", ".jsonl", ".yaml", ".py", ".md", ".txt", ".parquet", ".sh", ".csv", ".safetensors")
PLACES = ("tests/", "megu_dist/", "configs/", "cluster/", "docs/", "tools/")


def words_of(command: str) -> list[str]:
    """The words of a command, without the … that stand for more of them."""
    return [word for word in shlex.split(command)[1:] if word not in ("…", "...")]


def parse(command: str) -> None:
    """Checks a command as far as that goes without data, models or a cluster. Raises UserError or AssertionError."""
    words = words_of(command)
    if not words or words[0] in ("--help", "-h", "--version", "help", "VERB"):
        return
    name, rest = words[0], words[1:]
    if name == "show-config":
        if not rest or rest[0] == "VERB":
            return
        name, rest = rest[0], rest[1:]
    if name in WITHOUT_SETTINGS:
        _without_settings(name, rest)
    else:
        _with_settings(name, rest)


def _with_settings(name: str, rest: list[str], options: tuple[str, ...] = ("--help",)) -> None:
    if rest and f"{name} {rest[0]}" in VERBS:
        name, rest = f"{name} {rest[0]}", rest[1:]
    elif not rest and any(verb.startswith(f"{name} ") for verb in VERBS):
        return  # the family of verbs is meant
    if name not in VERBS:
        raise UserError(f"there is no verb {name!r}")
    if "--config-dir" in rest:
        at = rest.index("--config-dir")
        rest = [word for word in rest[:at] + rest[at + 2 :] if not word.startswith("experiment=")]  # of one's own
    options = (*options, *VERBS[name].flags) if name in VERBS else options
    plain = [word for word in rest if "=" not in word and word not in options]
    assert len(plain) <= len(VERBS[name].takes), f"{plain} are no key=value words"
    check(load([word for word in rest if "=" in word], VERBS[name].defaults).settings)


def _without_settings(name: str, rest: list[str]) -> None:
    if "--help" in rest:
        return
    if name == "list":
        assert set(rest) <= {*GROUPS, "metric", "experiment"}, rest
    elif name == "submit":
        options, rest = opts.read(rest, opts.SUBMIT)
        opts.check(options)
        if rest and rest[0] != "VERB":
            _with_settings(rest[0], rest[1:])
    elif name == "jobs":
        _, rest = opts.read(rest, opts.JOBS)
        assert not rest or rest[0] in ("list", "logs", "stop"), rest
    elif name == "doctor":
        _, rest = doctor._read(rest)
        load(rest)


def told_by_the_command_itself() -> list[tuple[str, str]]:
    """Examples of every ``--help``."""
    found = [(f"megu {name} --help", one) for name, verb in VERBS.items() for one in commands_in(verb.examples)]
    for text in (jobs.SUBMIT_HELP, jobs.JOBS_HELP, doctor.HELP):
        usage, _, examples = text.partition("Examples:")
        found += [(usage.split(":")[0], re.split(r"   ", one)[0]) for one in commands_in(examples)]
    return found


def in_pages() -> list[tuple[str, str]]:
    return [(str(page.relative_to(ROOT)), one) for page in PAGES for one in page_commands(page)]


@pytest.mark.parametrize("collect", [in_pages, told_by_the_command_itself])
def test_every_command_parses(collect: Callable[[], list[tuple[str, str]]]) -> None:
    wrong, found = [], [(where, one) for where, one in collect() if where != "docs/extending.md"]
    for where, command in found:
        try:
            parse(re.sub(r"\s+\((.*)\)$", "", command))  # an example's remark
        except (UserError, AssertionError, ValueError) as error:
            wrong.append(f"{where}: {command}\n    {str(error).splitlines()[0]}")
    assert not wrong, "\n".join(wrong)
    assert len(found) >= 20


def test_commands_that_only_print_are_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the pages that need no data: lists, settings, help. docs/user-guide.md is run as a whole elsewhere."""
    found = {one for _, one in in_pages() if re.match(r"megu (list|show-config|--help|--version|\S+ --help)", one)}
    found = {one for one in found if "VERB" not in one and "…" not in one} | {f"megu {verb} --help" for verb in VERBS}
    for command in sorted(found):
        with pytest.raises(SystemExit) as stop:
            main(words_of(command))
        told = capsys.readouterr()
        assert not stop.value.code, f"{command}: {told.err}"
        assert told.out.strip()


def test_a_wrong_command_would_be_seen() -> None:
    for command in ("megu unlaern", "megu unlearn train.lr=-1", "megu unlearn oracle=mlm", "megu submit train --adress x",
                    "megu jobs lst", "megu train model", "megu list methods"):  # fmt: skip
        with pytest.raises((UserError, AssertionError)):
            parse(command)


def test_every_key_exists() -> None:
    known = set(known_keys())
    sections = {key.split(".")[0] for key in known if "." in key}
    wrong = []
    for page in PAGES:
        for span in spans(page):
            for word in re.findall(r"(?<![\w./-])([a-z]+\.[a-z_]+)(?=[=,;:|\s]|$)(?!\.)", span):
                if word.split(".")[0] not in sections or word.endswith(FILES) or word in FREE:
                    continue
                if word not in known:
                    wrong.append(f"{page.name}: {word} in `{span}`")
    assert not wrong, "\n".join(wrong)


def test_every_choice_of_a_group_exists() -> None:
    wrong = []
    for page in PAGES:
        for span in spans(page):
            for group, value in re.findall(rf"(?<![\w.-])({'|'.join(GROUP_CHOICES)})=(\w+)", span):
                if value not in [*group_options(group), "NAME", EXAMPLES.get(group)]:
                    wrong.append(f"{page.name}: {group}={value}")
    assert not wrong, "\n".join(wrong)


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    plain = re.sub(r"[`*]|\[(.*?)\]\(.*?\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(line.lstrip("#")) for line in page.read_text().splitlines() if line.startswith("#")}


def test_every_link_leads_somewhere() -> None:
    wrong = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if re.match(r"[a-z]+:", target):
                continue
            file, _, anchor = target.partition("#")
            there = (page.parent / file).resolve() if file else page
            if not there.exists():
                wrong.append(f"{page.name}: {target}")
            elif anchor and there.suffix == ".md" and anchor not in anchors(there):
                wrong.append(f"{page.name}: {target}: {there.name} has no such heading")
    assert not wrong, "\n".join(wrong)


def test_every_path_of_the_repository_exists() -> None:
    wrong = []
    for page in PAGES:
        for span in spans(page):
            for word in span.split():
                path = word.rstrip(".,:;")
                if path.startswith(PLACES) and re.fullmatch(r"[\w./-]+", path) and not (ROOT / path).exists():
                    wrong.append(f"{page.name}: {path}")
    assert not wrong, "\n".join(wrong)


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {}
    for page in PAGES:
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE):
            named[target] = page.name
    assert named
    assert named.keys() <= targets, named.keys() - targets


def test_every_page_is_listed_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if f"(docs/{page.name}" not in readme]
    assert not missing


def test_the_settings_page_is_made_from_the_settings() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "make_configuration.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    silent = re.findall(r"^\| (`\S+`) .*\|\s*\|$", (ROOT / "docs" / "configuration.md").read_text(), re.MULTILINE)
    assert not silent, "settings without a word about them: write a comment beside them"


def test_the_figure_is_drawn_by_its_tool() -> None:
    spec = importlib.util.spec_from_file_location("draw_how_it_works", ROOT / "tools" / "draw_how_it_works.py")
    assert spec
    assert spec.loader
    tool = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = tool  # dataclasses look there
    spec.loader.exec_module(tool)
    assert tool.FIGURE.read_text() == tool.figure(), "make docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_tables(page: Path) -> None:
    """A rule after the first row, and as many cells in every row; tables have been pasted into one another."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for found in re.finditer(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = found[0].splitlines()
        cells = [len(re.split(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", row))) - 2 for row in rows]
        assert re.fullmatch(r"[|:\- ]+", rows[min(1, len(rows) - 1)]), f"no rule under {rows[0]}"
        assert set(cells) == {cells[0]}, rows[next(k for k, count in enumerate(cells) if count != cells[0])]
