"""Classifiers by name, and checkpoints as trainers write them."""

import argparse
import collections
import datetime
import pathlib
import sys
import types

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from learned_aug.cli.classifier import build_model, check_model, load_checkpoint
from learned_aug.digits import all_conv
from tests.cli.conftest import MODEL


def test_a_gray_classifier_of_torchvision_takes_one_channel():
    model = build_model("squeezenet1_1", 7, 1).eval()
    assert model(torch.rand(1, 1, 64, 64)).shape == (1, 7)
    assert build_model("squeezenet1_1", 7)(torch.rand(1, 3, 64, 64)).shape == (1, 7)


def test_timm_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="pip install timm"):
        build_model(MODEL, 10)


# Classifiers that return more than logits in training


@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 80)])
def test_classifiers_with_auxiliary_heads_train_on_their_logits(name, size):
    model = build_model(name, 3)
    assert model.training
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    assert model(images).shape == (2, 3)


def test_a_checkpoint_with_auxiliary_heads_loads_into_a_classifier_without_them(tmp_path):
    import torchvision

    full = torchvision.models.googlenet(num_classes=3, aux_logits=True, init_weights=False)
    torch.save({"model": full.state_dict()}, tmp_path / "c.pt")
    model = build_model("googlenet", 3)
    load_checkpoint(model, tmp_path / "c.pt")
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(model.eval()(images), full.eval()(images))


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [("inception_v3", 32, "change --size"), ("vit_b_16", 64, "Wrong image height"), ("vgg11", 16, "change --size")],
)
def test_a_size_that_a_classifier_does_not_take_is_found_before_the_work(name, size, message):
    with torch.device("meta"):
        model = build_model(name, 3)
    if name != "vgg11":
        model = model.to_empty(device="cpu")
    else:
        model = nn.Sequential(nn.Conv2d(3, 4, 17), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=rf"{name} does not take images of 3 x {size} x {size} .*{message}"):
        check_model(model, name, classes=3, channels=3, size=size)


def test_outputs_other_than_a_logit_for_each_class_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    with pytest.raises(ValueError, match=r"logits \(2, 3\) for two images, got \(2, 5\)"):
        check_model(model, "mine", classes=3, channels=3, size=2)
    check_model(model, "mine", classes=5, channels=3, size=2)
    assert model.training


# Checkpoints


