import pytest

from learned_aug.fit.config import FitConfig
from learned_aug.fit.dropout import DropoutConfig
from learned_aug.fit.linear import LinearConfig
from learned_aug.fit.pretrain import PretrainConfig
from learned_aug.influence.s_val import InfluenceConfig
from learned_aug.training.retrain import RetrainConfig


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (PretrainConfig, {"batch_size": 1}),
        (PretrainConfig, {"lr_image": -1.0}),
        (InfluenceConfig, {"damping": float("nan")}),
        (DropoutConfig, {"steps": -1}),
        (LinearConfig, {"steps": -1}),
        (LinearConfig, {"lr": float("inf")}),
        (DropoutConfig, {"lr": -1.0}),
        (DropoutConfig, {"tilt": 0.0}),
        (LinearConfig, {"clip": 0.0}),
        (RetrainConfig, {"label_smoothing": 1.5}),
        (InfluenceConfig, {"solver": "cg"}),
        (DropoutConfig, {"batch_size": 1}),
        (PretrainConfig, {"steps": 1.5}),
        (RetrainConfig, {"steps": 0}),
        (DropoutConfig, {"gate": -1.0}),
        (DropoutConfig, {"gate": float("nan")}),
        (FitConfig, {"batch_size": 1}),
    ],
)
def test_value_out_of_range_is_named(kind, values):
    (name,) = values
    with pytest.raises(ValueError, match=f"{kind.__name__}.{name}"):
        kind(**values)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("pretrain", DropoutConfig(), "of type PretrainConfig or None, got DropoutConfig"),
        ("influence", None, "of type InfluenceConfig, got NoneType"),
        ("maximize", PretrainConfig(), "of type DropoutConfig or LinearConfig, got PretrainConfig"),
        ("maximize", "quadratic", "of type DropoutConfig or LinearConfig, got str"),
    ],
)
def test_settings_of_another_stage_are_refused(part, value, message):
    with pytest.raises(TypeError, match=rf"FitConfig\.{part} must be {message}"):
        FitConfig(**{part: value})


def test_papers_settings_are_the_gan_without_our_terms_and_the_linear_form():
    paper = FitConfig.paper(seed=3)
    assert paper.seed == 3
    assert paper.pretrain == PretrainConfig(diversity_weight=0.0)
    assert paper.maximize == LinearConfig()
    assert (FitConfig().pretrain, FitConfig().maximize) == (None, DropoutConfig())
