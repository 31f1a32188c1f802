"""The paper's form for ImageNet: 8 layers at 224 pixels, whose fields grow from coarse to fine in stage 1."""

import math
from itertools import cycle, pairwise

import numpy as np
import PIL.Image
import pytest
import torch
from matplotlib import cbook
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.transforms import v2

import learned_aug
from learned_aug import Augmenter, AugmenterConfig
from learned_aug.fit.config import FitConfig
from learned_aug.fit.dropout import DropoutConfig
from learned_aug.fit.pretrain import PretrainConfig, Pretraining, growth_level
from learned_aug.influence.head import HeadTap, borrowed
from learned_aug.influence.layer import find_head


def test_levels_are_held_then_blended_and_end_at_full_resolution():
    config = PretrainConfig(steps=120, growth=0.5)  # 6 levels from 4 to 256 points, 10 steps each
    levels = [growth_level(k, config, 224) for k in range(120)]
    assert levels[:4] == [2.0] * 4
    assert levels[9] == 3.0
    assert levels[5:9] == pytest.approx([2.2, 2.4, 2.6, 2.8])
    assert all(a <= b for a, b in pairwise(levels))
    assert max(level for level in levels[:59]) < 8
    assert set(levels[59:]) == {math.inf}


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("growth", [0.01, 0.5, 1.0])
def test_the_last_step_is_at_full_resolution_however_few_there_are(steps, growth):
    assert growth_level(steps - 1, PretrainConfig(steps=steps, growth=growth), 224) == math.inf


def test_without_growth_and_at_four_pixels_all_steps_are_at_full_resolution():
    assert growth_level(0, PretrainConfig(steps=10), 224) == math.inf
    assert growth_level(0, PretrainConfig(steps=10, growth=1.0), 4) == math.inf


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_a_share_of_growth_out_of_range_is_refused(bad):
    with pytest.raises(ValueError, match=r"PretrainConfig.growth must be"):
        PretrainConfig(growth=bad)


def streams(count=8):
    images = torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    return cycle([(images, torch.zeros(count))])


def start():
    config = AugmenterConfig(channels=1, size=28, fields="pixel", tau_dim=16)
    augmenter = Augmenter(config, generator=torch.Generator().manual_seed(0))
    return augmenter.calibrate_(next(streams())[0], generator=torch.Generator().manual_seed(1))


def test_a_resumed_growth_goes_on_bit_by_bit(model):
    config = PretrainConfig(steps=8, batch_size=8, growth=0.8)
    ends = []
    for stop in (None, 3):
        with borrowed(model), HeadTap(model, find_head(model)) as tap:
            stage = Pretraining(start(), tap, streams(), streams(), config, seed=0)
            if stop is not None:
                stage.steps = stop
                stage.run(lambda _: None)
                state = stage.state_dict()
                stage = Pretraining(start(), tap, streams(), streams(), config, seed=0)
                stage.load_state_dict(state)
            stage.run(lambda _: None)
        ends.append(stage.augmenter.state_dict())
    assert all(torch.equal(t, ends[1][name]) for name, t in ends[0].items())


def test_growth_changes_what_is_learned_and_leaves_the_augmenter_at_full_resolution(model):
    ends = []
    for growth in (0.0, 1.0):
        with borrowed(model), HeadTap(model, find_head(model)) as tap:
            config = PretrainConfig(steps=3, batch_size=8, growth=growth)
            stage = Pretraining(start(), tap, streams(), streams(), config, seed=0)
            stage.run(lambda _: None)
        ends.append(stage.augmenter)
    assert not torch.equal(*(end.stages[0].encoder.layers[0].weight for end in ends))
    assert all(end.stages[0].generator.level == math.inf for end in ends)


def test_growth_of_control_grids_is_refused_with_a_remedy(model):
    augmenter = Augmenter(AugmenterConfig(channels=1, size=28))
    with (
        borrowed(model),
        HeadTap(model, find_head(model)) as tap,
        pytest.raises(ValueError, match=r'got fields="grid".*growth=0'),
    ):
        Pretraining(augmenter, tap, streams(), streams(), PretrainConfig(growth=0.5), seed=0)


def photograph_crops(count, seed):
    """Crops of 224 pixels of a photograph; the label is the half, upper or lower, that a crop's center is in."""
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        photograph = torch.from_numpy(np.array(PIL.Image.open(file).convert("RGB"))).permute(2, 0, 1) / 255
    generator = torch.Generator().manual_seed(seed)
    tops, lefts = (torch.randint(n - 224, (count,), generator=generator).tolist() for n in photograph.shape[1:])
    images = torch.stack([photograph[:, i : i + 224, j : j + 224] for i, j in zip(tops, lefts, strict=True)])
    return TensorDataset(images, torch.tensor([int(i + 112 > photograph.shape[1] / 2) for i in tops]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:val has 24 images")
def test_the_imagenet_form_is_fitted_to_a_classifier_of_photographs():
    train, val = photograph_crops(32, seed=0), photograph_crops(24, seed=1)
    torch.manual_seed(0)
    sides = [3, 8, 16, 32]
    layers = [m for a, b in pairwise(sides) for m in (nn.Conv2d(a, b, 5, 4, 2), nn.ReLU())]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(5):
        images, labels = train.tensors
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    form = AugmenterConfig.paper(size=224, dropout="learned")
    assert (form.depth, form.encoder_side) == (8, 224)
    warps = []
    result = learned_aug.fit(
        model,
        train,
        val,
        baseline=v2.RandomCrop(224, padding=16, padding_mode="reflect"),
        augmenter=form,
        config=FitConfig(
            pretrain=PretrainConfig(steps=6, batch_size=4, growth=0.7),
            maximize=DropoutConfig(steps=2, batch_size=4),
            batch_size=8,
        ),
        progress=False,
        on_event=lambda event: warps.append(event.metrics["warp"]) if event.stage == "pretrain" else None,
    )
    assert warps[0] < 0.6 * warps[-1]  # the fields began coarse and ended at full resolution
    fitted, prior = result.fitted, result.prior
    assert len(fitted.stages[0].encoder.convs) == len(fitted.stages[0].generator.deconvs) == 8
    assert not torch.equal(fitted.stages[0].encoder.convs[0].weight, prior.stages[0].encoder.convs[0].weight)
    x = train.tensors[0][:2]
    out = fitted.augment(x, generator=torch.Generator().manual_seed(0))
    assert out.flow.shape == (2, 2, 224, 224)
    assert 0.01 < (out.images - x).abs().mean() < 0.3
