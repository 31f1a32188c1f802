"""Damaged, unwritable and shared caches of the Hub, and pretrained names that are read through it."""

import dataclasses
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from learned_aug import Augmenter, LearnedAugment, WeightsError
from learned_aug.weights import files as weights
from learned_aug.weights import hub, registry
from learned_aug.weights.files import CONFIG_NAME, WEIGHTS_NAME
from learned_aug.weights.registry import Pretrained
from tests.weights.fake_hub import Fault, sha256
from tests.weights.loads import CONFIG, HTML, REPO, check_refused, check_whole, flip, same

# The client's own upload of large files uses a form of its HTTP library that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


DAMAGES = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "one bit": lambda path: path.write_bytes(flip(path.read_bytes())),
    "empty": lambda path: path.write_bytes(b""),
    "HTML": lambda path: path.write_bytes(HTML),
    "gone": lambda path: path.resolve().unlink(),
}


def snapshot(cache, server, name):
    return cache / "models--org--aug" / "snapshots" / server.head / name


@pytest.mark.parametrize("large", [set(), {CONFIG_NAME, WEIGHTS_NAME}], ids=["regular", "lfs"])
@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_cached_file_is_fetched_once_more(server, cache, damage, name, large):
    server.lfs = large
    Augmenter.from_pretrained(REPO, cache_dir=cache)
    damage(snapshot(cache, server, name))
    server.log.clear()
    assert same(Augmenter.from_pretrained(REPO, revision=server.head, cache_dir=cache), server.augmenter)
    place = f"/objects/{sha256(server.files[name])}" if large else f"/{REPO}/resolve/{server.head}/{name}"
    assert [path for method, path in server.log if method == "GET"] == [place]
    check_whole(cache)


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(silent=True), Fault(tamper=flip)])
def test_damaged_cached_file_that_cannot_be_fetched_is_refused(server, cache, fault):
    Augmenter.from_pretrained(REPO, cache_dir=cache)
    path = snapshot(cache, server, WEIGHTS_NAME)
    path.write_bytes(flip(path.read_bytes()))
    server.fault = lambda method, path: None if fault.tamper and method == "HEAD" else fault
    with pytest.raises(WeightsError, match=r"damaged.*500|damaged.*did not answer|hash .*, expected"):
        Augmenter.from_pretrained(REPO, revision=server.head, cache_dir=cache)


def test_damaged_reference_is_not_followed(server, cache):
    Augmenter.from_pretrained(REPO, cache_dir=cache)
    (cache / "models--org--aug" / "refs" / "main").write_bytes(b"\xff../..")
    server.fault = lambda method, path: Fault(status=500)
    check_refused(server, cache, "failed")


def test_cache_that_cannot_be_written_is_refused_with_the_remedy(server, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(WeightsError, match=r"org/aug/config.json.*the cache failed.*HF_HOME.*cache_dir="):
        Augmenter.from_pretrained(REPO, cache_dir=tmp_path / "file")


def test_read_only_cache_is_read(server, cache, monkeypatch):
    Augmenter.from_pretrained(REPO, cache_dir=cache)

    def refuse(*args):
        raise OSError(errno.EROFS, "read-only file system")

    monkeypatch.setattr(hub, "write_atomic", refuse)
    assert same(Augmenter.from_pretrained(REPO, cache_dir=cache), server.augmenter)


def test_no_home_directory_is_refused_with_the_remedy(server, monkeypatch):
    def unknown(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", unknown)
    with pytest.raises(WeightsError, match=r"org/aug: no home directory.*HF_HOME.*cache_dir="):
        Augmenter.from_pretrained(REPO)


@pytest.mark.filterwarnings("ignore:.*cache-system uses symlinks:UserWarning")
def test_cache_works_without_symbolic_links(server, cache, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(os, "symlink", refuse)
    Augmenter.from_pretrained(REPO, cache_dir=cache)
    server.fault = lambda method, path: Fault(status=500)
    assert same(Augmenter.from_pretrained(REPO, revision=server.head, cache_dir=cache), server.augmenter)
    assert not snapshot(cache, server, WEIGHTS_NAME).is_symlink()


def test_damaged_file_that_another_commit_left_is_fetched_once_more(server, cache):
    Augmenter.from_pretrained(REPO, cache_dir=cache)
    path = snapshot(cache, server, WEIGHTS_NAME)
    path.write_bytes(flip(path.read_bytes()))
    server.repos[REPO].commit({**server.files, "README.md": b"new"})
    assert same(Augmenter.from_pretrained(REPO, cache_dir=cache), server.augmenter)
    check_whole(cache)


@pytest.mark.parametrize("damaged", [False, True], ids=["empty cache", "damaged cache"])
def test_concurrent_loads_agree(server, cache, damaged, monkeypatch):
    monkeypatch.setattr(hub, "PATIENCE", 8.0)
    monkeypatch.setattr(hub, "TIMEOUT", 5.0)
    if damaged:
        Augmenter.from_pretrained(REPO, cache_dir=cache)
        path = snapshot(cache, server, WEIGHTS_NAME)
        path.write_bytes(flip(path.read_bytes()))
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(Augmenter.from_pretrained, REPO, cache_dir=cache) for _ in range(8)]
        assert all(same(job.result(), server.augmenter) for job in jobs)
    check_whole(cache)


# Pretrained names, from the Hub


@pytest.fixture
def pinned(server, monkeypatch):
    """A pretrained name without a bundled copy, published at REPO."""
    record = Pretrained(
        name="digits-cnn",
        data="MNIST",
        classifier="four convolutions",
        bytes=1,
        license="Apache-2.0",
        errors={"fitted": 2.5},
        seeds=5,
        repo_id=REPO,
        revision=server.head,
        config_sha256=sha256(server.files[CONFIG_NAME]),
        weights_sha256=sha256(server.files[WEIGHTS_NAME]),
    )
    monkeypatch.setattr(registry, "PRETRAINED", (record,))


def test_pretrained_name_without_a_bundle_is_fetched_once(server, pinned, cache):
    assert same(Augmenter.from_pretrained("digits-cnn", cache_dir=cache), server.augmenter)
    server.log.clear()
    assert same(LearnedAugment.from_pretrained("digits-cnn", cache_dir=cache).augmenter, server.augmenter)
    assert server.log == []


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("name", weights.NAMES)
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_cached_copy_of_a_pretrained_name_is_fetched_once_more(server, pinned, cache, damage, name, links):
    Augmenter.from_pretrained("digits-cnn", cache_dir=cache)
    path = snapshot(cache, server, name)
    if not links:  # as on file systems without them, where the hash of the Hub is not known
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
    damage(path)
    server.log.clear()
    assert same(Augmenter.from_pretrained("digits-cnn", cache_dir=cache), server.augmenter)
    # The client keeps a file under its hash, too: a lost name alone takes no download.
    assert sum(method == "GET" for method, _ in server.log) == (links or damage is not DAMAGES["gone"])


@pytest.mark.parametrize("name", weights.NAMES)
def test_other_weights_at_the_pinned_commit_are_refused(server, pinned, cache, name):
    other = dataclasses.replace(CONFIG, tau_dropout=0.25)
    files = weights.encode(other, Augmenter(other).state_dict())
    server.repos[REPO].commits[server.head] = {**server.files, name: files[name]}
    with pytest.raises(WeightsError, match=f"{REPO}/{name} .*SHA-256 .*, expected {sha256(server.files[name])}"):
        Augmenter.from_pretrained("digits-cnn", cache_dir=cache)
