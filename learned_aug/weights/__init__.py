"""Files of weights: their names, how they are read, checked, written and published, and their model cards."""

from learned_aug.weights.card import CardFacts, CardResult
from learned_aug.weights.files import WeightsError
from learned_aug.weights.registry import Pretrained, list_pretrained

__all__ = ["CardFacts", "CardResult", "Pretrained", "WeightsError", "list_pretrained"]
