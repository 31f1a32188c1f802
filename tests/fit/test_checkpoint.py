import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

import learned_aug
from learned_aug import Augmenter, AugmenterConfig
from learned_aug.fit.checkpoint import NAMES, Checkpoint, CheckpointError, decode, encode, fingerprint
from learned_aug.fit.dropout import DropoutConfig
from learned_aug.fit.linear import LinearConfig
from learned_aug.influence.s_val import InfluenceConfig
from learned_aug.influence.solvers import CG
from learned_aug.runtime.lock import LOCK_NAME, lock_folder, locked_here

ROOT = Path(__file__).parents[2]
TREE = {
    "tensors": [torch.rand(3), torch.tensor(2), torch.rand(2, 2, dtype=torch.float64).T, torch.rand(2).bfloat16()],
    "plain": {"a": 0.1, "b": None, "c": [True, "x"], "nested": {"t": torch.arange(3)}},
    "empty": {},
}


def checkpoint(folder, **fingerprint):
    return Checkpoint(folder, {"seed": "0", **fingerprint})


def newest(folder):
    return max((folder / name for name in NAMES if (folder / name).exists()), key=lambda path: path.stat().st_mtime_ns)


def test_tree_comes_back_with_its_values_dtypes_and_shapes():
    back = decode(encode(TREE))
    for one, two in zip(TREE["tensors"], back["tensors"], strict=True):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)
    nested = back["plain"].pop("nested")
    assert back["plain"] == {"a": 0.1, "b": None, "c": [True, "x"]}
    assert torch.equal(nested["t"], torch.arange(3))
    assert back["empty"] == {}


def test_latest_of_many_is_read_and_two_files_are_kept(tmp_path):
    writer = checkpoint(tmp_path)
    assert writer.read() is None
    for k in range(5):
        writer.write({"k": k})
        assert checkpoint(tmp_path).read() == {"k": k}
    writer.close()  # the folder's lock goes
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:200], lambda b: b[:-3] + b"abc", lambda b: b""])
def test_torn_file_is_recognized_and_the_one_before_is_used(tmp_path, damage):
    writer = checkpoint(tmp_path)
    for k in range(2):
        writer.write({"k": k, "t": torch.arange(100)})
    path = newest(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    reader = checkpoint(tmp_path)
    with pytest.warns(UserWarning, match=rf"{path.name}.*before it is used"):
        assert reader.read()["k"] == 0
    reader.write({"k": 2})
    assert checkpoint(tmp_path).read() == {"k": 2}


def test_without_a_whole_file_the_remedy_is_named(tmp_path):
    writer = checkpoint(tmp_path)
    writer.write({"k": 0})
    newest(tmp_path).write_bytes(b"something else")
    with pytest.raises(CheckpointError, match=r"at least one whole.*something else.*delete the folder"):
        checkpoint(tmp_path).read()


def test_full_disk_raises_names_the_remedy_and_keeps_the_old_ones(tmp_path, monkeypatch):
    writer = checkpoint(tmp_path)
    for k in range(2):
        writer.write({"k": k})

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"0\.0 MB could not be written \(No space left on device\).*free space") as e:
            writer.write({"k": 2})
    assert e.value.errno == errno.ENOSPC
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)  # no half-written file is left
    assert checkpoint(tmp_path).read() == {"k": 1}
    writer.write({"k": 3})
    assert checkpoint(tmp_path).read() == {"k": 3}


def test_half_written_files_of_a_killed_process_are_removed(tmp_path):
    checkpoint(tmp_path).write({"k": 0})
    (tmp_path / f".{NAMES[0]}.x1y2").write_bytes(b"half")
    assert checkpoint(tmp_path).read() == {"k": 0}
    assert [path.name for path in tmp_path.iterdir()] == [NAMES[1]]


def test_all_differences_are_named_with_what_was_what_is_and_what_to_do(tmp_path):
    checkpoint(tmp_path, torch="2.1", old="1").write({})
    with pytest.raises(CheckpointError) as raised:
        checkpoint(tmp_path, torch="2.2", new="1").read()
    for part in ("torch was 2.1, is 2.2", "new was nothing, is 1", "old was 1, is nothing", "another checkpoint_dir"):
        assert part in str(raised.value)
    assert "seed" not in str(raised.value)


