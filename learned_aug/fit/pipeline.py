"""fit(): the stages in their order, on the user's model and data."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from learned_aug.augmenter import Augmenter
from learned_aug.config import AugmenterConfig
from learned_aug.fit.checkpoint import Checkpoint, fingerprint
from learned_aug.fit.config import FitConfig
from learned_aug.fit.judge import Estimate
from learned_aug.fit.run import Run
from learned_aug.fit.stages import Influence, Setting, Tap
from learned_aug.influence.head import borrowed
from learned_aug.influence.layer import find_head, unwrap
from learned_aug.influence.system import Solution
from learned_aug.runtime.data import Data, hold_out
from learned_aug.runtime.digest import digest_of
from learned_aug.runtime.distributed import all_sum_, broadcast_, rank, world_size
from learned_aug.runtime.events import Event, OnEvent, ProgressBars
from learned_aug.runtime.overlap import check_disjoint
from learned_aug.runtime.rng import forked, generator

__all__ = ["FitResult", "fit"]


@dataclass(frozen=True, kw_only=True, eq=False)
class FitResult:
    """What :func:`fit` gives."""

    augmenter: Augmenter
    """The networks to use: `fitted` where half of the validation set, which the fit did not learn from, predicts with
    95 % confidence that they lower the validation loss further than `prior` does, and the model gets no more of their
    draws wrong; else `prior`."""
    prior: Augmenter
    """The networks of the start: random ones, calibrated, or those given. The control of every comparison."""
    pretrained: Augmenter | None
    """The networks after stage 1; None without that stage."""
    fitted: Augmenter
    """The networks after stage 3."""
    gain: Estimate
    """How much more `fitted` is predicted to lower the validation loss than `prior`, for each image replaced by an
    augmented copy, nats; mean and half of the 95 % interval."""
    diagnostics: dict[str, dict[str, float]]
    """By name of the networks, the figures of :func:`learned_aug.fit.measure`; margin is half of the 95 % interval of
    predicted_val_drop."""
    solution: Solution
    """s_val and how well it was solved."""
    history: list[Event]
    """All events, in their order."""
    config: FitConfig
    """Settings."""

    @property
    def verdict(self) -> str:
        """One sentence that says which networks `augmenter` is, and why."""
        if self.augmenter is self.fitted:
            what, why = "The fitted networks are used", "they are predicted to lower the validation loss further"
        elif self.gain.sign > 0:
            prior, fitted = (self.diagnostics[name]["misclassified"] for name in ("prior", "fitted"))
            what = "The prior is used"
            why = (
                f"the model gets more draws of the fitted networks wrong, {fitted:.0%} against {prior:.0%}, which the "
                "prediction does not see"
            )
        elif self.gain.sign < 0:
            what, why = "The prior is used", "the fitted networks are predicted to lower the validation loss less"
        else:
            what, why = "The prior is used", "no difference of the fitted networks to it is certain"
        return f"{what}: {why} ({self.gain.mean:+.2g} +- {self.gain.margin:.2g} nats an image)."

    def __str__(self) -> str:
        """Return the diagnostics as a table, its legend and the verdict."""
        names = list(self.diagnostics["prior"])
        rows = [["", *names]] + [
            [stage, *(f"{figures[name]:.3g}" for name in names)] for stage, figures in self.diagnostics.items()
        ]
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([*table, "", LEGEND, "", self.verdict])


NOISE = 0.02  # of the share of draws that a model gets wrong
LEGEND = """warp, color: how far two draws for one image differ, shares of the image side and of the range [0, 1].
flow: mean length of the warp; shift: what of it all draws share; both shares of the side. rank: number of directions in
which draws differ. misclassified: share of the draws that the model gets wrong. predicted_val_drop +- margin: fall of
the validation loss, nats, if one image is replaced by a draw; positive is good."""


def fit(
    model: nn.Module,
    train: Data,
    val: Data | float,
    *,
    baseline: Callable[[Tensor], Tensor] | None = None,
    augmenter: Augmenter | AugmenterConfig | None = None,
    head: str | None = None,
    config: FitConfig | None = None,
    device: torch.device | str | None = None,
    amp: torch.dtype | None = None,
    checkpoint_dir: str | PathLike[str] | None = None,
    checkpoint_every: float = 60.0,
    progress: bool = True,
    on_event: OnEvent | None = None,
) -> FitResult:
    """Fit an augmentation network to a trained classifier.

    s_val is solved on the features of `train` and `val` that enter the model's last Linear (stage 2, first because it
    needs no augmenter); a calibrated random augmenter is trained to mimic the baseline augmentation (stage 1); then E
    learns which of its draws of each image lower the validation loss, as the influence predicts (stage 3). Stage 4,
    training a classifier on augmented images, is yours: use the augmenter in your own training, or
    :func:`learned_aug.training.retrain`.

    **Randomness.** All draws follow from ``config.seed``, those of the baseline and of the data sets' own transforms as
    well: torch's (on the CPU), Python's and NumPy's global generators are seeded while these run, and given back after.

    **Memory**, beyond the model's own: of N images, D features and K classes 4 N D bytes of features (2 N D with
    ``InfluenceConfig(cache_dtype=torch.float16)``) and 8 N K of probabilities, then some ten times 8 K (D + 1) and four
    times 8 (D + 1)^2. For N = 50,000, D = 2,048 and K = 1,000 that was 1.2 GiB (benchmarks/fit/memory.py); several
    processes share N. Images add 0.5 GiB at most, whatever their size, and twice what a batch of stage 3 or of your
    loader takes (ten times in stage 1 and in ``LinearConfig``, which need a batch as a whole).

    **Several processes.** Where torch.distributed has a process group, call this in each process with the same
    arguments, the model on the process's own device. Each works on its share of every batch (batch sizes are those of
    all processes together, and multiples of their number), and all return the same result, that of one process but for
    rounding. Process 0 alone writes checkpoints, shows bars and calls `on_event`.

    Args:
        model: a trained classifier that ends in an nn.Linear and returns its logits. It comes back bit-identical:
            parameters, buffers, mode, requires_grad and hooks, also when fit raises.
        train: what the model was trained on: a Dataset of (image, label), image a floating tensor (C, H, W), or a
            DataLoader of such batches, which keeps its own batch size, order and workers in all stages (a Dataset is
            read in this process: give a loader where reading takes time). Samples that are dicts are read by "image",
            "img" or "pixel_values" and "label" or "labels".
        val: the hyper-validation set, of the same kind, about 1,000 images or more; not augmented, not in `train`, and
            never the test set that you report. Or a share of `train` to hold out for it, such as 0.1, at random and
            from all classes alike; the model should then not have been trained on these images.
        baseline: the augmentation the model was trained with, from an image (C, H, W) to one of the same size, such as
            ``v2.RandomCrop(32, padding=4)``; None skips stage 1, which needs the images without it as well.
        augmenter: the networks' configuration; by default for the channels and size of images in [0, 1]. State mean and
            std there if the images are normalized. Or networks to start from as they are, without stage 1, such as
            those that `model` was trained with; a copy of them is trained.
        head: name of the last Linear, such as "fc"; by default the last one registered.
        config: settings of the stages and the seed.
        device: where to run, by default where the model is; elsewhere a copy of the model is used.
        amp: torch.bfloat16 runs the model under autocast, where nearly all the time goes; E, G and s_val stay as they
            are, in float32 and float64.
        checkpoint_dir: a folder of this fit's own. The state is saved there, and the same call goes on from it after
            the process has died, to the same result (the same bits on a CPU): from the last save within stages 1 and 3,
            from their start within passes over the features and diagnostics. A finished fit is read back.
        checkpoint_every: seconds between two saves within a stage; 0 saves after each step.
        progress: show a bar for each stage.
        on_event: called with every :class:`Event`; after a resume, with those that are new.

    Returns:
        The augmenter, its controls, the verdict of the judge, diagnostics and history.

    Raises:
        ValueError: for a model or data that cannot be fitted, with what was expected, what came and what to do.
        TypeError: likewise, where a type is wrong.
        ConvergenceError: if s_val could not be solved.
        CheckpointError: if the checkpoint is of other settings, data, model or versions, or cannot be read.
        OSError: if a checkpoint cannot be written, as on a full disk; the last one stays.
    """
    config = config if config is not None else FitConfig()
    if amp not in (None, torch.bfloat16):
        raise ValueError(
            f"amp must be None or torch.bfloat16, got {amp}; float16 needs its loss scaled, which fit does not do"
        )
    if not checkpoint_every >= 0:
        raise ValueError(f"checkpoint_every must be >= 0 seconds, got {checkpoint_every}; 0 saves after each step")
    if isinstance(val, float):
        train, val = hold_out(train, val, generator(config.seed, "val"))
        warnings.warn(
            f"val is held out of train, {len(val)} images: if the model was trained on them, its losses there are not "
            "those of unseen images, and what the fit predicts is off; train it on the others, or give other images",
            stacklevel=2,
        )
    check_disjoint(train=train, val=val)
    _check_shares(config, train, val)
    model, layer = _on_device(model, head, device)
    _check_same_model(model, layer.weight.device)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(forked())  # modules draw their first weights from torch's global generator
        listeners: list[OnEvent] = []
        if rank() == 0:
            listeners += [stack.enter_context(ProgressBars())] if progress else []
            listeners += [on_event] if on_event is not None else []
        checkpoint = None
        if checkpoint_dir is not None and rank() == 0:
            settings = {"head": head, "amp": amp, "augmenter": augmenter, "config": config}
            if isinstance(augmenter, Augmenter):
                settings |= {"augmenter": augmenter.config, "augmenter (digest of its state)": digest_of(augmenter)}
            data = {"train": train, "val": val}
            checkpoint = Checkpoint(checkpoint_dir, fingerprint(model, data, baseline, config.seed, **settings))
            stack.callback(checkpoint.close)
        tap = stack.enter_context(Tap(stack.enter_context(borrowed(model)), layer, amp))
        run = Run(checkpoint, every=checkpoint_every, listeners=listeners, device=layer.weight.device)
        setting = Setting(tap, train, val, baseline, config)

        if "s_val" not in run.results:
            setting.check()

        # Stage 2, first because it needs no augmenter.
        influence = Influence.of(run.once("s_val", lambda: setting.solve(run.notify)), layer.weight.device)

        # The start.
        start = run.once("prior", lambda: setting.start(augmenter))
        network = Augmenter(AugmenterConfig.from_dict(start["config"])).to(layer.weight.device)
        network.load_state_dict(start["weights"])
        networks = {"prior": copy.deepcopy(network)}

        # Stage 1.
        if config.pretrain is not None and not isinstance(augmenter, Augmenter):
            if baseline is None:
                warnings.warn(
                    "stage 1 is skipped: baseline is None, so there is no augmentation to mimic; pass the one that the "
                    "model was trained with as baseline=, and take it out of the data set's own transform",
                    stacklevel=2,
                )
            else:
                run.train("pretrained", *setting.pretraining(network, config.pretrain))
                networks["pretrained"] = copy.deepcopy(network)

        # Stage 3.
        run.train("fitted", *setting.maximizing(network, influence))
        networks["fitted"] = network

        measured = run.once("diagnostics", lambda: setting.measured(networks, influence, run.notify))
    gain = Estimate(*measured["gain"])
    return FitResult(
        augmenter=network if gain.sign > 0 and not _harder(measured["diagnostics"]) else networks["prior"],
        prior=networks["prior"],
        pretrained=networks.get("pretrained"),
        fitted=network,
        gain=gain,
        diagnostics=measured["diagnostics"],
        solution=influence.solution,
        history=run.history,
        config=config,
    )


def _harder(diagnostics: dict[str, dict[str, float]]) -> bool:
    """Tell whether the model gets more draws of the fitted networks wrong than of the prior, beyond noise.

    The influence is linear in the draws, and sees the last layer alone: it also favors draws that no longer show their
    label (benchmarks/accuracy/fits.py).
    """
    prior, fitted = (diagnostics[name]["misclassified"] for name in ("prior", "fitted"))
    return fitted > prior + NOISE


def _on_device(model: nn.Module, head: str | None, device: torch.device | str | None) -> tuple[nn.Module, nn.Linear]:
    """Return the model, or a copy where `device` is another one (to move the user's there and back would touch it)."""
    layer = find_head(model, head)
    home = layer.weight.device
    wanted = home if device is None else torch.device(device)
    if wanted.type == home.type and wanted.index in (None, home.index):
        return model, layer
    model = copy.deepcopy(unwrap(model)).to(wanted)
    return model, find_head(model, head)


def _check_shares(config: FitConfig, train: Data, val: Data) -> None:
    """Refuse what several processes cannot share.

    Raises:
        ValueError: naming the batch size or loader that cannot be shared.
    """
    world = world_size()
    if world == 1:
        return
    sizes = {
        f"{type(config.maximize).__name__}.batch_size": (config.maximize.batch_size, world),
    }
    if config.pretrain is not None:
        sizes["PretrainConfig.batch_size"] = config.pretrain.batch_size, 2 * world  # half of it are sources
    for name, (size, unit) in sizes.items():
        if size % unit:
            raise ValueError(f"{name} must be a multiple of {unit} for {world} processes, got {size}; change it")
    for name, data in (("train", train), ("val", val)):
        if isinstance(data, DataLoader):
            sampler = getattr(data.batch_sampler, "sampler", data.sampler)
            if (getattr(sampler, "num_replicas", None), getattr(sampler, "rank", None)) != (world, rank()):
                raise ValueError(
                    f"the loader of {name} must give process {rank()} of {world} its share, got a "
                    f"{type(sampler).__name__}; give it sampler=DistributedSampler(dataset), or pass the data set"
                )


def _check_same_model(model: nn.Module, device: torch.device) -> None:
    """Refuse to go on with models that differ between processes.

    Raises:
        ValueError: if they differ.
    """
    if world_size() > 1:
        own = torch.tensor(int(digest_of(model), 16), device=device)
        first = own.clone()
        broadcast_(first)
        if others := int(all_sum_((own != first).long())):
            raise ValueError(
                f"model must be the same in all processes, got other weights than process 0's in {others} of "
                f"{world_size()}; load one file in all, or send them with torch.distributed.broadcast"
            )
