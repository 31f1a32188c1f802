"""A Hub and an empty cache for each test."""

import time

import pytest
from huggingface_hub import constants, file_download

from learned_aug import Augmenter
from learned_aug.weights import files as weights
from learned_aug.weights import hub
from tests.weights.fake_hub import Hub, Repo
from tests.weights.loads import CONFIG, REPO, point_client_to


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A Hub that the client talks to; it has REPO with an augmenter in it, `server.files`, at `server.head`."""
    monkeypatch.setattr(hub, "TIMEOUT", 0.5)
    monkeypatch.setattr(hub, "PATIENCE", 1.0)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds, sleep=time.sleep: sleep(seconds / 20))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with Hub() as server:
        point_client_to(monkeypatch, server.url)
        server.augmenter = Augmenter(CONFIG)
        server.files = weights.encode(CONFIG, server.augmenter.state_dict())
        server.repos[REPO] = Repo()
        server.head = server.repos[REPO].commit(server.files)
        yield server
        # A thread of the server that outlives the test must not be the last to hold tensors: torch aborts the process
        # if they are freed while the interpreter exits.
        del server.augmenter


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"
