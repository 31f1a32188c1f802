"""Every message says what was expected and what came, or what is wrong, and then what to do; read from the source."""

import ast
import re
from pathlib import Path

import pytest

import learned_aug

ROOT = Path(learned_aug.__file__).parent
# Never seen by users: their callers put them into a message of their own.
INTERNAL = ("it must begin with", "it is torn", "slower than", "no answer within", "expected a JSON object")
# "must be in [0, 1], got 2" says what to do; else that follows a semicolon.
COMPLETE = re.compile(r"(must|expected|named) .*got |; \S")


def text(node):
    """A literal message, with {} for what is filled in; None for others."""
    match node:
        case ast.Constant(value=str(value)):
            return value
        case ast.JoinedStr(values=parts):
            return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in parts)
    return None


def messages(source):
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Raise(exc=ast.Call(args=[first, *_])) if (message := text(first)) is not None:
                yield node.lineno, message


def incomplete(source):
    found = messages(source)
    return [
        (line, m)
        for line, m in found
        if not COMPLETE.search(m) and not m.startswith(INTERNAL) and m not in ("{}", "{} {}")
    ]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: path.stem)
def test_every_message_says_what_is_wrong_and_what_to_do(path):
    assert not incomplete(path.read_text())


def test_the_messages_are_found():
    assert sum(len(list(messages(path.read_text()))) for path in ROOT.rglob("*.py")) > 150


@pytest.mark.parametrize(
    ("message", "complete"),
    [
        ("p must be in [0, 1], got 2", True),
        ("the model is in train mode; call model.eval()", True),
        ("p must be in [0, 1]", False),
        ("cannot read the file", False),
    ],
)
def test_a_message_that_stops_halfway_is_noticed(message, complete):
    assert bool(incomplete(f"raise ValueError({message!r})")) != complete


def words(message):
    """Its words, without those that a value may stand for."""
    return re.findall(r"[a-z']{2,}", message.lower().replace("{}", " "))


def found_in_order(some, others):
    """How many of `some` come in `others`, in their order."""
    rest, found = iter(others), 0
    for word in some:
        kept = list(rest)
        if word in kept:
            found += 1
            kept = kept[kept.index(word) + 1 :]
        rest = iter(kept)
    return found


def test_the_messages_that_the_guide_explains_are_those_of_the_code():
    page = (ROOT.parent / "docs" / "guides" / "data-and-errors.md").read_text("utf-8")
    quoted = [quote for line in re.findall(r'^".*$', page, re.MULTILINE) for quote in re.findall(r'"([^"]+)"', line)]
    trees = [ast.parse(path.read_text("utf-8")) for path in ROOT.rglob("*.py")]
    said = [words(message) for tree in trees for node in ast.walk(tree) if (message := text(node)) is not None]
    assert len(quoted) > 10
    for quote in quoted:
        given = words(quote)
        assert max(found_in_order(given, message) for message in said) >= len(given) - max(1, 0.3 * len(given)), quote
