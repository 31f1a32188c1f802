"""Weights pushed to and read from a Hub, with the real client against a server of our own; pushes that fail."""

import dataclasses
import runpy
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from learned_aug import Augmenter, CardFacts, LearnedAugment, WeightsError
from learned_aug.weights import files as weights
from learned_aug.weights import hub
from learned_aug.weights.files import CONFIG_NAME, WEIGHTS_NAME
from tests.weights.fake_hub import Fault
from tests.weights.loads import CONFIG, REPO, at, check_whole, same

# The client's own upload of large files uses a form of its HTTP library that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.mark.parametrize(
    "large", [set(), {WEIGHTS_NAME}, {WEIGHTS_NAME, CONFIG_NAME}], ids=["regular", "lfs", "all lfs"]
)
def test_what_is_pushed_is_read_bit_identical_from_a_fresh_cache(server, cache, large):
    server.lfs = large
    augmenter = Augmenter(CONFIG)
    commit = augmenter.push_to_hub("me/mine", card=CardFacts(data="digits"))
    assert server.repos["me/mine"].refs["main"] == commit
    for k, revision in enumerate((None, "main", commit)):
        loaded = Augmenter.from_pretrained("me/mine", revision=revision, cache_dir=cache / str(k))
        assert same(loaded, augmenter)
        assert loaded.config.to_dict() == CONFIG.to_dict()
        check_whole(cache / str(k))
    transform = LearnedAugment.from_pretrained("hf-hub:me/mine", revision=commit, cache_dir=cache, p=0.5)
    assert same(transform.augmenter, augmenter)
    assert transform.p == 0.5


def test_a_cached_commit_takes_no_request_and_a_branch_one(server, cache):
    Augmenter.from_pretrained(REPO, cache_dir=cache)
    server.log.clear()
    Augmenter.from_pretrained(REPO, revision=server.head, cache_dir=cache)
    assert server.log == []
    Augmenter.from_pretrained(REPO, cache_dir=cache)
    assert server.log == [("HEAD", f"/{REPO}/resolve/main/{CONFIG_NAME}")]


def test_the_client_reads_our_cache_and_we_read_its(server, cache, tmp_path):
    from huggingface_hub import hf_hub_download, scan_cache_dir

    Augmenter.from_pretrained(REPO, cache_dir=cache)
    for revision in ("main", server.head):
        path = hf_hub_download(REPO, WEIGHTS_NAME, revision=revision, cache_dir=cache, local_files_only=True)
        assert Path(path).read_bytes() == server.files[WEIGHTS_NAME]
    report = scan_cache_dir(cache)
    assert not report.warnings
    assert next(iter(report.repos)).repo_id == REPO
    for name in weights.NAMES:
        hf_hub_download(REPO, name, cache_dir=tmp_path / "other")
    server.fault = lambda method, path: Fault(status=500)
    loaded = Augmenter.from_pretrained(REPO, revision=server.head, cache_dir=tmp_path / "other")
    assert same(loaded, server.augmenter)


def test_a_moved_branch_is_followed_and_its_files_are_of_one_commit(server, cache):
    Augmenter.from_pretrained(REPO, cache_dir=cache)
    other = Augmenter(dataclasses.replace(CONFIG, tau_dim=4))
    server.repos[REPO].commit(weights.encode(other.config, other.state_dict()))
    assert same(Augmenter.from_pretrained(REPO, cache_dir=cache), other)
    assert same(Augmenter.from_pretrained(REPO, revision=server.head, cache_dir=cache), server.augmenter)
    moved = []

    def move(method, path):
        if method == "HEAD" and not moved:  # between the first request and those that follow
            moved.append(server.repos[REPO].refs["main"])
            server.repos[REPO].refs["main"] = server.head

    server.repos[REPO].refs["dev"] = server.repos[REPO].refs["main"]
    server.fault = move
    assert same(Augmenter.from_pretrained(REPO, revision="dev", cache_dir=cache / "fresh"), other)


def test_push_to_a_branch_leaves_main(server, cache):
    other = Augmenter(dataclasses.replace(CONFIG, tau_dim=4))
    other.push_to_hub(REPO, revision="refs/try 2", commit_message="Try")
    assert same(Augmenter.from_pretrained(REPO, revision="refs/try 2", cache_dir=cache), other)
    assert same(Augmenter.from_pretrained(REPO, cache_dir=cache), server.augmenter)


def test_pushing_the_same_again_makes_no_commit(server):
    one = server.augmenter.push_to_hub(REPO)
    assert server.augmenter.push_to_hub(REPO) == one


