"""FitConfig: settings of a fit, over those of its stages, which stand beside each stage.

"Paper" marks what the paper states; it gives no learning rates, batch sizes or step counts, so the rest are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from learned_aug.fit.dropout import DropoutConfig
from learned_aug.fit.linear import LinearConfig
from learned_aug.fit.pretrain import PretrainConfig
from learned_aug.influence.s_val import InfluenceConfig
from learned_aug.runtime.numbers import check_at_least, check_seed

__all__ = ["FitConfig"]


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings of :func:`learned_aug.fit`, one part for each stage.

    Strengths are settings of the networks: see :class:`learned_aug.AugmenterConfig`.
    """

    pretrain: PretrainConfig | None = None
    """Settings of stage 1; None leaves it out (ours), ``PretrainConfig()`` is the paper's."""
    influence: InfluenceConfig = field(default_factory=InfluenceConfig)
    """Settings of stage 2."""
    maximize: DropoutConfig | LinearConfig = field(default_factory=DropoutConfig)
    """Settings of stage 3: ``DropoutConfig()``, learned dropout (ours), or ``LinearConfig()``, the paper's."""
    batch_size: int = 256
    """Images per batch, over all processes, of passes that only read features (ours)."""
    seed: int = 0
    """Seed of all draws of the fit."""

    def __post_init__(self) -> None:
        """Refuse values out of range, and parts of another type.

        Raises:
            TypeError: if a part is of another type.
        """
        check_at_least(self, batch_size=2)
        check_seed(self.seed, "FitConfig.seed")
        kinds: dict[str, tuple[type, ...]] = {
            "pretrain": (PretrainConfig, type(None)),
            "influence": (InfluenceConfig,),
            "maximize": (DropoutConfig, LinearConfig),
        }
        for name, kind in kinds.items():
            if not isinstance(part := getattr(self, name), kind):
                expected = " or ".join("None" if k is type(None) else k.__name__ for k in kind)
                raise TypeError(f"FitConfig.{name} must be of type {expected}, got {type(part).__name__}")

    @classmethod
    def paper(cls, *, seed: int = 0) -> FitConfig:
        """Return the paper's choices: stage 1 as it is there, and stage 3 along the influence.

        The networks' own choices are those of ``AugmenterConfig.paper()``.
        """
        return cls(pretrain=PretrainConfig(diversity_weight=0.0), maximize=LinearConfig(), seed=seed)
