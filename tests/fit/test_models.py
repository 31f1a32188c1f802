"""Architectures that people have, fitted; and unusual ones, refused with the reason and the remedy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.data import TensorDataset
from torchvision import models

import learned_aug
from learned_aug.fit.config import FitConfig
from learned_aug.fit.dropout import DropoutConfig
from learned_aug.fit.pretrain import PretrainConfig
from learned_aug.influence.head import HeadTap, borrowed
from learned_aug.influence.layer import find_head
from learned_aug.influence.s_val import InfluenceConfig

timm = pytest.importorskip("timm")

CLASSES = 4


def photos(size: int) -> tuple[TensorDataset, TensorDataset]:
    """16 training and 16 validation images of smooth noise."""
    generator = torch.Generator().manual_seed(0)
    images = F.interpolate(torch.rand(32, 3, 5, 5, generator=generator), (size, size), mode="bilinear")
    labels = torch.arange(32) % CLASSES
    return TensorDataset(images[:16], labels[:16]), TensorDataset(images[16:], labels[16:])


def tiny() -> FitConfig:
    """One step of each stage."""
    return FitConfig(
        pretrain=PretrainConfig(steps=1, batch_size=8),
        maximize=DropoutConfig(steps=1, batch_size=8),
        influence=InfluenceConfig(weight_decay=1.0),
    )


def timm_model(name: str, **options: object) -> nn.Module:
    model: nn.Module = timm.create_model(name, num_classes=CLASSES, **options)
    return model


def vgg_bn() -> nn.Module:
    """With a narrower classifier: torchvision fixes the original's 4,096 units."""
    model = models.VGG(models.vgg.make_layers([8, "M", 16, "M", 16, "M"], batch_norm=True))
    model.classifier = nn.Sequential(nn.Linear(16 * 49, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, CLASSES))
    return model


# Small relatives where the original is slow; by name, side of the images, the head that must be found.
ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], int, str]] = {
    "resnet18": (lambda: models.resnet18(num_classes=CLASSES), 32, "fc"),
    "convnext_tiny": (
        lambda: models.ConvNeXt(
            [models.convnext.CNBlockConfig(16, 32, 1), models.convnext.CNBlockConfig(32, None, 1)], num_classes=CLASSES
        ),
        32,
        "classifier.2",
    ),
    "vit": (
        lambda: models.VisionTransformer(32, 8, 2, 2, 32, 64, dropout=0.1, num_classes=CLASSES),
        32,
        "heads.head",
    ),
    "swin": (
        lambda: models.SwinTransformer([2, 2], 16, [1, 1], [2, 2], [4, 4], num_classes=CLASSES),
        32,
        "head",
    ),
    "efficientnet_b0": (lambda: models.efficientnet_b0(num_classes=CLASSES), 32, "classifier.1"),
    "mobilenet_v3_small": (lambda: models.mobilenet_v3_small(num_classes=CLASSES), 32, "classifier.3"),
    "densenet": (lambda: models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=CLASSES), 32, "classifier"),
    "vgg_bn": (vgg_bn, 32, "classifier.3"),
    "regnet_y_400mf": (lambda: models.regnet_y_400mf(num_classes=CLASSES), 32, "fc"),
    "shufflenet_v2": (lambda: models.shufflenet_v2_x0_5(num_classes=CLASSES), 32, "fc"),
    "mnasnet": (lambda: models.mnasnet0_5(num_classes=CLASSES), 32, "classifier.1"),
    "googlenet": (lambda: models.googlenet(num_classes=CLASSES, init_weights=False), 32, "fc"),  # two auxiliary heads
    "timm wide_resnet": (  # as wide_resnet50_2, with fewer blocks and channels
        lambda: timm.models.resnet.ResNet(
            timm.models.resnet.Bottleneck, (1, 1, 1, 1), CLASSES, base_width=128, channels=(16, 32, 32, 64)
        ),
        32,
        "fc",
    ),
    "timm resnet10t": (lambda: timm_model("resnet10t"), 32, "fc"),
    "timm convnext_atto": (lambda: timm_model("convnext_atto"), 32, "head.fc"),
    "timm vit_tiny": (lambda: timm_model("vit_tiny_patch16_224", img_size=32, depth=2), 32, "head"),
    "timm efficientnet_lite0": (lambda: timm_model("efficientnet_lite0", drop_rate=0.2), 32, "classifier"),
    "timm mixer": (
        lambda: timm.models.mlp_mixer.MlpMixer(CLASSES, 32, patch_size=8, num_blocks=2, embed_dim=32),
        32,
        "head",
    ),
    "timm repvgg_a0": (lambda: timm_model("repvgg_a0"), 32, "head.fc"),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture_is_fitted_and_comes_back_as_it_was(name: str) -> None:
    make, size, head = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = make()
    train, val = photos(size)
    with torch.no_grad():
        for _ in range(5):  # batch norm as after training: with its first statistics features can vanish
            model(train.tensors[0])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert find_head(model) is model.get_submodule(head)
    with pytest.warns(UserWarning, match="val has 16 images"):
        result = learned_aug.fit(model, train, val, baseline=lambda x: x.flip(-1), config=tiny(), progress=False)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.training
    for figures in result.diagnostics.values():
        assert figures.pop("margin") == math.inf  # 16 validation images are too few for a judge
        assert all(math.isfinite(value) for value in figures.values())
    assert result.solution.converged
    assert_closed_form(model, train.tensors[0])


