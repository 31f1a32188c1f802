"""Fit an augmenter to a classifier on folders of images, compare it, and write a report.

DIR holds train/ and val/, each with a folder of images for each class; or, with --val 0.1, only train/, or the class
folders themselves. The classifier is one of torchvision (resnet18) or of timm (timm:resnet18), trained on train/ with
the --baseline augmentation, and has never seen val/: its images are what the influence is computed for.

  learned-aug fit --model resnet18 --weights resnet18.pt --data DIR --out my-aug --size 224
  learned-aug fit --model resnet18 --weights resnet18.pt --data DIR --out my-aug --workers 8 --amp \\
      --checkpoint-dir my-aug/checkpoints        # the same command goes on after a crash
  learned-aug fit --model timm:resnet18 --train-steps 2000 --data DIR --out my-aug --size 32 --val 0.1

With --train-steps N the classifier is trained first if there are no --weights. If DIR holds test/, fresh classifiers
are then trained with the baseline alone, with the untrained control and with the fitted augmenter, and compared there:
one run of each, which shows the path and proves nothing.

OUT gets augmenter/ (weights, model card, pictures: what from_pretrained and `learned-aug push` take), curves.png,
fit.json (all figures, settings and versions), and classifier.safetensors if it was trained here.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import PIL.Image
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from learned_aug.cli.folder import BASELINES, ImageFolders, build_model, load_checkpoint, open_folders
from learned_aug.cli.report import write_report
from learned_aug.cli.settings import add_setting
from learned_aug.fit.config import FitConfig
from learned_aug.fit.dropout import DropoutConfig
from learned_aug.fit.linear import LinearConfig
from learned_aug.fit.pipeline import FitResult, fit
from learned_aug.fit.pretrain import PretrainConfig
from learned_aug.nets import AugmenterConfig
from learned_aug.runtime.events import Event, ProgressBars
from learned_aug.training.retrain import RetrainConfig, evaluate, retrain
from learned_aug.viz import corrected_samples
from learned_aug.weights.card import CardFacts, CardResult
from learned_aug.weights.files import write_atomic

__all__ = ["add_arguments", "run"]

OBJECTIVES: dict[str, type[DropoutConfig] | type[LinearConfig]] = {"dropout": DropoutConfig, "linear": LinearConfig}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    group = parser.add_argument_group("classifier")
    group.add_argument("--model", required=True, metavar="NAME", help="of torchvision (resnet18) or timm (timm:NAME)")
    group.add_argument("--weights", type=Path, metavar="FILE", help="its state_dict: .safetensors, or by torch.save")
    group.add_argument("--train-steps", type=int, metavar="N", help="train classifiers: see above")
    group.add_argument("--head", metavar="NAME", help="its last Linear, as fc; by default the last one registered")
    group = parser.add_argument_group("data")
    group.add_argument("--data", type=Path, required=True, metavar="DIR", help="with train/, val/ and maybe test/")
    group.add_argument("--val", type=float, metavar="SHARE", help="hold out a share of train/ where there is no val/")
    group.add_argument(
        "--size", metavar="PIXELS", type=int, default=224, help="side of the images, pixels (%(default)s)"
    )
    group.add_argument("--gray", action="store_true", help="read one channel")
    group.add_argument(
        "--mean", metavar="X", type=float, nargs="+", help="of the classifier's normalization (ImageNet's; 0 if gray)"
    )
    group.add_argument("--std", metavar="X", type=float, nargs="+", help="the same (ImageNet's; 1 if gray)")
    group.add_argument("--baseline", choices=BASELINES, default="crop-flip", help="of its training (%(default)s)")
    group.add_argument("--workers", metavar="N", type=int, default=0, help="processes that read images (%(default)s)")
    group = parser.add_argument_group("fit")
    group.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    add_setting(group, FitConfig, "warp")
    add_setting(group, FitConfig, "color")
    text = "training steps of stage 1, the paper's GAN; 0 leaves the stage out (%(default)s)"
    group.add_argument("--pretrain-steps", metavar="N", type=int, default=0, help=text)
    text = "stage 3: learned dropout (ours), or along the influence (the paper's) (%(default)s)"
    group.add_argument("--objective", choices=OBJECTIVES, default="dropout", help=text)
    add_setting(group, DropoutConfig, "steps", help="training steps of stage 3 (%(default)s)")
    add_setting(group, DropoutConfig, "batch_size", help="images per step of stage 3 (%(default)s)")
    group.add_argument("--seed", metavar="N", type=int, default=0, help="seed of all that is drawn (%(default)s)")
    group.add_argument(
        "--device",
        metavar="NAME",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to run (%(default)s)",
    )
    group.add_argument("--amp", action="store_true", help="run the classifier in bfloat16")
    group.add_argument("--checkpoint-dir", type=Path, metavar="DIR", help="save the state there, and go on from it")


def run(args: argparse.Namespace) -> str:
    """Fit and write the report.

    Returns:
        What was measured and written.

    Raises:
        ValueError, OSError, RuntimeError, ImportError: for what the user can fix, in one line.
    """
    if args.weights is None and args.train_steps is None:
        raise ValueError(
            "the classifier must be trained, got neither weights nor steps; give its checkpoint with --weights FILE, "
            "or train one first with --train-steps N"
        )
    config = FitConfig(
        seed=args.seed,
        warp=args.warp,
        color=args.color,
        pretrain=PretrainConfig(steps=args.pretrain_steps) if args.pretrain_steps else None,
        maximize=OBJECTIVES[args.objective](steps=args.steps, batch_size=args.batch_size),
    )
    schedule = None if args.train_steps is None else RetrainConfig(steps=args.train_steps)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=args.out):  # a full disk or a missing permission is found out before the work
        pass
    begin = time.perf_counter()
    work = _Work(args, schedule)
    if args.weights is None:
        model = work.trained("baseline")
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        write_atomic(args.out / "classifier.safetensors", safetensors.torch.save(state))
    else:
        model = work.fresh()
        load_checkpoint(model, args.weights)
        model.to(args.device).eval()
    error = evaluate(model, work.reader(work.data.val))[0]
    chance = 1 - 1 / len(work.data.classes)
    if error > 0.9 * chance:
        raise ValueError(
            f"the classifier is wrong on {error:.1%} of val, {chance:.1%} by chance; check --size, --mean, --std and "
            "--gray, and that the class folders, sorted by name, are its classes, or train it for longer"
        )

    def loader(data: Dataset[Any]) -> Dataset[Any] | DataLoader[Any]:
        if not args.workers:
            return data
        return DataLoader(data, args.batch_size, shuffle=data is work.data.train, num_workers=args.workers)

    started = time.perf_counter()
    result = fit(
        model,
        loader(work.data.train),
        loader(work.data.val),
        baseline=work.data.baseline,
        augmenter=AugmenterConfig(channels=work.channels, size=args.size, mean=work.data.mean, std=work.data.std),
        head=args.head,
        config=config,
        amp=torch.bfloat16 if args.amp else None,
        checkpoint_dir=args.checkpoint_dir,
    )
    seconds = time.perf_counter() - started
    errors, pictures = _compare(work, result, model if args.weights is None else None)
    shown = torch.stack([work.data.val[k][0] for k in _spread(len(work.data.val))]).to(args.device)
    device = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    if torch.device(args.device).type == "cuda":
        device = torch.cuda.get_device_name(args.device)
    counts = {"train": len(work.data.train), "val": len(work.data.val)}
    counts |= {} if work.data.test is None else {"test": len(work.data.test)}
    written = write_report(
        args.out,
        result,
        shown,
        facts=CardFacts(
            data=f"{args.data.resolve().name}: {', '.join(f'{n:,} {part}' for part, n in counts.items())} images of "
            f"{len(work.data.classes)} classes, {args.size} px",
            classifier=f"{args.model}, {error:.2%} error on the hyper-validation images",
            protocol=_protocol(args, errors),
            results=tuple(CardResult(arm=arm, error=100 * e, std=None, runs=1) for arm, e in errors.items()),
            cost=f"fit {seconds:.0f} s on {device}",
        ),
        pictures=pictures,
        notes={
            "command": shlex.join(["learned-aug", *sys.argv[1:]]),
            "images": counts,
            "classes": work.data.classes,
            "val_error": error,
            "test_error": errors,
            "seconds": {"fit": seconds, "all": time.perf_counter() - begin},
            "device": device,
        },
    )
    lines = [f"The classifier is wrong on {error:.2%} of val. What the augmenters do:", "", str(result), ""]
    if errors:
        lines += [f"{arm:38}  {e:8.2%} of test wrong" for arm, e in errors.items()] + ["One run of each, no proof.", ""]
    if "curves.png" not in written:
        lines.append("No curves.png without matplotlib: pip install 'learned-aug[viz]'.")
    lines.append(f"Wrote to {args.out}: {', '.join(written)}.")
    return "\n".join(lines)


class _Work:
    """The data, and the classifiers that are trained on it."""

    def __init__(self, args: argparse.Namespace, schedule: RetrainConfig | None) -> None:
        self.args, self.schedule = args, schedule
        self.channels = 1 if args.gray else 3
        self.data: ImageFolders = open_folders(
            args.data,
            size=args.size,
            val=args.val,
            gray=args.gray,
            mean=args.mean,
            std=args.std,
            baseline=args.baseline,
            seed=args.seed,
        )

    def fresh(self) -> nn.Module:
        """The classifier, from the same start each time."""
        torch.manual_seed(self.args.seed)
        return build_model(self.args.model, len(self.data.classes), self.channels)

    def trained(self, arm: str, augment: nn.Module | None = None) -> nn.Module:
        """The classifier, trained from that start on the same order."""
        model = self.fresh().to(self.args.device)
        order = torch.Generator().manual_seed(self.args.seed)
        data: Dataset[Any] | DataLoader[Any] = self.data.train
        if self.args.workers:
            size = min(RetrainConfig().batch_size, len(self.data.train))
            workers = self.args.workers
            data = DataLoader(self.data.train, size, shuffle=True, drop_last=True, num_workers=workers, generator=order)
        with ProgressBars() as bars:

            def show(event: Event) -> None:
                bars(dataclasses.replace(event, stage=f"train: {arm}"))

            baseline = self.data.baseline
            retrain(model, data, self.schedule, baseline=baseline, augment=augment, seed=self.args.seed, on_event=show)
        return model

    def reader(self, data: Dataset[Any]) -> DataLoader[Any]:
        """In order."""
        return DataLoader(data, self.args.batch_size, num_workers=self.args.workers)

    @torch.no_grad()
    def predict(self, model: nn.Module, data: Dataset[Any]) -> Tensor:
        """(B,), classes."""
        model.eval()
        outputs: list[Tensor] = [model(images.to(self.args.device)) for images, _ in self.reader(data)]
        return torch.cat(outputs).argmax(1).cpu()


class _Pictures:
    """Images of a data set in [0, 1], read when they are asked for."""

    def __init__(self, data: Dataset[Any], folders: ImageFolders) -> None:
        self.data = data
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (folders.mean, folders.std))

    def __getitem__(self, index: int) -> Tensor:
        image: Tensor = self.data[index][0]
        return (image * self.std + self.mean).clamp(0, 1)


def _compare(
    work: _Work, result: FitResult, baseline: nn.Module | None
) -> tuple[dict[str, float], dict[str, tuple[PIL.Image.Image, str]]]:
    """Test errors by arm, and the picture of what is corrected; neither without test/ or a schedule."""
    test = work.data.test
    if work.schedule is None or test is None:
        return {}, {}
    name = "baseline" if work.data.baseline is not None else "no augmentation"
    arms: dict[str, nn.Module | None] = {
        f"{name}, fitted augmenter": result.augmenter,
        f"{name}, untrained augmenter (control)": result.untrained,
        name: None,
    }
    labels = torch.cat([labels for _, labels in work.reader(test)])
    predicted = {}
    for arm, augment in arms.items():
        model = baseline if baseline is not None and augment is None else work.trained(arm, augment)
        predicted[arm] = work.predict(model, test)
    errors = {arm: float((found != labels).double().mean()) for arm, found in predicted.items()}
    after, _, before = predicted.values()
    picture = corrected_samples(_Pictures(test, work.data), labels, before, after, classes=work.data.classes)
    return errors, {"corrected.png": (picture, "Test images that only training with the fitted augmenter gets right.")}


def _protocol(args: argparse.Namespace, errors: dict[str, float]) -> str:
    text = f"baseline augmentation {args.baseline}, seed {args.seed}"
    if errors:
        text += f"; one classifier for each row, {args.train_steps} steps by `learned_aug.training.retrain`: no proof"
    return text


def _spread(count: int, wanted: int = 8) -> list[int]:
    """Indices spread over a data set, which is often sorted by class."""
    return [k * count // min(wanted, count) for k in range(min(wanted, count))]
