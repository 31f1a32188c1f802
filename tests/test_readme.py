"""The README's code parses, and every name that it takes from the package exists."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import learned_aug

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_names_taken_from_the_package_exist(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("learned_aug"):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "learned_aug":
            assert hasattr(learned_aug, node.attr), ast.unparse(node)


def test_files_that_it_names_exist():
    root = Path(__file__).parents[1]
    paths = re.findall(r"\]\((?!https?:|#)([\w./-]+)\)", README)
    assert len(paths) > 5
    assert [path for path in paths if not (root / path).exists()] == []


def test_it_is_one_page():
    assert len(README.encode()) <= 6144
