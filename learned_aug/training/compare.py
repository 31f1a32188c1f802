"""Does it help here? Trainings of fresh classifiers, the same but for their augmentation, paired by seed."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)
from tqdm.auto import tqdm

from learned_aug.augmenter import Augmenter
from learned_aug.influence.head import borrowed
from learned_aug.influence.layer import find_head, first_tensor, placement
from learned_aug.runtime.checks import check_logits, model_errors_named
from learned_aug.runtime.data import Data, check_source
from learned_aug.runtime.digest import digest_of
from learned_aug.runtime.events import Event, OnEvent, ProgressBars
from learned_aug.runtime.numbers import check_count, check_seed, numbers
from learned_aug.runtime.overlap import check_disjoint
from learned_aug.runtime.rng import derived, forked
from learned_aug.runtime.stream import check_alike, glance
from learned_aug.training.arms import CONTROL, Arm, Setting, build, describe, reads_val
from learned_aug.training.augment import parts
from learned_aug.training.comparison import Comparison, Training
from learned_aug.training.described import described, fingerprint, structure
from learned_aug.training.ledger import Ledger
from learned_aug.training.processes import Job, results
from learned_aug.training.retrain import RetrainConfig, evaluate, fitting, retrain
from learned_aug.transform import LearnedAugment

__all__ = ["Comparison", "compare"]


@torch.inference_mode(False)
def compare(
    make_model: Callable[[], nn.Module],
    train: Data,
    test: Data,
    arms: Sequence[str] | Mapping[str, Arm],
    *,
    val: Data | None = None,
    config: RetrainConfig | None = None,
    baseline: Callable[[Tensor], Tensor] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    checkpoint_dir: str | os.PathLike[str] | None = None,
    jobs: int = 1,
    progress: bool = True,
    on_event: OnEvent | None = None,
) -> Comparison:
    """Train fresh classifiers with each augmentation, and evaluate them on images held out.

        arms = ["baseline", "TrivialAugmentWide", "steered"]
        result = learned_aug.compare(make_model, train, test, arms, seeds=range(6))
        print(result)

    All arms of a seed share the first weights, if `make_model` draws them from torch's global generator, the order of
    the images, and the schedule. Seeds are the outer loop, so that a stop leaves whole pairs. With two pairs no p-value
    is below 0.5, with six 0.03 is within reach.

    **A schedule that is too short gives the wrong verdict**: strong augmentation looks harmful before it helps.
    ``result.long_enough`` and the table say what the second half of the schedule shows of it.

    Args:
        make_model: gives a fresh classifier, on the device to use; each call a new one.
        train: (image, label) pairs, as :func:`learned_aug.fit` takes them, or with soft labels (K,), without
            augmentation.
        test: likewise, not in `train` or `val`; images that no arm has read make the comparison honest.
        arms: names of ready-made arms, :data:`learned_aug.training.ARMS`, joined as "A+B" for one after the other; or a
            mapping from a name to such a name, None, an Augmenter (on half of each batch), a transform of torchvision
            (drawn for each image), or a function from the fresh classifier to what :func:`retrain` takes as `augment`,
            to which the training's seed is given as well where it has a parameter `seed` without a default. The first
            one is what others are compared to.
        val: the hyper-validation set, for "steered-influence", "chosen-influence" and "fitted"; with these comes an arm
            of steered draws that trains on `train` and `val`, for labels are labels.
        config: of the trainings.
        baseline: on single images (C, H, W), in all arms.
        mean: mean of the images' normalization (x - mean) / std, a number or one per channel; None for [0, 1].
        std: standard deviation of that normalization.
        seeds: one training of each arm for each.
        checkpoint_dir: a folder that keeps each finished training. The same call goes on after a stop, and with more
            seeds or arms; it also keeps the augmenters of each arm's first seed, where it has any.
        jobs: processes of this machine that share the trainings; all that is passed is then pickled.
        progress: show progress with the time left, and a table after each seed, on standard error.
        on_event: gets "trainings" events, one for each that is finished; with one job also those of :func:`retrain`,
            the arm in their stage: "retrain: steered".

    Raises:
        ValueError: if there is no arm or no seed, `train`, `test` and `val` share samples, an arm is unknown or returns
            other shapes or labels, `make_model` gives the same object twice, a training diverges, or the folder holds
            trainings of other settings.
        TypeError: if a seed is no integer, or an arm's name no string.
        OSError: if another process works in the folder, or it cannot be written.
    """
    task = _Task(make_model, train, test, _arms(arms), val, config or RetrainConfig(), baseline, mean, std)
    models = task.check()
    if not isinstance(seeds, Iterable) or isinstance(seeds, str):
        remedy = f"range({seeds})" if isinstance(seeds, int) else "some, such as range(3)"
        raise ValueError(f"seeds must hold at least one, got {seeds!r}; give {remedy}")
    seeds = list(dict.fromkeys(check_seed(seed, "each of seeds") for seed in seeds))
    if not seeds:
        raise ValueError("seeds must hold at least one, got none; add some")
    jobs = check_count("jobs", jobs, 1)
    todo = [(arm, seed) for seed in seeds for arm in task.arms]
    texts = {name: describe(arm) for name, arm in task.arms.items()}  # before the trainings, in which arms may change
    settings = {} if checkpoint_dir is None else task.settings(*models)
    del models
    with Ledger(checkpoint_dir, settings) as ledger, ProgressBars() as bars:
        done = {job: kept for job in todo if (kept := ledger.read(*job, texts[job[0]])) is not None}
        listeners = ([bars] if progress else []) + ([on_event] if on_event is not None else [])
        show = _Progress(listeners, todo, done, steps=jobs == 1)
        told = {seed for _, seed in todo if all((arm, seed) in done for arm in task.arms)}
        left = [job for job in todo if job not in done]
        for training, networks in results(task.run, left, min(jobs, len(left)), show.of):
            job = training.arm, training.seed
            first = training.seed == todo[0][1]
            ledger.write(training, texts[training.arm], networks if first else None)
            done[job] = training
            show.finished(training)
            if training.seed not in told and all((arm, training.seed) in done for arm in task.arms):
                told.add(training.seed)
                if progress and sys.stderr is not None and len(done) < len(todo):  # the last table is the caller's
                    bars.close()
                    tqdm.write(f"\n{_ordered(todo, done)}\n", file=sys.stderr)
    return _ordered(todo, done)


def _ordered(todo: list[Job], done: dict[Job, Training]) -> Comparison:
    return Comparison(tuple(done[job] for job in todo if job in done))


def _arms(arms: Sequence[str] | Mapping[str, Arm]) -> dict[str, Arm]:
    """Return all arms by name, the control with them where one reads the hyper-validation set.

    Raises:
        ValueError: if there is none, or one is unknown.
        TypeError: if a name is no string.
    """
    if isinstance(arms, str):
        arms = [arms]
    if isinstance(arms, (set, frozenset)):
        raise ValueError(
            f"arms must have an order, for others are compared to the first one, got {arms!r}; give a list"
        )
    if not isinstance(arms, Mapping) and (others := [a for a in arms if not isinstance(a, str)]):
        raise ValueError(
            f"a list of arms must hold names, got {type(others[0]).__name__}; give a mapping from a name to it"
        )
    named: dict[str, Arm] = dict(arms) if isinstance(arms, Mapping) else {name: name for name in arms}
    if not named:
        raise ValueError("arms must hold at least one, got none; add some")
    if unnamed := [name for name in named if not isinstance(name, str)]:
        raise TypeError(f"names of arms must be strings, got {unnamed[0]!r}; name each one")
    if CONTROL in named and named[CONTROL] != "steered":
        raise ValueError(f"{CONTROL!r} is the control that trains on both sets; give your arm another name")
    for arm in named.values():
        describe(arm)
    if any(map(reads_val, named.values())):
        named.setdefault(CONTROL, "steered")
    return named


@dataclass(frozen=True)
class _Task:
    """All that the trainings of a comparison share; what processes get."""

    make_model: Callable[[], nn.Module]
    train: Data
    test: Data
    arms: dict[str, Arm]
    val: Data | None
    config: RetrainConfig
    baseline: Callable[[Tensor], Tensor] | None
    mean: Any
    std: Any

    def check(self) -> tuple[nn.Module, nn.Module]:
        """Refuse before the work what cannot be compared.

        Returns:
            Two classifiers, built from the same seed.

        Raises:
            ValueError: if `make_model` gives a model twice, an arm lacks the hyper-validation set or cannot be built,
                the control could not train on both sets, data share samples or are not normalized alike, or the model
                does not take them.
        """
        for name, data in (("train", self.train), ("test", self.test)):
            check_source(data, name)
        if self.val is None and (readers := [name for name, arm in self.arms.items() if reads_val(arm)]):
            raise ValueError(f"{', '.join(map(repr, readers))} must have a hyper-validation set, got none; pass val=")
        if CONTROL in self.arms and self.val is not None:
            for name, data in (("train", self.train), ("val", self.val)):
                _check_whole(data, name)
        one, two = (self._first_model() for _ in range(2))
        if one is two or {id(p) for p in one.parameters()} & {id(p) for p in two.parameters()}:
            raise ValueError(
                "make_model must build a fresh classifier at each call, got the same object, or parts of it, twice: "
                "trainings would go on from each other; build it inside of the function"
            )
        parts = {"train": self.train, "test": self.test, **({} if self.val is None else {"val": self.val})}
        check_disjoint(**parts)
        for images, labels in check_alike(soft=True, **parts).values():
            _check_taken(one, images, labels)
        units = {"mean": self.mean, "std": self.std}
        setting = Setting(model=one, make_model=self.make_model, train=self.train, val=self.val, **units)
        for arm in self.arms.values():
            if isinstance(arm, str) and "fitted" in arm:  # which is built by hours of work
                find_head(one)
            elif isinstance(arm, (str, Augmenter, LearnedAugment)):
                build(arm, setting)
        return one, two

    def _first_model(self) -> nn.Module:
        with _seeded(0):
            return _made(self.make_model, self.train)

    def settings(self, one: nn.Module, two: nn.Module) -> dict[str, str]:
        """Return what the trainings in a folder must agree in, as short texts, given what :meth:`check` built."""
        size, weights = sum(p.numel() for p in one.parameters()), {digest_of(one), digest_of(two)}
        values = {"model": f"{type(one).__name__} of {size:,} parameters, {structure(one)}"}
        if len(weights) == 1:  # else they come from elsewhere than torch's global generator, and from run to run
            values |= {"first weights": weights.pop()}
        values |= {f"config.{key}": described(value) for key, value in vars(self.config).items()}
        units = {name: None if v is None else numbers(v) for name, v in (("mean", self.mean), ("std", self.std))}
        values |= {name: described(value) for name, value in {"baseline": self.baseline, **units}.items()}
        values |= {"train": fingerprint(self.train), "test": fingerprint(self.test)}
        return values | ({} if self.val is None else {"val": fingerprint(self.val)})

    def run(self, job: Job, tell: OnEvent | None = None) -> tuple[Training, Augmenter | None]:
        """Train and evaluate one classifier.

        Returns:
            What was measured, and the networks of the augmentation, where it has any.

        Raises:
            ValueError: if it diverges.
        """
        arm, seed = job
        started = time.perf_counter()
        train = self.train
        if arm == CONTROL and self.val is not None:
            train = _joined(self.train, self.val)
        right: list[float] = []
        half: list[float] = []
        with _seeded(seed):
            model = _made(self.make_model, self.train)

            def watch(event: Event) -> None:
                if "accuracy" in event.metrics and event.step > event.total - max(1, event.total // 10):
                    right.append(event.metrics["accuracy"])
                if event.step == max(1, event.total // 2):
                    half.append(evaluate(model, self.test)[0])
                if tell is not None:
                    tell(event)

            setting = Setting(
                model=model,
                make_model=self.make_model,
                train=train,
                val=self.val,
                config=self.config,
                baseline=self.baseline,
                mean=self.mean,
                std=self.std,
                seed=seed,
            )
            augment = build(self.arms[arm], setting)
            retrain(model, train, self.config, augment=augment, baseline=self.baseline, seed=seed, on_event=watch)
            error, loss = evaluate(model, self.test)
        if not math.isfinite(loss):
            raise ValueError(
                f"the training of {arm!r} must end in a finite loss, got {loss} for seed {seed}; lower RetrainConfig.lr"
            )
        networks = next((part.augmenter for part in parts(augment) if hasattr(part, "augmenter")), None)
        seconds = time.perf_counter() - started
        accuracy = sum(right) / len(right) if right else math.nan
        return (
            Training(
                arm=arm, seed=seed, error=error, loss=loss, half_error=half[0], accuracy=accuracy, seconds=seconds
            ),
            networks,
        )


class _Progress:
    """Tells listeners of steps and trainings, with the time that all trainings have left."""

    def __init__(self, listeners: list[OnEvent], todo: list[Job], done: Mapping[Job, Training], *, steps: bool) -> None:
        self.listeners, self.total, self.done, self.steps = listeners, len(todo), len(done), steps
        self.started, self.before = time.perf_counter(), len(done)

    def of(self, job: Job) -> OnEvent:
        """Return what tells the events of a training."""
        new = self.done - self.before
        left = (time.perf_counter() - self.started) / max(1, new) * (self.total - self.done)
        what = f"training {self.done + 1}/{self.total}, {job[0]}, seed {job[1]}" + (
            f", {_time(left)} left" if new else ""
        )

        def tell(event: Event) -> None:
            for listener in self.listeners:
                stage = what if isinstance(listener, ProgressBars) else f"retrain: {job[0]}"
                listener(dataclasses.replace(event, stage=stage))

        return tell

    def finished(self, training: Training) -> None:
        """Tell that a training is finished."""
        self.done += 1
        event = Event("trainings", self.done, self.total, {"error": training.error})
        for listener in self.listeners:
            if not (self.steps and isinstance(listener, ProgressBars)):  # whose bars are those of the steps
                listener(event)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed all global generators for a training, that of the accelerator as well; on exit they are as before."""
    with forked() as reseed, torch.random.fork_rng(_accelerators()):
        reseed(seed, "compare")
        torch.manual_seed(seed if abs(seed) < 2**63 else derived(seed))
        yield


