"""Options of the command line that are made of settings."""

import argparse
from dataclasses import dataclass

import pytest

from learned_aug import DropoutConfig, FitConfig, InfluenceConfig, LinearConfig, PretrainConfig, RetrainConfig
from learned_aug.cli.main import main
from learned_aug.cli.settings import add_setting, field_texts, seed_number


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of a test."""

    batch_size: int = 3
    """Images per step, 50 % of them
    augmented."""
    share: float = 0.5
    """Share of a batch."""
    bare: int = 1


def test_texts_after_fields_are_found_on_one_line():
    texts = {"batch_size": "Images per step, 50 % of them augmented.", "share": "Share of a batch."}
    assert field_texts(Settings) == texts


@pytest.mark.parametrize(
    "kind", [FitConfig, PretrainConfig, InfluenceConfig, DropoutConfig, LinearConfig, RetrainConfig]
)
def test_every_setting_of_the_library_has_a_text(kind):
    assert list(field_texts(kind)) == list(kind.__dataclass_fields__)
    assert all(text.endswith(".") for text in field_texts(kind).values())


def test_option_takes_type_default_and_help_from_its_field():
    parser = argparse.ArgumentParser()
    add_setting(parser, Settings, "batch_size")
    add_setting(parser, Settings, "share", "--part", help="other %(default)s")
    assert vars(parser.parse_args([])) == {"batch_size": 3, "part": 0.5}
    assert vars(parser.parse_args(["--batch-size", "7", "--part", "1"])) == {"batch_size": 7, "part": 1.0}
    text = " ".join(parser.format_help().split())
    assert "--batch-size N Images per step, 50 % of them augmented. (3)" in text
    assert "--part X other 0.5" in text
    with pytest.raises(SystemExit):
        parser.parse_args(["--batch-size", "1.5"])


@pytest.mark.parametrize("command", ["fit", "compare", "preview", "demo"])
@pytest.mark.parametrize("value", ["99999999999999999999999", "-1", "1.5"])
def test_a_seed_that_generators_do_not_take_is_refused_with_its_option(capsys, command, value):
    with pytest.raises(SystemExit):
        main([command, "--seed", value])
    assert "argument --seed: must be an integer from 0 to 2**63 - 1" in capsys.readouterr().err
    assert seed_number(str(2**63 - 1)) == 2**63 - 1
