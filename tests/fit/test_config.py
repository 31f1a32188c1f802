import pytest

from learned_aug.fit import FitConfig, InfluenceConfig, MaximizeConfig, PretrainConfig, RetrainConfig


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (PretrainConfig, {"batch_size": 1}),
        (PretrainConfig, {"lr_image": -1.0}),
        (InfluenceConfig, {"damping": float("nan")}),
        (MaximizeConfig, {"steps": -1}),
        (MaximizeConfig, {"objective": "quadratic"}),
        (MaximizeConfig, {"lr": -1.0}),
        (MaximizeConfig, {"tilt": 0.0}),
        (MaximizeConfig, {"clip": 0.0}),
        (RetrainConfig, {"mix": 1.5}),
        (RetrainConfig, {"label_smoothing": 1.5}),
        (InfluenceConfig, {"solver": "cg"}),
        (MaximizeConfig, {"batch_size": 1}),
        (PretrainConfig, {"steps": 1.5}),
        (RetrainConfig, {"steps": 0}),
        (FitConfig, {"spread_pixels": 0.0}),
    ],
)
def test_value_out_of_range_is_named(kind, values):
    (name,) = values
    with pytest.raises(ValueError, match=f"{kind.__name__}.{name}"):
        kind(**values)


def test_stage_settings_of_another_stage_are_refused():
    with pytest.raises(TypeError, match="PretrainConfig"):
        FitConfig(pretrain=MaximizeConfig())
