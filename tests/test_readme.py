"""The README's code runs, on small stand-ins, and every name that it takes from the package exists."""

import ast
import dataclasses
import importlib
import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import learned_aug
from learned_aug import LearnedAugment
from learned_aug.digits import all_conv

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


def run(start, **names):
    """Execute the one snippet that starts so, and return what it defines."""
    (block,) = (block for block in BLOCKS if block.startswith(start))
    exec(block, names)
    return names


def test_the_snippet_for_training_runs(few):
    model = all_conv(4).train()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    loader = DataLoader(few[0], 50)
    names = run(
        "from learned_aug import Steered",
        model=model,
        loader=loader,
        optimizer=optimizer,
        criterion=torch.nn.CrossEntropyLoss(),
    )
    assert names["loss"].isfinite()
    assert all((a != b).any() for a, b in zip(before, model.parameters(), strict=True))


def test_the_snippet_for_a_pipeline_runs():
    transform = run("import torch\n")["transform"]
    out = transform(torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8))
    assert out.shape == (3, 32, 32)
    assert out.dtype == torch.float32


def test_the_snippet_for_a_fit_runs(few, model, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit = learned_aug.fit
    monkeypatch.setattr(learned_aug, "fit", lambda *given: fit(*given, config=dataclasses.replace(tiny, pretrain=None)))
    names = run("import learned_aug\n", model=model, train=few[0], val=few[1])
    assert isinstance(names["transform"], LearnedAugment)
    assert (tmp_path / "my-augmenter" / "model.safetensors").is_file()
