"""Shared real data and a small trained classifier."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Subset
from torchvision.transforms import v2

from learned_aug.digits import all_conv, digits
from learned_aug.fit.config import FitConfig
from learned_aug.fit.dropout import DropoutConfig
from learned_aug.fit.pretrain import PretrainConfig
from learned_aug.runtime.stream import Stream

# Small tensors: a second thread costs more than it brings, and several test processes would fight for the cores.
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption(
        "--require-integrations",
        action="store_true",
        help="fail, not skip, tests whose package is missing (timm, Lightning, kornia, ...)",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Fail tests that skip because of a missing package, where none may be missing."""
    return refuse_missing(item.config, (yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """The same for whole files of tests."""
    return refuse_missing(collector.config, (yield))


def refuse_missing(config, report):
    if report.skipped and config.getoption("--require-integrations") and "could not import" in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = f"{report.longrepr[2]}; --require-integrations asks for every package of `.[integrations]`"
    return report


def pytest_runtest_setup():
    """Each test draws the same, alone or among others."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data():
    """The packaged digits: "train", "val" and "test"."""
    return digits()


@pytest.fixture(scope="session")
def crop():
    return v2.RandomCrop(28, padding=2)


@pytest.fixture(scope="session")
def trained(data, crop):
    """A small classifier, trained for some seconds."""
    torch.manual_seed(0)
    model = all_conv(width=4)
    train = Stream(
        data["train"], "train", "train", seed=0, batch_size=128, device=torch.device("cpu"), baseline=crop, shuffle=True
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, 150, pct_start=0.1, cycle_momentum=False)
    for _ in range(150):
        images, labels = next(train)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@pytest.fixture
def model(trained) -> nn.Sequential:
    """A copy that a test may spoil."""
    return copy.deepcopy(trained)


@pytest.fixture
def few(data):
    """200 training and 1,000 hyper-validation digits."""
    return Subset(data["train"], range(200)), Subset(data["val"], range(1000))


@pytest.fixture
def tiny():
    """Settings for a fit of about a second."""
    return FitConfig(pretrain=PretrainConfig(steps=3, batch_size=16), maximize=DropoutConfig(steps=3, batch_size=32))