def _made(make_model: Callable[[], nn.Module], train: Data) -> nn.Module:
    """Return a fresh classifier, of which lazy layers have their weights: drawn within an arm they would differ.

    Raises:
        TypeError: if `make_model` gives something else.
    """
    if isinstance(make_model, nn.Module) or not callable(make_model):
        raise TypeError(
            f"make_model must be a function that builds a fresh classifier, got {type(make_model).__name__}; write one"
        )
    model = make_model()
    if not isinstance(model, nn.Module):
        raise TypeError(f"make_model must return a classifier, an nn.Module, got {type(model).__name__}")
    if any(map(is_lazy, model.parameters())):
        images, _ = glance(train, "train", soft=True)
        model.eval()
        with torch.no_grad(), model_errors_named(images):
            model(images.to(*placement(model)))
        model.train()
    return model


def _check_taken(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Refuse images and labels that a classifier does not take, before the work.

    Raises:
        ValueError: with what does not fit.
    """
    device, dtype = placement(model)
    with forked(), torch.random.fork_rng(_accelerators()), torch.no_grad(), borrowed(model), model_errors_named(images):
        output = model(images.to(device, dtype))
    fitting(labels.to(device), check_logits(first_tensor(output), len(images)), None)


def _check_whole(data: Data, name: str) -> None:
    """Refuse a loader that does not give its data set once a pass, for the control is to train on what `data` gives.

    Raises:
        ValueError: naming its sampler.
    """
    if not isinstance(data, DataLoader):
        return
    sampler, batches = data.sampler, data.batch_sampler
    known = type(sampler) in (SequentialSampler, RandomSampler) and type(batches) is BatchSampler
    if not known or data.batch_size is None or len(sampler) != len(data.dataset):  # type: ignore[arg-type]
        kind = type(data.dataset if isinstance(data.dataset, IterableDataset) else sampler).__name__
        raise ValueError(
            f"{name} must be a data set, or a loader of all of it, where the arm {CONTROL!r} trains on train and val, "
            f"got a loader with {kind}; give data sets, of a part torch.utils.data.Subset(data, indices)"
        )


def _joined(train: Data, val: Data) -> Data:
    """Return both data sets as one, read as `train` is."""
    one, two = (data.dataset if isinstance(data, DataLoader) else data for data in (train, val))
    both: ConcatDataset[Any] = ConcatDataset([one, two])
    if not isinstance(train, DataLoader):
        return both
    return DataLoader(
        both,
        train.batch_size,
        shuffle=True,
        num_workers=train.num_workers,
        collate_fn=train.collate_fn,
        drop_last=train.drop_last,
    )


def _accelerators() -> list[int]:
    return [torch.cuda.current_device()] if torch.cuda.is_available() else []
