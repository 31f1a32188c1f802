"""What a fit holds at once: bounded by the values of a batch, whatever the size of the images."""

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

    def __init__(self, side, count=2000):
        self.side, self.count = side, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return torch.rand(3, 1, 1, generator=generator).expand(3, self.side, self.side), index % 2


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