@pytest.fixture
def fitted(model, few, crop, tiny, tmp_path):
    """Calls fit on the same things, in a folder, with changes."""

    def call(folder="run", **changes):
        data = {"train": few[0], "val": few[1]}
        options = {"baseline": crop, "config": tiny, "checkpoint_every": 0, "progress": False, **data, **changes}
        path = None if folder is None else tmp_path / folder
        return learned_aug.fit(options.pop("model", model), checkpoint_dir=path, **options)

    return call


def assert_equal(one, two):
    for name in ("prior", "pretrained", "fitted", "augmenter"):
        states = getattr(one, name).state_dict(), getattr(two, name).state_dict()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert torch.equal(one.solution.value, two.solution.value)
    assert one.diagnostics == two.diagnostics
    assert one.history == two.history


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("stage", "step"),
    [("train features", 1), ("refit", 1), ("ihvp", 1), ("pretrain", 1), ("pretrain", 3), ("maximize", 2)],
)
def test_fit_that_died_anywhere_goes_on_to_the_same_end(fitted, stage, step):
    def die(event):
        if (event.stage, event.step) == (stage, step):
            raise Killed

    with pytest.raises(Killed):
        fitted(on_event=die)
    torch.manual_seed(1)
    seen = []
    result = fitted(on_event=seen.append)
    assert_equal(result, fitted(folder=None))
    assert result.history[-len(seen) :] == seen
    resumed_at = next((event.step for event in seen if event.stage == stage), None)
    assert resumed_at == step if stage in ("pretrain", "maximize") else resumed_at <= 1


def test_both_forms_of_stage_3_resume(fitted, tiny):
    for form in (LinearConfig, DropoutConfig):
        config = dataclasses.replace(tiny, maximize=form(steps=4, batch_size=16))

        def die(event):
            if (event.stage, event.step) == ("maximize", 3):
                raise Killed

        with pytest.raises(Killed):
            fitted(form.__name__, config=config, on_event=die)
        assert_equal(fitted(form.__name__, config=config), fitted(folder=None, config=config))


def test_resumed_loader_goes_on_where_it_was(fitted, few):
    def loaders():
        generator = torch.Generator().manual_seed(4)
        return {"train": DataLoader(few[0], 60, shuffle=True, generator=generator), "val": DataLoader(few[1], 500)}

    def die(event):
        if (event.stage, event.step) == ("maximize", 3):
            raise Killed

    with pytest.raises(Killed):
        fitted(**loaders(), on_event=die)
    assert_equal(fitted(**loaders()), fitted(folder=None, **loaders()))


def test_finished_fit_is_read_back_without_a_pass_of_the_model(fitted, model):
    first = fitted()
    passes, seen = [], []
    handle = model.register_forward_hook(lambda *_: passes.append(1))
    again = fitted(on_event=seen.append)
    handle.remove()
    assert passes == seen == []
    assert_equal(first, again)


@pytest.mark.parametrize("end", ["finished", "died", "refused"])
def test_the_folder_is_given_back_however_a_fit_ends(fitted, few, tmp_path, end):
    def die(event):
        if end == "died":
            raise Killed

    if end == "refused":
        bad = TensorDataset(torch.full((8, 1, 28, 28), torch.nan), torch.arange(8))
        with pytest.raises(ValueError, match="finite"):
            fitted(train=bad)
    elif end == "died":
        with pytest.raises(Killed):
            fitted(on_event=die)
    else:
        fitted()
    assert not locked_here(tmp_path / "run")
    assert not (tmp_path / "run" / LOCK_NAME).exists()


def test_a_folder_that_was_kept_before_stays_kept(fitted, tmp_path):
    (tmp_path / "run").mkdir()
    lock = lock_folder(tmp_path / "run")
    fitted()
    assert locked_here(tmp_path / "run")
    lock.close()


def test_saving_changes_nothing(fitted):
    assert_equal(fitted(), fitted(folder=None))


def test_resumed_bar_starts_at_the_step(fitted, capsys):
    def die(event):
        if (event.stage, event.step) == ("maximize", 3):
            raise Killed

    with pytest.raises(Killed):
        fitted(on_event=die)
    capsys.readouterr()
    fitted(progress=True)
    shown = capsys.readouterr().err
    assert "features" not in shown
    assert "pretrain:" not in shown
    assert "maximize: 3/3" in shown


def changed(part, spoil):
    images, labels = (torch.stack([torch.as_tensor(sample[k]) for sample in part]) for k in (0, 1))
    spoil(images, labels)
    return TensorDataset(images, labels)


