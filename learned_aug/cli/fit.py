"""Fit an augmenter to a classifier on folders of images, compare it, and write a report.

DIR holds train/ and val/, each with a folder of images for each class; or, with --val 0.1, only train/, or the class
folders themselves. The classifier is one of torchvision (resnet18) or of timm (timm:resnet18), trained on train/ with
the --baseline augmentation, and has never seen val/: its images are what the influence is computed for.

  learned-aug fit --model resnet18 --weights resnet18.pt --data DIR --out my-aug --size 224
  learned-aug fit --model resnet18 --weights resnet18.pt --data DIR --out my-aug --workers 8 --amp \\
      --checkpoint-dir my-aug/checkpoints        # the same command goes on after a crash
  learned-aug fit --model timm:resnet18 --train-steps 2000 --data DIR --out my-aug --size 32 --val 0.1

With --train-steps N the classifier is trained first if there are no --weights. If DIR holds test/, fresh classifiers
are then trained with the baseline alone, with the prior (random networks, the control), with draws of the prior steered
by the classifier in training, and with the fitted augmenter where it is not the prior, and compared there: one run of
each, which shows the path and proves nothing.

OUT gets augmenter/ (weights, model card, pictures: what from_pretrained and `learned-aug push` take), curves.png,
fit.json (all figures, settings and versions), and classifier.safetensors if it was trained here. The weights are
written as soon as the fit ends; the exit status is 3 where a later part of the report failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from learned_aug.augmenter import Augmenter
from learned_aug.cli.classifier import load_checkpoint
from learned_aug.cli.folder import ImageFolders, class_roots
from learned_aug.cli.main import IncompleteError, plain
from learned_aug.cli.report import Parts, write_figures, write_report, write_strengths, write_weights
from learned_aug.cli.settings import add_setting, seed_number
from learned_aug.cli.work import Work, add_data_arguments, check_head, keep_folder, refuse_among_classes, refuse_foreign
from learned_aug.config import FAMILIES, AugmenterConfig
from learned_aug.fit.config import FitConfig
from learned_aug.fit.dropout import DropoutConfig
from learned_aug.fit.linear import LinearConfig
from learned_aug.fit.pipeline import FitResult, fit
from learned_aug.fit.pretrain import PretrainConfig
from learned_aug.training.curves import StrengthCurves, strength_curves
from learned_aug.training.retrain import RetrainConfig
from learned_aug.training.steer import UNSTEERED, SteeredDraws
from learned_aug.viz import corrected_samples
from learned_aug.weights.card import CardFacts, CardResult
from learned_aug.weights.files import write_atomic

__all__ = ["add_arguments", "run"]

OBJECTIVES: dict[str, type[DropoutConfig] | type[LinearConfig]] = {"dropout": DropoutConfig, "linear": LinearConfig}
SHOWN = 8  # images of the pictures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    group = parser.add_argument_group("classifier")
    group.add_argument("--model", required=True, metavar="NAME", help="of torchvision (resnet18) or timm (timm:NAME)")
    text = "its checkpoint: .safetensors, or by torch.save, also with a trainer's other entries"
    group.add_argument("--weights", type=Path, metavar="FILE", help=text)
    group.add_argument("--train-steps", type=int, metavar="N", help="train classifiers: see above")
    group.add_argument("--head", metavar="NAME", help="its last Linear, as fc; by default the last one registered")
    add_data_arguments(parser.add_argument_group("data"))
    group = parser.add_argument_group("augmenter: X for all images, LO,HI to draw each image's own, 0 for none")
    for family in FAMILIES:
        add_setting(group, AugmenterConfig, family)
    group = parser.add_argument_group("fit")
    group.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    text = "training steps of stage 1, the paper's GAN; 0 leaves the stage out (%(default)s)"
    group.add_argument("--pretrain-steps", metavar="N", type=int, default=0, help=text)
    text = "stage 3: learned dropout (ours), or along the influence (the paper's) (%(default)s)"
    group.add_argument("--objective", choices=OBJECTIVES, default="dropout", help=text)
    add_setting(group, DropoutConfig, "steps", help="training steps of stage 3 (%(default)s)")
    add_setting(group, DropoutConfig, "batch_size", help="images per step of stage 3 (%(default)s)")
    group.add_argument(
        "--seed", metavar="N", type=seed_number, default=0, help="seed of all that is drawn (%(default)s)"
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    group.add_argument("--device", metavar="NAME", default=default, help="where to run (%(default)s)")
    group.add_argument("--amp", action="store_true", help="run the classifier in bfloat16")
    group.add_argument("--checkpoint-dir", type=Path, metavar="DIR", help="save the state there, and go on from it")


def run(args: argparse.Namespace) -> str:
    """Fit and write the report.

    Returns:
        What was measured and written, and what to do next.

    Raises:
        ValueError: for what the user can fix, in one line; or an OSError, RuntimeError or ImportError.
        IncompleteError: if the weights are written, and a part of the report is missing.
    """
    begin = time.perf_counter()
    # All that can be checked before the work.
    if args.weights is None and args.train_steps is None:
        raise ValueError(
            "the classifier must be trained, got neither weights nor steps; give its checkpoint with --weights FILE, "
            "or train one first with --train-steps N"
        )
    config = FitConfig(
        seed=args.seed,
        pretrain=PretrainConfig(steps=args.pretrain_steps) if args.pretrain_steps else None,
        maximize=OBJECTIVES[args.objective](steps=args.steps, batch_size=args.batch_size),
    )
    strengths = {family: getattr(args, family) for family in FAMILIES}
    networks = AugmenterConfig(channels=1 if args.gray else 3, size=args.size, **strengths)
    schedule = None if args.train_steps is None else RetrainConfig(steps=args.train_steps)
    for folder in (args.out, args.checkpoint_dir):
        refuse_among_classes(args.data, folder)
    refuse_foreign(args.out, "fit.json", "fit")
    locks = [keep_folder(args.out)]
    if args.checkpoint_dir is not None:
        locks.append(keep_folder(args.checkpoint_dir))
    work = Work(args, schedule)
    networks = dataclasses.replace(networks, mean=work.data.mean, std=work.data.std)
    model = work.fresh()
    if args.weights is not None:
        load_checkpoint(model, args.weights)
    work.check(model)
    check_head(model, args.head, channels=work.channels, size=args.size)
    # The work.
    try:
        if args.weights is not None:
            model.to(args.device).eval()
        else:
            model = work.trained("baseline")
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
            write_atomic(args.out / "classifier.safetensors", safetensors.torch.save(state))
        predicted, labels = work.predict(model, work.data.val, "evaluation on val")
        error = float((predicted != labels).double().mean())
        _refuse_ignorant(error, len(work.data.classes))
        started = time.perf_counter()
        result = fit(
            model,
            _loader(work, work.data.train),
            _loader(work, work.data.val),
            baseline=work.data.baseline,
            augmenter=networks,
            head=args.head,
            config=config,
            amp=torch.bfloat16 if args.amp else None,
            checkpoint_dir=args.checkpoint_dir,
        )
        write_weights(args.out, result)
        write_figures(args.out, result)
        seconds = {"fit": time.perf_counter() - started}
        return _report(work, result, model, error, seconds, begin)
    finally:
        for lock in locks:
            lock.close()


def _refuse_ignorant(error: float, classes: int) -> None:
    chance = 1 - 1 / classes
    if error > 0.9 * chance:
        raise ValueError(
            f"the classifier is wrong on {error:.1%} of val, {chance:.1%} by chance; check --size, --mean, --std and "
            "--gray, and that the class folders, sorted by name, are its classes, or train it for longer"
        )


def _loader(work: Work, data: Dataset[Any]) -> Dataset[Any] | DataLoader[Any]:
    args = work.args
    if not args.workers:
        return data
    return DataLoader(data, args.batch_size, shuffle=data is work.data.train, num_workers=args.workers)


def _report(
    work: Work, result: FitResult, model: nn.Module, error: float, seconds: dict[str, float], begin: float
) -> str:
    """Compare, write the rest of the report, of which each part may fail alone, and say what is there.

    Raises:
        IncompleteError: if a part failed.
    """
    args = work.args
    parts = Parts(debug=args.traceback)
    errors: dict[str, float] = {}
    pictures: dict[str, tuple[PIL.Image.Image, str]] = {}
    if work.schedule is not None and work.data.test is not None:
        _compare(work, result, model if args.weights is None else None, parts, errors, pictures)
    curves: list[StrengthCurves] = []
    (args.out / "strengths.png").unlink(missing_ok=True)  # of an earlier fit
    with parts.attempt("strengths.png"):
        train, val = (_loader(work, part) for part in (work.data.train, work.data.val))
        curves.append(strength_curves(model, train, val, result.prior, head=args.head))
        write_strengths(args.out / "strengths.png", curves[0])
    device = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    if torch.device(args.device).type == "cuda":
        device = torch.cuda.get_device_name(args.device)
    counts = {"train": len(work.data.train), "val": len(work.data.val)}
    counts |= {} if work.data.test is None else {"test": len(work.data.test)}
    facts = CardFacts(
        data=plain(
            f"{args.data.resolve().name}: {', '.join(f'{n:,} {part}' for part, n in counts.items())} images of "
            f"{len(work.data.classes)} classes, {args.size} px"
        ),
        classifier=f"{args.model}, {error:.2%} error on the hyper-validation images",
        protocol=_protocol(args, errors),
        results=tuple(CardResult(arm=arm, error=100 * e, std=None, runs=1) for arm, e in errors.items()),
        cost=f"fit {seconds['fit']:.0f} s on {device}",
    )
    written = write_report(
        args.out,
        result,
        lambda: _examples(work),
        facts=facts,
        pictures=pictures,
        notes={
            "command": shlex.join(["learned-aug", *sys.argv[1:]]),
            "images": counts,
            "classes": work.data.classes,
            "val_error": error,
            "test_error": errors,
            "strengths": [dataclasses.asdict(c) for c in curves],
            "seconds": {**seconds, "all": time.perf_counter() - begin},
            "device": device,
        },
        parts=parts,
    )
    lines = [f"The classifier is wrong on {error:.2%} of val. What the augmenters do:", "", str(result), ""]
    lines += [f"Strength curves (strengths.png): {c.verdict}" for c in curves] + [""] * len(curves)
    if errors:
        width = max(map(len, errors))
        lines.append(f"{'trained with':{width}}  wrong on test")
        lines += [f"{arm:{width}}  {e:13.2%}" for arm, e in errors.items()]
        lines += ["One run of each: differences may be chance, and have no interval.", ""]
    if "curves.png" not in (*written, *parts.missing):
        lines.append("No curves.png without matplotlib: pip install 'learned-aug[viz]'.")
    beside = ["classifier.safetensors"] if args.weights is None else []
    beside += ["strengths.png"] if (args.out / "strengths.png").exists() else []
    lines += [
        f"Wrote to {args.out}: {', '.join(written + beside)}.",
        "",
        f"Next, see over several runs whether it helps{_where(work)}:",
    ]
    lines.append(f"  {_next(args)}")
    if parts.missing:
        raise IncompleteError("\n".join(lines), parts.missing)
    return "\n".join(lines)


def _compare(
    work: Work,
    result: FitResult,
    baseline: nn.Module | None,
    parts: Parts,
    errors: dict[str, float],
    pictures: dict[str, tuple[PIL.Image.Image, str]],
) -> None:
    """Train and test a classifier for each arm, and draw what the augmenter corrects; fills `errors` and `pictures`."""
    test = work.data.test
    assert test is not None
    name = "baseline" if work.data.baseline is not None else "no augmentation"

    def draws(augmenter: Augmenter, *, steer: bool = False) -> Callable[[nn.Module], SteeredDraws]:
        def of(model: nn.Module) -> SteeredDraws:
            settings = {} if steer else UNSTEERED
            return SteeredDraws(model, augmenter=augmenter, seed=work.args.seed, **settings)

        return of

    arms: dict[str, Callable[[nn.Module], SteeredDraws | None]] = {name: lambda model: None}
    if result.augmenter is not result.prior:
        arms[f"{name}, fitted augmenter"] = draws(result.augmenter)
    arms[f"{name}, prior (control)"] = draws(result.prior)
    arms[f"{name}, steered prior"] = draws(result.prior, steer=True)
    predicted: dict[str, Tensor] = {}
    for arm, augment in arms.items():
        with parts.attempt(f"comparison on test/ of {arm!r}"):
            model = baseline if baseline is not None and arm == name else work.trained(arm, augment)
            predicted[arm], labels = work.predict(model, test, f"test: {arm}")
            errors[arm] = float((predicted[arm] != labels).double().mean())
    what = list(arms)[1]
    if {name, what} <= predicted.keys():
        with parts.attempt("corrected.png"):
            images = _Pictures(test, work.data)
            picture = corrected_samples(
                images, labels, predicted[name], predicted[what], classes=list(map(plain, work.data.classes))
            )
            pictures["corrected.png"] = picture, f"Test images that only training with {what} gets right."


class _Pictures:
    """Images of a data set in [0, 1], read when they are asked for."""

    def __init__(self, data: Dataset[Any], folders: ImageFolders) -> None:
        self.data = data
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (folders.mean, folders.std))

    def __getitem__(self, index: int) -> Tensor:
        image: Tensor = self.data[index][0]
        return (image * self.std + self.mean).clamp(0, 1)


def _examples(work: Work) -> Tensor:
    """Read some images of val, which is often sorted by class, from all over it."""
    count = min(SHOWN, len(work.data.val))
    indices = [k * len(work.data.val) // count for k in range(count)]
    return torch.stack([work.data.val[k][0] for k in indices]).to(work.args.device)


def _protocol(args: argparse.Namespace, errors: dict[str, float]) -> str:
    text = f"baseline augmentation {args.baseline}, seed {args.seed}"
    if errors:
        text += f"; one classifier for each row, {args.train_steps} steps by `learned_aug.training.retrain`: no proof"
    return text


def _where(work: Work) -> str:
    """Return what must be done to the data before :func:`_next` can run."""
    data = work.args.data
    if work.data.test is not None:
        return ""
    moved = f", with the class folders moved to {data}/train/ and" if class_roots(data) == [data] else ", with"
    return plain(f"{moved} further images in {data}/test/")


def _next(args: argparse.Namespace) -> str:
    """Return the command to run next, with the options of this one."""
    words = ["learned-aug", "compare", "--model", args.model, "--data", str(args.data), "--size", str(args.size)]
    words += ["--gray"] if args.gray else []
    for name, default in (("val", None), ("baseline", "crop-flip"), ("workers", 0)):
        if (value := getattr(args, name)) != default:
            words += [f"--{name}", str(value)]
    for name in ("mean", "std"):
        if values := getattr(args, name):
            words += [f"--{name}", *map(str, values)]
    words += ["--steps", str(args.train_steps)] if args.train_steps is not None else []
    words += ["--out", str(args.out / "comparison"), "--augmenter", str(args.out / "augmenter")]
    return plain(shlex.join(words))