def test_private_repository_needs_the_token(server, cache):
    server.token = "secret"
    commit = server.augmenter.push_to_hub("me/hidden", private=True, token="secret")
    assert server.repos["me/hidden"].private
    server.lfs = {WEIGHTS_NAME}  # on another host, which must not see the token
    loaded = Augmenter.from_pretrained("me/hidden", revision=commit, token="secret", cache_dir=cache)
    assert same(loaded, server.augmenter)
    for token in (None, False, "wrong"):
        with pytest.raises(WeightsError, match=r"me/hidden.*no such repository, or a private one.*hf auth login"):
            Augmenter.from_pretrained("me/hidden", token=token, cache_dir=cache / "other")


def test_what_is_meant_to_be_private_is_not_pushed_to_a_public_repository(server):
    before = dict(server.repos[REPO].refs)
    with pytest.raises(WeightsError, match="exists and is public, but private=True"):
        server.augmenter.push_to_hub(REPO, private=True)
    assert server.repos[REPO].refs == before


def test_offline_mode_and_a_dead_network_use_the_cached_branch(server, cache, monkeypatch):
    Augmenter.from_pretrained(REPO, cache_dir=cache)
    server.fault = lambda method, path: Fault(status=503)
    with pytest.warns(UserWarning, match=f"failed \\(503\\).*cached commit {server.head}"):
        assert same(Augmenter.from_pretrained(REPO, cache_dir=cache), server.augmenter)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    server.log.clear()
    assert same(Augmenter.from_pretrained(REPO, cache_dir=cache), server.augmenter)
    assert server.log == []
    with pytest.raises(WeightsError, match=r"org/aug/config.json at dev: out of reach while HF_HUB_OFFLINE.*\./folder"):
        Augmenter.from_pretrained(REPO, revision="dev", cache_dir=cache)
    with pytest.raises(WeightsError, match=r"org/aug.*out of reach while HF_HUB_OFFLINE.*save_pretrained"):
        server.augmenter.push_to_hub(REPO)


def test_publish_example_publishes(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    server.augmenter.save_pretrained(tmp_path / "mine")
    monkeypatch.setattr(sys, "argv", ["publish.py", str(tmp_path / "mine"), "me/mine", "--private"])
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "publish.py"), run_name="__main__")
    repo = server.repos["me/mine"]
    assert repo.refs["main"] in capsys.readouterr().out
    assert repo.private
    assert sorted(repo.files("main")) == ["README.md", CONFIG_NAME, WEIGHTS_NAME]


# Faults while writing

PUSHES = {
    "create: 401": (("POST", "/create", Fault(status=401)), "401|no such repository"),
    "create: 403": (("POST", "/create", Fault(status=403)), "403"),
    "create: 500": (("POST", "/create", Fault(status=500)), "500"),
    "create: never": (("POST", "/create", Fault(silent=True)), "did not answer"),
    "create: hangs up": (("POST", "/create", Fault(hang_up=True)), "did not answer"),
    "card: 403": (("POST", "/validate-yaml", Fault(status=403)), "403"),
    "preupload: 404": (("POST", "/preupload/main", Fault(status=404, code="RevisionNotFound")), "no such branch"),
    "preupload: 403": (("POST", "/preupload/main", Fault(status=403)), "403"),
    "commit: 403": (("POST", "/commit/main", Fault(status=403)), "403"),
    "commit: 409": (("POST", "/commit/main", Fault(status=409)), "refused \\(409"),
    "commit: never": (("POST", "/commit/main", Fault(silent=True)), "did not answer"),
    "lfs: 403": (("POST", "/batch", Fault(status=403)), "403"),
}


@pytest.mark.parametrize(("where", "message"), PUSHES.values(), ids=PUSHES)
def test_failed_push_says_why_and_commits_nothing(server, monkeypatch, where, message):
    monkeypatch.setattr(hub, "UPLOAD_PATIENCE", 1.0)
    server.lfs = {WEIGHTS_NAME}
    server.fault = at(*where)
    repo_id = "org/new" if where[1] == "/create" else REPO  # no right to create is none to write to what is there
    begin = time.perf_counter()
    with pytest.raises(WeightsError, match=f"{repo_id}.*({message})"):
        Augmenter(CONFIG).push_to_hub(repo_id)
    assert time.perf_counter() - begin < 5
    assert "org/new" not in server.repos
    assert server.repos[REPO].refs["main"] == server.head


@pytest.mark.parametrize("name", ["./folder", "a/b/c", "org/a--b"])
def test_push_to_an_impossible_name_is_refused_without_a_request(server, name):
    with pytest.raises(ValueError, match=r"org/name|repository"):
        server.augmenter.push_to_hub(name)
    assert server.log == []
