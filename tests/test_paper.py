"""The paper's tables: their classifiers are the published ones, and every script runs on stand-ins of its data."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.transforms import v2

PAPER = Path(__file__).parents[1] / "benchmarks" / "paper"
SCRIPTS = ["table1", "table2", "table3", "ablation"]


@pytest.fixture(scope="module")
def paper():
    """The modules of benchmarks/paper by name, which are siblings and no package."""
    path, known = sys.path.copy(), set(sys.modules)
    sys.path.insert(0, str(PAPER))
    yield importlib.import_module
    sys.path[:] = path
    for name in set(sys.modules) - known:
        if str(PAPER) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


NETWORKS = [
    "ResNet-56",
    "Wide-ResNet-28-10",
    "Shake-Shake 26 2x96d",
    "PyramidNet-272 + ShakeDrop",
    "ResNet-50",
    "ResNet-200",
]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_the_published_number_of_parameters(paper, name):
    models = paper("models")
    with torch.device("meta"):
        network = models.MODELS[name](1000 if name in ("ResNet-50", "ResNet-200") else 10)
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    assert millions == pytest.approx(models.PUBLISHED[name], rel=0.01)  # authors round, and PyramidNet's state 26.0


@pytest.mark.parametrize("name", ["4-layer CNN", *NETWORKS])
def test_networks_train_a_step(paper, name):
    torch.manual_seed(0)
    gray = name == "4-layer CNN"
    numbers = (None, None) if gray else ((0.5,) * 3, (0.25,) * 3)
    model = paper("models").Classifier(name, 10, *numbers)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = [p.detach().clone() for p in model.parameters()]
    logits = model(torch.rand(2, 1, 28, 28) if gray else torch.rand(2, 3, 32, 32))
    assert logits.shape == (2, 10)
    cross_entropy(logits, torch.tensor([0, 1])).backward()
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)  # biases before batch norm, and residuals that ShakeDrop multiplied by 0, stay


def test_shaken_values_and_gradients_have_their_own_factors(paper):
    x = torch.tensor([3.0], requires_grad=True)
    out = paper("models").shaken(x, torch.tensor(0.5), torch.tensor(0.25))
    out.backward()
    assert (out.item(), x.grad.item()) == (1.5, 0.25)


@pytest.mark.parametrize("name", ["Shake-Shake 26 2x96d", "PyramidNet-272 + ShakeDrop"])
def test_shaken_networks_differ_between_passes_only_in_training(paper, name):
    torch.manual_seed(0)
    models = paper("models")
    small = models.shake_shake(10, 8, 8) if "Shake-Shake" in name else models.pyramid_net(10, 29, 9)
    images = torch.rand(4, 3, 32, 32)
    small.train()
    assert not torch.equal(small(images), small(images))
    small.eval()
    assert torch.equal(small(images), small(images))


def test_a_split_is_balanced_and_keeps_the_hyper_validation_images_out(paper):
    data = paper("data")
    labels = torch.arange(10).repeat(100)
    train, val = data.split(data.DATA["cifar10"], labels, 7, seed=3)
    assert labels[train].bincount().tolist() == [7] * 10
    assert len(val) == 200
    assert not set(train) & set(val)
    assert data.split(data.DATA["cifar10"], labels, 7, seed=4)[1] == val
    assert data.split(data.DATA["mnist"], labels, 7, seed=3)[1] == list(range(200))


def test_a_plan_covers_each_epoch_and_ends_without_augmentation(paper):
    plan = list(paper("data").Plan(images=10, batch=5, steps=5, augmented=3, seed=0))
    assert [{flag for _, flag in batch} for batch in plan] == [{True}] * 3 + [{False}] * 2
    assert sorted(place for batch in plan[:2] for place, _ in batch) == list(range(10))


def test_learning_rates_follow_the_schedule_of_a_row(paper):
    runner = paper("runner")

    def rates(decay):
        row = dataclasses.replace(paper("table1").ROWS[0], lr=1.0, decay=decay)
        optimizer = runner.make_optimizer(row, [nn.Parameter(torch.zeros(1))])
        schedule, found = runner.make_schedule(row, optimizer, 4), []
        for _ in range(4):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return found

    assert rates("constant") == [1, 1, 1, 1]
    assert rates("cosine") == pytest.approx([1, 0.8536, 0.5, 0.1464], abs=1e-4)
    assert rates((0.5, 0.75)) == pytest.approx([1, 1, 0.1, 0.01])


def test_published_figures_belong_to_rows_that_are_there(paper):
    published = json.loads((PAPER / "published.json").read_text())
    for name in SCRIPTS:
        script = paper(name)
        assert list(published[name]) == [row.name for row in script.ROWS]
        quoted = {arm for figures in published[name].values() for arm in figures} - set(script.ARMS)
        assert all("Ratner" in arm for arm in quoted)


def stand_in(root, parts, side):
    """Class folders of noise: 2 classes of 10 images."""
    generator = torch.Generator().manual_seed(0)
    for part in parts:
        for label in ("a", "b"):
            (root / part / label).mkdir(parents=True)
            for k in range(10):
                pixels = torch.randint(256, (side, side, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(root / part / label / f"{k}.png")


def few_layers(classes):
    """A network that stands for the classifiers, which have their own test."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 8),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of tiny validation sets
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_its_arms_on_a_stand_in_and_goes_on_after_a_stop(paper, tmp_path, monkeypatch, capsys, name):
    script, data, runner = (paper(module) for module in (name, "data", "runner"))
    row = script.ROWS[-1] if name == "table2" else script.ROWS[2 if name == "table1" else 0]
    source = dataclasses.replace(data.DATA[row.data], classes=2)
    if row.data == "imagenet":  # at 96 px
        stand_in(tmp_path, ["train", "val"], 100)
        crop, fixed = [v2.RandomResizedCrop(96), *source.crop[1:]], [v2.Resize(96), v2.CenterCrop(96)]
        source = dataclasses.replace(source, side=96, crop=crop, fixed=fixed)
    else:
        stand_in(tmp_path / row.data, ["train", "test"], 32)
    monkeypatch.setitem(data.DATA, row.data, source)
    monkeypatch.setitem(paper("models").MODELS, row.model, few_layers)
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    results = tmp_path / "results.jsonl"
    arguments = ["--data", str(tmp_path), "--work", str(tmp_path / "work"), "--results", str(results)]
    for _ in range(2):
        runner.main(script.__doc__, [row], script.ARMS, [*arguments, "--scale", "1e-9"])
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["arm"] for line in lines] == list(script.ARMS)  # each once
    assert all(line["steps"] == 1 and 0 <= line["test_error"] <= 1 for line in lines)
    assert "1e-09 of" in capsys.readouterr().out
