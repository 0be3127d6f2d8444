"""Every message that a user can mend: it says what is wrong, where, and what to do next.

The golden file shows them all. After a change: ``python tests/docs/messages.py``, and read the new ones as a user would.
"""

from __future__ import annotations

import re

from messages import Message, listed, messages
from pages import ROOT

GOLDEN = ROOT / "tests" / "golden" / "messages.txt"
# A value (…), a key (train.lr), an option (--address), a variable or a command stands in it: where to look.
WHERE = re.compile(r"…|\b[a-z]+\.[a-z_]+\b|--[a-z]|\b[A-Z]+_[A-Z_]+\b|`|\bmegu [a-z]+")
# A word of advice, or the valid choices.
NEXT = re.compile(
    r"\b(ask|check|choose|copy|drop|export|fetch|free|give|install|keep|leave|make|mend|must|name|needs?|pip|put|run|"
    r"save|say|see|set|start|stop|submit|take|update|use|wait|write)\b|--help|as in|valid:",
)
INSIDE = re.compile(r"traceback|exception|stack|assert|NoneType|0x|\bself\b|__|Errno", re.IGNORECASE)
VALUE = re.compile(r"\{[^{}]*(\{[^{}]*\}[^{}]*)*\}")


def fixed(one: Message) -> str:
    """The text with ``…`` for values, except for those that offer the valid choices."""
    return VALUE.sub(lambda value: "valid: …" if value[0].startswith(("{nearest(", "{mend")) else "…", one.text)


def poor(rule: re.Pattern[str], found: list[Message]) -> list[str]:
    return [f"{one.file}:{one.line}: {one.text}" for one in found if not rule.search(fixed(one))]


def own() -> list[Message]:
    """Those whose text is a whole: neither made elsewhere, nor put into another message, which goes on."""
    shared = ("cannot read image …: no known image format", "cannot read image …: …")  # as in data/readers.py
    ends = ("…", "…: …", "benchmark.groups.… (…): …", "oracle.members.….…: …")
    return [one for one in messages() if fixed(one) not in (*shared, *ends)]


def test_the_list_is_that_of_the_source() -> None:
    assert GOLDEN.read_text() == listed(messages()), "python tests/docs/messages.py writes it again; read what is new"


def test_every_message_says_what_and_where() -> None:
    found = own()
    assert len(found) > 200
    assert not [one for one in found if len(one.text) < 20]
    assert not poor(WHERE, found)


def test_every_message_says_what_to_do() -> None:
    assert not poor(NEXT, own())


def test_no_message_speaks_of_the_insides() -> None:
    assert not [f"{one.file}:{one.line}: {one.text}" for one in messages() if INSIDE.search(fixed(one))]


def test_messages_are_sentences_of_one_shape() -> None:
    """One paragraph that goes on from ``megu: ``, which cli puts before, without a full stop at its end."""
    for one in messages():
        assert "\n" not in one.text, one
        assert "  " not in fixed(one), one
        assert not fixed(one).endswith((".", ":", ";", ",")), one
