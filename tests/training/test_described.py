"""The texts of settings: another one for each other setting, and the same one for the same."""

import collections
import copy
import datetime
import decimal
import logging
import operator
import os
import random
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from torchvision.transforms import v2

from learned_aug import LearnedAugment
from learned_aug.training import each
from learned_aug.training.described import described, structure


@dataclass
class Config:
    p: float


class Plain:
    def __init__(self, p):
        self.p = p


class Hidden(nn.Module):
    def __init__(self, p):
        super().__init__()
        self._p = p


class Nested:
    def __init__(self, p):
        self.parts = {"first": [Plain(p)]}

    def call(self, images):
        return images


def nested(p):
    def outer(model):
        def inner(images):
            return images * p

        return inner

    return outer


def chain(length, value):
    """Functions within functions."""
    held = value
    for _ in range(length):
        held = (lambda inner: lambda x: inner)(held)
    return held


SETTINGS = {
    "a slice": lambda p: slice(0, p),
    "a range": lambda p: range(int(8 * p)),
    "a time": lambda p: datetime.timedelta(p),
    "a decimal": decimal.Decimal,
    "a deque": lambda p: collections.deque([p]),
    "bytes that change": lambda p: bytearray([int(8 * p)]),
    "a getter": lambda p: operator.itemgetter(int(8 * p)),
    "a pattern": lambda p: re.compile(str(p)),
    "a dtype": lambda p: np.dtype("f4" if p == 0.25 else "f8"),
    "a path": lambda p: Path(str(p)),
    "an ordered dict": lambda p: collections.OrderedDict(a=p),
    "a named tuple": collections.namedtuple("Named", "p"),
    "what trains": lambda p: nn.Linear(1, 1).requires_grad_(p == 0.25),
    "data": lambda p: (lambda data: lambda x: data)(TensorDataset(torch.full((4, 1, 2, 2), p), torch.arange(4))),
    "a number": float,
    "a number of numpy": np.float32,
    "an array": lambda p: np.full(3, p),
    "an array of objects": lambda p: np.array([Plain(p), None], dtype=object),
    "a tensor": lambda p: torch.full((3,), p),
    "a v2.Lambda": lambda p: v2.Lambda(lambda x: x * p),
    "lambdas in a v2.Compose": lambda p: v2.Compose([v2.Lambda(lambda x: x * p), v2.Identity()]),
    "a transform in a list": lambda p: [v2.RandomErasing(p=p)],
    "a transform's numpy setting": lambda p: v2.RandomErasing(p=np.float64(p)),
    "a closure over a dataclass": lambda p: (lambda c: lambda x: x * c.p)(Config(p)),
    "a closure over a namespace": lambda p: (lambda c: lambda x: x * c.p)(SimpleNamespace(p=p)),
    "a closure over an object": lambda p: (lambda c: lambda x: x * c.p)(Plain(p)),
    "a method of an object that cannot be called": lambda p: Nested(p).call,
    "functions in functions": nested,
    "partials in partials": lambda p: partial(partial(pow, mod=None), Plain(p)),
    "a private setting of a user's module": Hidden,
    "a module's weights": lambda p: (
        nn.Linear(2, 2).requires_grad_(False).apply(lambda m: nn.init.constant_(m.weight, p))
    ),
    "the sign of weights": lambda p: nn.PReLU().apply(lambda m: nn.init.constant_(m.weight, p - 0.375)),
    "what a policy is given": lambda p: each(v2.RandomErasing(p=p)),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_another_setting_has_another_text_and_the_same_one_the_same(name):
    make = SETTINGS[name]

    def text(p):
        torch.manual_seed(0)
        return described(make(p))

    assert text(0.25) != text(0.5)
    assert text(0.25) == text(0.25)


def test_what_was_seen_is_no_setting(augmenter, batch):
    images, _ = batch
    transform = LearnedAugment(augmenter)
    settings = [each(v2.TrivialAugmentWide()), augmenter, transform, v2.RandomErasing(p=1.0)]
    before = [described(setting) for setting in settings]
    for setting in settings:
        setting(images)
    assert [described(setting) for setting in settings] == before


def test_the_state_of_a_source_of_chance_is_no_setting():
    for source in (random.Random(0), np.random.default_rng(0), torch.Generator(), np.random.RandomState(0)):
        held = SimpleNamespace(source=source)
        before = described(held)
        (source.random if hasattr(source, "random") else source.seed)()
        assert described(held) == before


def test_objects_that_hold_themselves_have_a_text():
    one = SimpleNamespace(p=1)
    one.me = [one]
    assert described(one) == described(copy.deepcopy(one))


class Refuses:
    def __reduce_ex__(self, protocol):
        raise OSError("not open")


class Opened(Dataset):
    """A data set that closes its file where it is pickled."""

    open = True

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return torch.full((1, 2, 2), float(index)), index

    def __getstate__(self):
        self.open = False
        return {}


def test_what_cannot_be_described_is_named():
    assert described(Refuses()) == "Refuses"
    assert described([pytest, int]) == "[module, int]"
    assert described(nn.Sequential()).startswith("Sequential ")
    sparse = nn.Identity()
    sparse.weights = torch.eye(2).to_sparse()
    assert described(sparse).startswith("Identity ")


def test_data_are_read_and_not_pickled():
    data = Opened()
    assert described(SimpleNamespace(data=data)) == described(SimpleNamespace(data=Opened()))
    assert data.open


def test_objects_within_many_others_have_a_text_and_those_beyond_a_name():
    assert described(chain(10, 1)) != described(chain(10, 2))
    assert described(chain(2000, 1)) == described(chain(2000, 2))


def test_a_path_and_a_logger_keep_their_text_whatever_they_were_used_for():
    path, logger = Path("a/b"), logging.getLogger("one of a test")
    held = SimpleNamespace(path=path, logger=logger)
    before = described(held)
    hash(path)
    str(path)
    logger.isEnabledFor(logging.INFO)
    assert described(held) == before


def test_structure_sees_layers_and_settings_and_no_weights():
    def text(*layers, seed=0):
        torch.manual_seed(seed)
        return structure(nn.Sequential(nn.Linear(2, 3), *layers))

    assert text(seed=0) == text(seed=1)
    others = [(), (nn.Dropout(0.1),), (nn.Dropout(0.2),), (nn.Linear(3, 4),), (nn.Linear(3, 4, bias=False),)]
    assert len({text(*layers) for layers in others}) == len(others)


CODE = (
    "from tests.training.test_described import *; torch.manual_seed(0); "
    "print([described(make(0.25)) for make in SETTINGS.values()], "
    "described(lambda x: {'a', 'b', 'c'} | {x} in {'d', 'e'}))"
)


def test_the_text_of_a_setting_is_that_of_another_process():
    texts = {
        subprocess.run(
            [sys.executable, "-c", CODE], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1


def test_augmenters_of_other_strengths_are_other_settings(augmenter):
    milder = copy.deepcopy(augmenter).set_strengths_(warp=0.01)
    arms = [augmenter, milder, LearnedAugment(augmenter), LearnedAugment(milder), LearnedAugment(augmenter, p=0.5)]
    assert len({described(arm) for arm in arms}) == 5
    assert described(copy.deepcopy(augmenter)) == described(augmenter)
