"""LearnedAugment in what people build around transforms: containers, workers, loaders, other libraries, examples."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2

from learned_aug import Augmenter, AugmenterConfig, LearnedAugment

EXAMPLES = Path(__file__).parents[1] / "examples"


def build():
    generator = torch.Generator().manual_seed(0)
    augmenter = Augmenter(AugmenterConfig(tau_dim=32), generator=generator)
    return LearnedAugment(augmenter.calibrate_(torch.rand(20, 3, 32, 32, generator=generator), generator=generator))


PICTURE = v2.functional.to_pil_image(torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1)))


class Same(Dataset):
    """The same picture over and over."""

    def __init__(self, transform, length=8):
        self.transform, self.length = transform, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return self.transform(PICTURE, index)


class Collate:
    def __init__(self, augment):
        self.augment = augment

    def __call__(self, samples):
        return self.augment(default_collate(samples))


def to_tensors(augment):
    return v2.Compose([augment, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


def load(workers, context=None, collate=None, transform=None, length=8, batch_size=1):
    loader = DataLoader(
        Same(transform or to_tensors(build()), length),
        batch_size,
        num_workers=workers,
        multiprocessing_context=context,
        collate_fn=collate,
    )
    batches = list(loader)
    assert torch.cat([labels for _, labels in batches]).tolist() == list(range(length))
    return torch.cat([images for images, _ in batches])


def different(images):
    return len(images.flatten(1).unique(dim=0))


# Python 3.12 and later warn of every fork beside threads; torch's loader forks by default.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create 8 worker:UserWarning")
def test_eight_forked_workers_give_eight_draws_and_a_seed_repeats_them():
    torch.manual_seed(3)
    first = load(8, "fork")
    again = load(8, "fork")
    torch.manual_seed(3)
    repeated = load(8, "fork")
    assert different(first) == 8
    assert different(torch.cat([first, again])) == 16  # the next epoch differs too
    assert torch.equal(first, repeated)


@pytest.mark.slow
def test_spawned_workers_receive_the_transform():
    images = load(2, "spawn", length=4)
    assert different(images) == 4


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_collate_function_draws_for_each_sample(workers):
    images = load(workers, collate=Collate(build()), transform=v2.Compose([v2.ToImage()]), batch_size=4)
    assert images.dtype == torch.uint8
    assert different(images) == 8


@pytest.mark.parametrize(
    "container",
    [
        lambda aug: v2.Compose([v2.RandomCrop(32, padding=4), aug, v2.RandomHorizontalFlip()]),
        lambda aug: v2.RandomApply([aug], p=0.5),
        lambda aug: v2.RandomChoice([aug, v2.Identity()]),
        lambda aug: v2.RandomOrder([aug, v2.RandomHorizontalFlip()]),
    ],
    ids=["Compose", "RandomApply", "RandomChoice", "RandomOrder"],
)
def test_containers_of_torchvision_take_it(container):
    transform = container(build())
    outputs = [transform({"image": PICTURE, "label": k}) for k in range(20)]
    assert [out["label"] for out in outputs] == list(range(20))
    tensors = torch.stack([v2.functional.pil_to_tensor(out["image"]) for out in outputs])
    assert different(tensors) > 5
    assert "LearnedAugment(p=1.0" in repr(transform)


def test_a_detection_pipeline_keeps_labels_and_sanitises_boxes():
    pipeline = v2.Compose([build(), v2.SanitizeBoundingBoxes(), v2.ToDtype(torch.float32, scale=True)])
    boxes = tv_tensors.BoundingBoxes([[4, 4, 20, 24], [10, 12, 30, 30]], format="XYXY", canvas_size=(32, 32))
    sample = {"image": v2.functional.to_image(PICTURE), "boxes": boxes, "labels": torch.tensor([1, 2])}
    out = pipeline(sample)
    assert out["boxes"].shape == (2, 4)
    assert out["labels"].tolist() == [1, 2]
    assert (out["boxes"] - boxes).abs().max() < 6


def test_cutmix_follows_it_on_batches():
    images, labels = build()(torch.rand(4, 3, 32, 32)), torch.arange(4)
    mixed, soft = v2.CutMix(num_classes=4)(images, labels)
    assert mixed.shape == (4, 3, 32, 32)
    assert soft.shape == (4, 4)


def run_example(name, monkeypatch, *arguments):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "use_in_pipeline", raising=False)
    return runpy.run_path(str(EXAMPLES / name))["main"](*arguments)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_example_use_in_pipeline_runs(monkeypatch, capsys):
    run_example("use_in_pipeline.py", monkeypatch, ["--workers", "0", "--device", "cpu"])
    assert capsys.readouterr().out.count("600 images like (1, 28, 28)") == 3


@pytest.mark.filterwarnings("default")  # timm's own
def test_example_with_timm_runs(monkeypatch):
    pytest.importorskip("timm")
    losses = run_example("with_timm.py", monkeypatch, 3)
    assert len(losses) == 3
    assert all(loss < 10 for loss in losses)


@pytest.mark.filterwarnings("default")  # Lightning's own
def test_example_with_lightning_runs_and_goes_on(monkeypatch, tmp_path):
    lightning = pytest.importorskip("lightning")
    trainer = run_example("with_lightning.py", monkeypatch, 3)
    assert trainer.global_step == 3
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    one = trainer.lightning_module
    two = type(one)()
    lightning.Trainer(
        max_steps=4, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    ).fit(two, trainer.train_dataloader, ckpt_path=tmp_path / "last.ckpt")
    assert two.steered.calls == one.steered.calls + 1 == 4


@pytest.mark.filterwarnings("default")  # transformers' own
def test_example_with_transformers_runs(monkeypatch):
    pytest.importorskip("transformers")
    trainer = run_example("with_transformers.py", monkeypatch, 3)
    assert trainer.state.global_step == trainer.steered.calls == 3


def test_beside_kornia_in_one_sequence():
    kornia = pytest.importorskip("kornia.augmentation")
    pipeline = torch.nn.Sequential(build().augmenter, kornia.RandomHorizontalFlip(p=0.5))
    assert pipeline(torch.rand(4, 3, 32, 32)).shape == (4, 3, 32, 32)
