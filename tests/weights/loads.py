"""What the tests of the Hub share: one repository, and checks of what is read from it."""

import time

import pytest
import torch
from huggingface_hub import constants

from learned_aug import Augmenter, AugmenterConfig, WeightsError
from tests.weights.fake_hub import git_sha1, sha256

CONFIG = AugmenterConfig(channels=1, size=8, tau_dim=8, width=4, mean=(0.1,), std=(0.3,))
REPO = "org/aug"
ZERO = "0" * 40
HTML = b"<!doctype html><html><body>Please log in</body></html>"


def point_client_to(monkeypatch, url):
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def same(one, two):
    one, two = one.state_dict(), two.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def check_whole(cache):
    """Each file that the cache shows is whole: its blob has the hash that it is named by."""
    shown = [path.resolve() for path in cache.glob("*/snapshots/*/*")]
    assert shown
    assert all(path.name in (git_sha1(path.read_bytes()), sha256(path.read_bytes())) for path in shown)


def at(method, name, fault):
    return lambda m, path: fault if m in method.split("|") and path.endswith(name) else None


def flip(data):
    """The same length, one bit different."""
    return data[:-1] + bytes([data[-1] ^ 1])


def check_refused(server, cache, message, revision=None, recovers=True):
    """Loading fails in time with the documented error, and works once the fault is over."""
    begin = time.perf_counter()
    with pytest.raises(WeightsError, match=message) as caught:
        Augmenter.from_pretrained(REPO, revision=revision, cache_dir=cache)
    assert time.perf_counter() - begin < 5
    assert REPO in str(caught.value) or str(cache) in str(caught.value)
    server.fault = lambda method, path: None
    while recovers:
        begin = time.perf_counter()
        try:
            assert same(Augmenter.from_pretrained(REPO, revision=revision, cache_dir=cache), server.augmenter)
            check_whole(cache)
            break
        except WeightsError as error:  # while the abandoned download holds its lock
            if "no answer within" not in str(error) or time.perf_counter() - begin > 5:
                raise
