"""What a fit holds at once: bounded by the values of a batch, whatever the size of the images."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import learned_aug
from learned_aug.fit.config import FitConfig
from learned_aug.fit.dropout import DropoutConfig
from learned_aug.fit.stages import IN_FLIGHT, bounded


class Blank(Dataset):
    """Images of a side, made when they are read."""

    def __init__(self, side, count=2000, textured=False, start=0):
        self.side, self.count, self.textured, self.start = side, count, textured, start

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index + self.start)
        if not self.textured:  # one color
            return torch.rand(3, 1, 1, generator=generator).expand(3, self.side, self.side), index % 2
        image = torch.rand(1, 3, 8, 8, generator=generator)
        return nn.functional.interpolate(image, (self.side, self.side))[0], index % 2


@pytest.mark.parametrize(("side", "expected"), [(16, 256), (32, 256), (224, 111), (448, 27), (1024, 5), (4000, 2)])
def test_passes_that_only_read_hold_a_bounded_number_of_values(side, expected):
    assert bounded(Blank(side), "train", 256) == expected
    assert expected == 2 or expected * 3 * side**2 <= IN_FLIGHT


def test_a_loader_keeps_its_batch_and_an_asked_for_smaller_one_stays():
    assert bounded(DataLoader(Blank(448), 7), "train", 256) == 256  # which the loader does not follow
    assert bounded(Blank(448), "train", 4) == 4


@pytest.mark.parametrize(("side", "most"), [(64, 256), (448, 27)])
@pytest.mark.filterwarnings("ignore:val has")
@pytest.mark.filterwarnings("ignore:the head could not be refitted")
def test_no_pass_of_the_model_sees_more_images_than_the_bound_or_stage_3s_batch(side, most):
    seen = []
    model = nn.Sequential(nn.AvgPool2d(side // 2), nn.Flatten(), nn.Linear(12, 2))
    model.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[0]))
    config = FitConfig(maximize=DropoutConfig(steps=1, batch_size=8))
    learned_aug.fit(model, Blank(side, 50), Blank(side, 40), config=config, progress=False)
    assert max(seen) <= 2 * most  # the diagnostics draw each image twice


PEAK = """
import json, resource, torch, warnings
from torch import nn
import learned_aug
from learned_aug import DropoutConfig, FitConfig
from tests.fit.test_memory import Blank

warnings.simplefilter("ignore")
side, count, batch = 448, 512, 16
model = nn.Sequential(nn.Conv2d(3, 4, 7, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
images = torch.rand(batch, 3, side, side, requires_grad=True)
model(images).sum().backward()
del images
own = peak()
learned_aug.fit(
    model,
    Blank(side, count, textured=True),
    Blank(side, count, textured=True, start=count),
    config=FitConfig(maximize=DropoutConfig(steps=2, batch_size=batch)),
    progress=False,
)
print(json.dumps({"own": own, "peak": peak(), "batch": batch * 3 * side**2 * 4 / 2**30}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
def test_the_peak_of_a_fit_at_448_pixels_is_that_of_the_docstring():
    command = [sys.executable, "-c", PEAK]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, check=True, capture_output=True, text=True)
    figures = json.loads(done.stdout)
    above = figures["peak"] - figures["own"]
    assert above <= 1.3 * (0.5 + 2 * figures["batch"])
    assert above <= 0.8  # GiB


@pytest.mark.parametrize("side", [16, 200])
@pytest.mark.filterwarnings("ignore:val has")
@pytest.mark.filterwarnings("ignore:the head could not be refitted")
def test_parts_of_a_large_batch_learn_what_the_batch_as_a_whole_does(side, monkeypatch):
    drawn = []
    for values in (IN_FLIGHT, 4 * 3 * side**2):  # two images at once
        monkeypatch.setattr(sys.modules[DropoutConfig.__module__], "IN_FLIGHT", values)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))
        config = FitConfig(maximize=DropoutConfig(steps=3, batch_size=8))
        result = learned_aug.fit(
            model,
            Blank(side, 24, textured=True),
            Blank(side, 24, textured=True, start=30),
            config=config,
            progress=False,
        )
        metrics = [list(event.metrics.values()) for event in result.history if event.stage == "maximize"]
        drawn.append((torch.tensor(metrics), torch.cat([p.flatten() for p in result.fitted.parameters()])))
    (one, first), (two, second) = drawn
    torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-3)
    # Adam makes whole steps of gradients that are but rounding.
    assert (first - second).abs().mean() < 1e-4


class Holder(nn.Module):
    """A model that holds what augments its images, as a LightningModule does."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))

    def forward(self, images):
        return self.model(images)


@pytest.mark.parametrize("by", ["loss", "influence"])
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.filterwarnings("ignore:the head could not be refitted")
@pytest.mark.filterwarnings("ignore:Deallocating ")  # torch 2.6, of what was weakly referenced
def test_thirty_renewals_leave_one_state_alive_without_the_collector(held, by):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(16, 3, 16, 16, generator=generator)
    labels = torch.arange(16) % 2
    data = [(image, int(label)) for image, label in zip(images, labels, strict=True)]
    model = Holder()
    options = {"train": data, "val": data[:8]} if by == "influence" else {}
    steered = learned_aug.SteeredDraws(model, by=by, warmup=0, period=1, every=1, **options)
    if held:
        model.steered = steered

    def alive():
        found = gc.get_objects()
        return tuple(sum(issubclass(type(o), kind) for o in found) for kind in (nn.Module, torch.Tensor))

    for _ in range(3):
        steered(images, labels)
    gc.collect()
    before = alive()
    gc.disable()
    try:
        for _ in range(30):
            steered(images, labels)
        after = alive()
    finally:
        gc.enable()
    assert after[0] == before[0]
    assert after[1] <= before[1] + 20  # 30 states would be hundreds