def assert_closed_form(model: nn.Module, images: Tensor) -> None:
    """Features times the head's weight are the model's own output, and the head is where the tap reads them."""
    head = find_head(model)
    with borrowed(model), HeadTap(model, head) as tap, torch.no_grad():
        features, logits = tap(images)
        torch.testing.assert_close(logits, model(images), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(F.linear(features, head.weight, head.bias), logits, rtol=1e-4, atol=1e-5)


def small(bias: bool = True) -> nn.Sequential:
    """Batch norm, dropout before the head, and a head."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        *(nn.Dropout(0.5), nn.Linear(32, CLASSES, bias=bias)),
    )


class TestWrapped:
    def fitted(self, model: nn.Module) -> dict[str, Tensor]:
        train, val = photos(16)
        with pytest.warns(UserWarning, match="val has 16 images"):
            result = learned_aug.fit(model, train, val, baseline=lambda x: x.flip(-1), config=tiny(), progress=False)
        return result.augmenter.state_dict()

    def assert_same(self, model: nn.Module, plain: nn.Module) -> None:
        one, two = self.fitted(model), self.fitted(plain)
        assert all(torch.equal(one[key], two[key]) for key in two)

    @pytest.fixture
    def group(self, tmp_path: Path) -> Iterator[None]:
        dist.init_process_group("gloo", (tmp_path / "store").as_uri(), rank=0, world_size=1)
        yield
        dist.destroy_process_group()

    def test_data_parallel(self) -> None:
        self.assert_same(nn.DataParallel(small()), small())

    @pytest.mark.usefixtures("group")
    def test_distributed_data_parallel(self) -> None:
        self.assert_same(nn.parallel.DistributedDataParallel(small()), small())

    def test_compiled(self) -> None:
        self.assert_same(torch.compile(small(), backend="eager"), small())  # type: ignore[arg-type]

    def test_compiled_in_place_and_used_before(self) -> None:
        model = small()
        model.compile(backend="eager")
        model.eval()(photos(16)[0].tensors[0])  # from here on the compiled code knows no hook
        self.assert_same(model, small().eval())

    def test_head_without_bias(self) -> None:
        state = self.fitted(small(bias=False))
        assert all(value.isfinite().all() for value in state.values())


class Ending(nn.Module):
    """A body and a head, and an output made of both."""

    def __init__(self, output: Callable[[nn.Linear, Tensor], object], head: nn.Linear | None = None) -> None:
        super().__init__()
        self.body = small()[:-2]
        self.fc = head if head is not None else nn.Linear(32, CLASSES)
        self.output = output

    def forward(self, x: Tensor) -> object:
        return self.output(self.fc, self.body(x))


class CosineLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 16 * F.linear(F.normalize(input), F.normalize(self.weight))


class LowRank(nn.Module):
    """A LoRA adapter round the head."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(32, 2, bias=False), nn.Linear(2, CLASSES, bias=False)
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.up(self.down(x))
        return out


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch's own quantization moves to another package
        model: nn.Module = torch.ao.quantization.quantize_dynamic(small(), {nn.Linear})
    return model


def integer_weights() -> nn.Module:
    head = nn.Linear(32, CLASSES)
    head.weight = nn.Parameter(torch.ones(CLASSES, 32, dtype=torch.int8), requires_grad=False)
    return Ending(lambda fc, h: h, head)


CHANGED = "differ by .* something after the head changes them .* return the logits"
UNUSUAL: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "temperature after the head": (lambda: Ending(lambda fc, h: fc(h) / 0.07), CHANGED),
    "sigmoid": (lambda: Ending(lambda fc, h: fc(h).sigmoid()), CHANGED),
    "log-softmax": (lambda: Ending(lambda fc, h: fc(h).log_softmax(1)), CHANGED),
    "cosine head": (lambda: Ending(lambda fc, h: fc(h), CosineLinear(32, CLASSES)), CHANGED),
    "low-rank adapter": (lambda: nn.Sequential(small()[:-1], LowRank(nn.Linear(32, CLASSES))), CHANGED),
    "mean of two heads": (
        lambda: timm_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1),
        "the mean of several heads.*return the logits of one head.*other nn.Linear: .*head$",
    ),
    "features before logits": (
        lambda: Ending(lambda fc, h: (h, fc(h))),
        r"must be its head's, \(16, 4\), got \(16, 32\)",
    ),
    "1x1-convolution head": (
        lambda: models.squeezenet1_1(num_classes=CLASSES),
        "ends in nn.Linear, found only .*Conv2d.*; replace a 1x1-convolution head by pooling and an nn.Linear",
    ),
    "head used twice": (
        lambda: Ending(lambda fc, h: fc(h) + fc(h.flip(1))),
        'must run once per forward pass, ran 2 times; pass head="name"',
    ),
    "head unused": (
        lambda: Ending(lambda fc, h: h),
        'must run once per forward pass, ran 0 times; pass head="name"',
    ),
    "head before pooling": (
        lambda: Ending(lambda fc, h: fc(h.view(-1, 1, 32).expand(-1, 9, 32)).mean(1)),
        r"must be \(B, D\) with B = 16, got \(16, 9, 32\); the head must see one vector per image: pool or flatten",
    ),
    "another layer after the head": (
        lambda: Ending(lambda fc, h: F.pad(fc(h), (0, 1))),
        r"must be its head's, \(16, 4\), got \(16, 5\); the head is not the last layer: pass head=",
    ),
    "batch statistics": (
        lambda: nn.Sequential(small()[:-1], nn.BatchNorm1d(32, track_running_stats=False), nn.Linear(32, CLASSES)),
        "normalization over the batch, .*features must depend on their image alone",
    ),
    "noise at evaluation": (
        lambda: Ending(lambda fc, h: fc(F.dropout(h, 0.5))),
        "active dropout or other randomness.* features must depend on their image alone",
    ),
    "spectral norm": (
        lambda: Ending(lambda fc, h: fc(h), parametrizations.spectral_norm(nn.Linear(32, CLASSES))),
        "must be free to move, got one parametrized by SpectralNorm: .*; use .*remove_parametrizations",
    ),
    "quantized": (quantized, "found only .*LinearPackedParams.*fit a quantized model before it is quantized"),
    "integer weights": (integer_weights, "weight must be floating, got torch.int8; fit the model before"),
    "not a number": (
        lambda: Ending(lambda fc, h: fc(h / 0)),
        "features must be finite; sample 0 .* check its image, the model's weights",
    ),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_model_is_refused_with_reason_and_remedy_and_comes_back_as_it_was(name: str) -> None:
    make, message = UNUSUAL[name]
    torch.manual_seed(0)
    model = make()
    before = {key: value.clone() for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    training = model.training
    with pytest.raises(ValueError, match=message):
        learned_aug.fit(model, *photos(32), config=tiny(), progress=False)
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert model.training is training
    assert not any(module._forward_hooks for module in model.modules())


def test_weight_norm_is_fitted_as_any_head() -> None:
    assert_closed_form(
        nn.Sequential(small()[:-1], parametrizations.weight_norm(nn.Linear(32, CLASSES))), photos(16)[0].tensors[0]
    )


def test_named_head_is_used_where_the_last_one_is_another() -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = small()
            self.projection = nn.Linear(32, 16)  # of a contrastive loss

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.classifier(x)
            return out

    train, val = photos(16)
    with pytest.raises(ValueError, match=r"ran 0 times; pass head=.*other nn\.Linear: classifier\.6"):
        learned_aug.fit(Projected(), train, val, config=tiny(), progress=False)
    with pytest.warns(UserWarning, match="val has 16 images"):
        result = learned_aug.fit(
            Projected(), train, val, baseline=lambda x: x.flip(-1), head="classifier.6", config=tiny(), progress=False
        )
    assert result.solution.value.shape == (CLASSES, 33)