def prefixed(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


NAMESPACE = argparse.Namespace(lr=0.1, data=pathlib.Path("/data"), distributed=False)

FORMS = {
    "plain": lambda state: state,
    "torchvision's reference": lambda state: {
        "model": state,
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "lr_scheduler": {"milestones": collections.Counter([30])},
        "epoch": 3,
        "args": NAMESPACE,
    },
    "timm": lambda state: {
        "arch": "resnet18",
        "state_dict": state,
        "args": NAMESPACE,
        "version": 2,
        "metric": np.float64(76.5),
    },
    "timm with EMA": lambda state: {"state_dict": state, "state_dict_ema": {k: v + 1 for k, v in state.items()}},
    "EMA alone": lambda state: {"state_dict_ema": state, "epoch": 1},
    "averaged": lambda state: {"model_ema": {"n_averaged": torch.tensor(3), **prefixed("module.", state)}},
    "net": lambda state: {"net": state, "acc": 95.0, "epoch": 200},
    "pycls": lambda state: {"model_state": state, "when": datetime.datetime(2026, 1, 1)},
    "ignite": lambda state: {"trainer": {"iteration": 3}, "objects": {"model": state}},
    "Lightning": lambda state: {
        "state_dict": prefixed("model.", state) | {"criterion.weight": torch.ones(4), "accuracy.tp": torch.zeros(4)},
        "hyper_parameters": {"lr": 0.1, "args": NAMESPACE},
        "callbacks": {"ModelCheckpoint{}": {"best_model_score": torch.tensor(0.1)}},
    },
    "Lightning, compiled": lambda state: {"state_dict": prefixed("model._orig_mod.", state)},
    "DataParallel": lambda state: {"model": prefixed("module.", state)},
    "compiled": lambda state: prefixed("_orig_mod.", state),
    "compiled and DataParallel": lambda state: {"state_dict": prefixed("module._orig_mod.", state)},
    "arrays": lambda state: {
        "model": state,
        "rng": np.arange(3),
        "best": np.float32(1),
        "more": types.SimpleNamespace(a=1),
        "counts": collections.defaultdict(list, a=[1]),
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_checkpoints_of_common_trainers_load(tmp_path, form):
    model, other = all_conv(width=2), all_conv(width=2)
    torch.save(FORMS[form](model.state_dict()), tmp_path / "c.pt")
    load_checkpoint(other, tmp_path / "c.pt")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


def test_half_precision_and_compiled_layers_load(tmp_path):
    model, other = all_conv(width=2), all_conv(width=2)
    state = {name.replace(".", "._orig_mod.", 1): tensor for name, tensor in model.half().state_dict().items()}
    torch.save(state, tmp_path / "c.pt")
    load_checkpoint(other, tmp_path / "c.pt")
    assert torch.equal(other[0].weight, model[0].weight.float())


def test_averages_as_torch_writes_them_load(tmp_path):
    model, other = all_conv(width=2), all_conv(width=2)
    torch.save(AveragedModel(model).state_dict(), tmp_path / "c.pt")
    load_checkpoint(other, tmp_path / "c.pt")
    assert torch.equal(model[0].weight, other[0].weight)


class Evil:
    def __reduce__(self):
        return print, ("code of a pickle ran",)


class Settings:
    """Of a user's own script."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"holds no plain state_dict \(it is empty\)"),
        (
            {"weight": torch.zeros(3, 2, dtype=torch.int8), "bias": torch.zeros(3)},
            r"it has weight torch.int8 \(3, 2\), not \(3, 2\)",
        ),
        (b"nonsense", "holds no plain state_dict"),
        ({"weight": Evil()}, r"holds no plain state_dict \(it holds builtins\.print, which could run code"),
        ({"model": {}, "args": Settings()}, r"it holds tests\.cli\.test_classifier\.Settings, which could run code"),
        (nn.Linear(2, 3), r"it holds torch\.nn\.modules\.linear\.Linear"),
        ([1, 2], "holds a list, no state_dict"),
        ({"epoch": 3, "args": NAMESPACE}, "holds a dict of epoch, args, no state_dict"),
        ({}, "holds an empty dict"),
        ({"weight": torch.zeros(4, 2), "bias": torch.zeros(4)}, r"it has bias \(4,\), not \(3,\)"),
        ({"weight": torch.zeros(3, 2)}, "it lacks bias"),
        ({"model": {"weight": torch.zeros(3, 2)}, "epoch": 1}, r"\(a dict of model, epoch\): its 'model' lacks bias"),
        ({"generator": {"a": torch.zeros(1)}, "step": 1}, r"\(a dict of generator, step\): its 'generator' lacks bias"),
        (
            {"a": {"weight": torch.zeros(3, 2), "bias": torch.zeros(3)}, "b": nn.Linear(2, 3).state_dict()},
            "holds 2 states of such a model, a, b; save one alone",
        ),
        ({"weight": torch.full((3, 2), torch.nan), "bias": torch.zeros(3)}, "NaN or infinity in weight"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_and_no_pickle_runs(tmp_path, capsys, content, message):
    path = tmp_path / "c.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    model = nn.Linear(2, 3)
    before = model.weight.clone()
    with pytest.raises(ValueError, match=message) as found:
        load_checkpoint(model, path)
    assert "\n" not in str(found.value)
    assert "code of a pickle ran" not in capsys.readouterr().out
    assert torch.equal(model.weight, before)


def test_unknown_tensors_are_counted(tmp_path):
    state = nn.Linear(2, 3).state_dict() | {f"more.{k}": torch.zeros(1) for k in range(5)}
    safetensors.torch.save_file(state, tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match=r"has unknown more\.0, more\.1 and 3 more; check the model's name"):
        load_checkpoint(nn.Linear(2, 3), tmp_path / "c.safetensors")


def test_damaged_safetensors_are_refused(tmp_path):
    safetensors.torch.save_file(nn.Linear(2, 3).state_dict(), tmp_path / "c.safetensors")
    data = (tmp_path / "c.safetensors").read_bytes()
    (tmp_path / "c.safetensors").write_bytes(data[:-4])
    with pytest.raises(ValueError, match="holds no plain state_dict"):
        load_checkpoint(nn.Linear(2, 3), tmp_path / "c.safetensors")
