import dataclasses
import io
import json
import sys

import PIL.Image
import pytest
import torch

from learned_aug import Augmenter, AugmenterConfig, CardFacts, CardResult, fit
from learned_aug.cli.report import png, settings_of, write_report
from learned_aug.fit.config import FitConfig
from learned_aug.fit.dropout import DropoutConfig
from learned_aug.fit.pretrain import PretrainConfig
from learned_aug.weights import files as weights
from learned_aug.weights.card import render

CONFIG = AugmenterConfig(channels=1, size=8, tau_dim=8, width=4)


@pytest.fixture(scope="module")
def result(trained, data, crop):
    config = FitConfig(pretrain=PretrainConfig(steps=2, batch_size=16), maximize=DropoutConfig(steps=2, batch_size=32))
    return fit(trained, data["train"], data["val"], baseline=crop, config=config, progress=False)


def test_report_of_a_fit_says_what_it_wrote_and_fills_the_card(result, data, tmp_path):
    images = data["test"].tensors[0][:10]
    facts = CardFacts(data="MNIST", settings={"seed": "chosen by dice"})
    written = write_report(tmp_path / "out", result, images, facts=facts, notes={"more": 1})
    files = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert sorted(written) == files
    assert "curves.png" in written
    card = (tmp_path / "out" / "augmenter" / "README.md").read_text()
    assert "| `maximize.steps` | `2` |" in card
    assert "| `seed` | `chosen by dice` |" in card  # what is stated goes before what is filled in
    assert "(diversity.png)" in card
    assert json.loads((tmp_path / "out" / "fit.json").read_text())["more"] == 1


def test_report_without_matplotlib_leaves_out_the_curves_alone(result, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    written = write_report(tmp_path, result, data["test"].tensors[0][:2])
    assert "curves.png" not in written
    assert "fit.json" in written


def test_settings_are_plain_values_of_one_level(result):
    settings = settings_of(result)
    assert settings["pretrain.batch_size"] == 16
    assert json.loads(json.dumps(settings)) == settings


def test_png_has_256_colors_close_to_those_of_the_picture():
    ramp = torch.linspace(0, 255, 64).round().byte()
    pixels = torch.stack([ramp[:, None].expand(64, 64), ramp.expand(64, 64), ramp.flip(0).expand(64, 64)], dim=-1)
    with PIL.Image.open(io.BytesIO(png(PIL.Image.fromarray(pixels.numpy())))) as read:
        assert read.mode == "P"
        difference = torch.frombuffer(bytearray(read.convert("RGB").tobytes()), dtype=torch.uint8).view(64, 64, 3)
    assert (difference.float() - pixels.float()).abs().mean() < 12


# What a card makes of the figures


def card(source="./mine", **facts):
    files = weights.encode(CONFIG, Augmenter(CONFIG).state_dict())
    return render(CardFacts(**facts), CONFIG, files, source)["README.md"].decode()


def test_card_states_no_spread_for_a_single_run():
    one = CardResult(arm="crops", error=2.5, std=None, runs=1)
    assert "| crops | 2.50 % | 1 |" in card(results=(one,))
    with pytest.raises(ValueError, match="None for one run"):
        dataclasses.replace(one, runs=2)


def test_card_tabulates_the_diagnostics():
    text = card(diagnostics={"untrained": {"flow": 1.0, "rank": 20.04}, "fitted": {"flow": 1.25, "rank": 18.0}})
    assert "| What it does | `flow` | `rank` |" in text
    assert "| fitted | 1.25 | 18 |" in text
    assert "What it does" not in card()


@pytest.mark.parametrize(("source", "pins"), [("./mine", False), ("digits-cnn", False), ("me/mine", True)])
def test_card_explains_pinning_for_what_has_commits(source, pins):
    text = card(source)
    assert f'from_pretrained("{source}", p=0.5)' in text
    assert ("To pin it" in text) == pins