CHANGES = {
    "setting": (
        lambda m, f, t: {"config": dataclasses.replace(t, maximize=DropoutConfig(lr=1e-3))},
        "config.maximize.lr was 0.005, is 0.001",
    ),
    "form of stage 3": (
        lambda m, f, t: {"config": dataclasses.replace(t, maximize=LinearConfig(steps=3, batch_size=32))},
        "config.maximize.clip was nothing, is 1.0",
    ),
    "no stage 1": (
        lambda m, f, t: {"config": dataclasses.replace(t, pretrain=None)},
        "config.pretrain was nothing, is None",
    ),
    "solver": (
        lambda m, f, t: {"config": dataclasses.replace(t, influence=InfluenceConfig(solver=CG()))},
        "config.influence.solver was 'auto', is CG(",
    ),
    "seed": (lambda m, f, t: {"config": dataclasses.replace(t, seed=3)}, "config.seed was 0, is 3"),
    "augmenter": (
        lambda m, f, t: {"augmenter": AugmenterConfig(channels=1, size=28)},
        "augmenter was None, is nothing",
    ),
    "networks": (
        lambda m, f, t: {"augmenter": Augmenter(AugmenterConfig(channels=1, size=28))},
        "augmenter (digest of its state) was nothing",
    ),
    "amp": (lambda m, f, t: {"amp": torch.bfloat16}, "amp was None, is torch.bfloat16"),
    "length": (lambda m, f, t: {"train": torch.utils.data.Subset(f[0], range(190))}, "train images was 200, is 190"),
    "images": (lambda m, f, t: {"train": changed(f[0], lambda x, y: x[0].zero_())}, "train images (digest"),
    "labels": (lambda m, f, t: {"val": changed(f[1], lambda x, y: y[0].sub_(1).abs_())}, "val images (digest"),
    "baseline": (lambda m, f, t: {"baseline": v2.RandomCrop(28, padding=3)}, "baseline (digest"),
    "no baseline": (lambda m, f, t: {"baseline": None}, "is none"),
    "model": (lambda m, f, t: m[0].bias.data.add_(1e-6) is None or {}, "model (digest"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_checkpoint_of_another_fit_is_refused_with_the_difference_named(fitted, model, few, tiny, change):
    def die(event):
        raise Killed

    with pytest.raises(Killed):
        fitted(on_event=die)
    spoil, part = CHANGES[change]
    with pytest.raises(CheckpointError, match="is of another fit") as raised:
        fitted(**spoil(model, few, tiny))
    assert part in str(raised.value)
    assert str(raised.value).count(" was ") <= len(dataclasses.fields(AugmenterConfig)) + 3


def test_versions_are_part_of_the_fingerprint(model, few, crop, monkeypatch):
    data = {"train": few[0], "val": few[1]}
    before = fingerprint(model, data, crop, 0)
    monkeypatch.setattr(torch, "__version__", "9.9")
    after = fingerprint(model, data, crop, 0)
    assert {name for name in before if before[name] != after[name]} == {"torch"}
    assert "learned-aug" in after


def test_fingerprint_repeats_for_random_transforms_and_shuffled_loaders(model, few, crop):
    data = {"train": DataLoader(few[0], 32, shuffle=True), "val": few[1]}
    prints = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        prints.append(fingerprint(model, data, crop, 0))
    assert prints[0] == prints[1]


def test_folder_that_is_a_file_is_refused_before_the_fit(fitted, tmp_path):
    (tmp_path / "run").write_text("")
    seen = []
    with pytest.raises(FileExistsError):
        fitted(on_event=seen.append)
    assert seen == []


@pytest.mark.parametrize("every", [-1.0, float("nan")])
def test_interval_out_of_range_is_refused(fitted, every):
    with pytest.raises(ValueError, match="checkpoint_every must be >= 0 seconds"):
        fitted(checkpoint_every=every)


@pytest.mark.slow
def test_fits_killed_by_the_system_end_alike(tmp_path):
    out = tmp_path / "kills.json"
    script = ROOT / "benchmarks" / "fit" / "kills.py"
    command = [sys.executable, str(script), "--kills", "3", "--results", str(out)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    figures = json.loads(out.read_text())
    assert figures["kills"] == figures["bit_equal"] == 3
    assert figures["unreadable_checkpoints"] == 0
