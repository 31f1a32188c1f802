"""Weights from and to a Hub, with the real client against a server of our own, and what happens when it fails."""

import dataclasses
import errno
import json
import os
import pickle
import runpy
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from huggingface_hub import close_session, constants, file_download
from safetensors.torch import save as to_safetensors

from learned_aug import Augmenter, AugmenterConfig, CardFacts, CardResult, LearnedAugment, WeightsError
from learned_aug.weights import files as weights
from learned_aug.weights import hub, registry
from learned_aug.weights.files import CONFIG_NAME, WEIGHTS_NAME
from learned_aug.weights.registry import Pretrained
from tests.weights.fake_hub import Fault, Hub, Repo, git_sha1, sha256

# The client's own upload of large files uses a form of its HTTP library that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
CONFIG = AugmenterConfig(channels=1, size=8, tau_dim=8, width=4, mean=(0.1,), std=(0.3,))
REPO = "org/aug"
ZERO = "0" * 40


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


# Round trips


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


# Model cards

FACTS = CardFacts(
    data="MNIST, 600 training images",
    classifier="four convolutions",
    protocol="five seeds; the test set was read once",
    results=(
        CardResult(arm="crops, fitted", error=2.5, std=0.25, runs=5),
        CardResult(arm="crops, untrained control", error=2.625, std=0.125, runs=5),
    ),
    settings={"pretrain.steps": 300},
    license="apache-2.0",
    data_license="CC BY-SA 3.0",
    datasets=("ylecun/mnist",),
    limits="Digits only.",
)


def test_card_states_the_facts_and_the_hashes_and_its_example_runs(tmp_path, monkeypatch):
    augmenter, picture = Augmenter(CONFIG), tmp_path / "draws.png"
    picture.write_bytes(b"PNG")
    augmenter.save_pretrained(tmp_path / "mine", card=dataclasses.replace(FACTS, pictures={picture: "Nine draws"}))
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == [
        "README.md",
        CONFIG_NAME,
        "draws.png",
        WEIGHTS_NAME,
    ]
    text = (tmp_path / "mine" / "README.md").read_text()
    for fact in (
        "600 training",
        "four convolutions",
        "2.62 ± 0.12 %",
        "pretrain.steps",
        "CC BY-SA",
        "Digits only.",
        "8x8",
    ):
        assert fact in text
    assert "![Nine draws](draws.png)" in text
    assert all(sha256((tmp_path / "mine" / name).read_bytes()) in text for name in weights.NAMES)
    assert f"torch {version('torch')}" in text
    example = text.split("```python\n")[1].split("```")[0]
    assert len([line for line in example.splitlines() if line]) == 5
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(example, names)
    assert names["transform"](torch.rand(1, 8, 8)).shape == (1, 8, 8)


def test_card_header_is_what_the_hub_reads(tmp_path):
    from huggingface_hub import ModelCard

    Augmenter(CONFIG).save_pretrained(tmp_path, card=FACTS)
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.license, data.library_name, data.datasets) == ("apache-2.0", "learned-aug", ["ylecun/mnist"])


def test_pushed_card_names_the_repository_and_a_card_that_was_there_stays(server):
    server.augmenter.push_to_hub("me/mine")
    repo = server.repos["me/mine"]
    first = repo.files("main")["README.md"].decode()
    assert 'from_pretrained("me/mine")' in first
    assert "Not measured." in first
    repo.commit({**repo.files("main"), "README.md": b"by hand"})
    Augmenter(CONFIG).push_to_hub("me/mine")
    assert repo.files("main")["README.md"] == b"by hand"
    server.augmenter.push_to_hub("me/mine", card=FACTS)
    assert b"Digits only." in repo.files("main")["README.md"]


@pytest.mark.parametrize("values", [{"error": 101}, {"std": -1}, {"runs": 0}, {"error": float("nan")}])
def test_a_result_that_cannot_be_is_refused(values):
    with pytest.raises(ValueError, match="error must be in"):
        CardResult(**{"arm": "a", "error": 1.0, "std": 0.0, "runs": 1, **values})


def test_a_picture_that_is_no_png_is_refused(tmp_path):
    with pytest.raises(ValueError, match="PNG"):
        Augmenter(CONFIG).save_pretrained(tmp_path, card=CardFacts(pictures={"README.md": "x"}))


def test_publish_example_publishes(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    server.augmenter.save_pretrained(tmp_path / "mine")
    monkeypatch.setattr(sys, "argv", ["publish.py", str(tmp_path / "mine"), "me/mine", "--private"])
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "publish.py"), run_name="__main__")
    repo = server.repos["me/mine"]
    assert repo.refs["main"] in capsys.readouterr().out
    assert repo.private
    assert sorted(repo.files("main")) == ["README.md", CONFIG_NAME, WEIGHTS_NAME]


# Faults while reading


def flip(data):
    """The same length, one bit different."""
    return data[:-1] + bytes([data[-1] ^ 1])


HTML = b"<!doctype html><html><body>Please log in</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 660768\n"
LOOP = f"/{REPO}/resolve/main/{CONFIG_NAME}"

ANSWERS = {  # to the first request, about config.json
    "401": (Fault(status=401), "not valid \\(401\\)"),
    "401 of a private repository": (Fault(status=401, code="RepoNotFound"), "no such repository, or a private one"),
    "403": (Fault(status=403), "does not permit this \\(403\\)"),
    "403 of a gated repository": (Fault(status=403, code="GatedRepo"), "access is granted one by one"),
    "404 repository": (Fault(status=404, code="RepoNotFound"), "no such repository"),
    "404 revision": (Fault(status=404, code="RevisionNotFound"), "no such branch, tag or commit"),
    "404 file": (Fault(status=404, code="EntryNotFound"), "no such file"),
    "404 of no Hub": (Fault(status=404), "refused \\(404"),
    "400": (Fault(status=400), "refused \\(400"),
    "429": (Fault(status=429), "failed \\(429\\)|did not answer"),  # early clients retry for longer than we wait
    "500": (Fault(status=500), "failed \\(500\\)"),
    "502": (Fault(status=502), "failed \\(502\\)"),
    "503": (Fault(status=503), "failed \\(503\\)"),
    "504": (Fault(status=504), "failed \\(504\\)"),
    "never": (Fault(silent=True), "did not answer.*check network"),
    "hangs up": (Fault(hang_up=True), "did not answer"),
    "no commit": (Fault(headers={"X-Repo-Commit": None}), "does not answer as a Hub"),
    "commit that is none": (Fault(headers={"X-Repo-Commit": "../../x"}), "does not answer as a Hub"),
    "no hash": (Fault(headers={"ETag": None}), "does not answer as a Hub"),
    "length that is none": (Fault(headers={"Content-Length": "many"}), "did not answer|expected"),
    "huge file": (Fault(headers={"Content-Length": str(10**12)}), "more than any augmenter"),
    "login page": (Fault(tamper=lambda data: HTML, headers={"X-Repo-Commit": None, "ETag": None}), "login page"),
    "redirect loop": (Fault(redirect=LOOP), "redirect|did not answer"),
    "redirect to a dead host": (Fault(redirect="http://127.0.0.1:1/x"), "refused|does not answer"),
}

BODIES = {  # of the file that is fetched
    "401": (Fault(status=401), "401"),
    "403": (Fault(status=403), "403"),
    "404": (Fault(status=404, code="EntryNotFound"), "no such file"),
    "429": (Fault(status=429), "429|no answer within"),  # the client retries for longer than we wait
    "500": (Fault(status=500), "500"),
    "503": (Fault(status=503), "503"),
    "never": (Fault(silent=True), "did not answer"),
    "stalls after the headers": (Fault(stall=True), "did not answer"),
    "hangs up": (Fault(hang_up=True), "did not answer"),
    "a byte now and then": (Fault(drip=0.05), "no answer within"),
    "cut short, length as announced": (Fault(tamper=lambda d: d[:-9], keep_length=True), "did not answer|damaged"),
    "cut short": (Fault(tamper=lambda d: d[:-9]), "came damaged"),
    "half": (Fault(tamper=lambda d: d[: len(d) // 2]), "came damaged"),
    "empty": (Fault(tamper=lambda d: b""), "came damaged"),
    "longer": (Fault(tamper=lambda d: d + b"x"), "came damaged"),
    "one bit": (Fault(tamper=flip), "hash .*, expected"),
    "other content of the same length": (Fault(tamper=lambda d: b"x" * len(d)), "hash .*, expected"),
    "zeros": (Fault(tamper=lambda d: bytes(len(d))), "hash .*, expected"),
    "HTML": (Fault(tamper=lambda d: HTML), "came damaged"),
    "HTML of the same length": (Fault(tamper=lambda d: HTML.ljust(len(d))[: len(d)]), "hash .*, expected"),
    "git-lfs pointer": (Fault(tamper=lambda d: POINTER), "came damaged"),
    "pickled": (Fault(tamper=lambda d: pickle.dumps([1]).ljust(len(d), b"\0")), "hash .*, expected"),
    "gzip that is none": (Fault(headers={"Content-Encoding": "gzip"}), "did not answer"),
    "redirect": (Fault(redirect=LOOP), "redirect|damaged"),  # to itself, or to the other file
    "redirect to a dead host": (Fault(redirect="http://127.0.0.1:1/x"), "refused"),
}


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


@pytest.mark.parametrize("pinned", [False, True], ids=["main", "commit"])
@pytest.mark.parametrize(("fault", "message"), ANSWERS.values(), ids=ANSWERS)
def test_bad_answer_is_refused(server, cache, fault, message, pinned):
    server.fault = at("HEAD", CONFIG_NAME, fault)
    check_refused(server, cache, message, server.head if pinned else None)


@pytest.mark.parametrize(("fault", "message"), BODIES.values(), ids=BODIES)
def test_bad_body_is_refused(server, cache, fault, message):
    server.fault = at("GET", WEIGHTS_NAME, fault)
    check_refused(server, cache, message, recovers=not fault.drip)  # that download goes on for minutes, abandoned


@pytest.mark.parametrize("case", ["one bit", "cut short", "500", "HTML", "pickled"])
def test_bad_body_of_the_config_is_refused(server, cache, case):
    fault, message = BODIES[case]
    server.fault = at("GET", CONFIG_NAME, fault)
    check_refused(server, cache, message)


@pytest.mark.parametrize("case", ["one bit", "cut short", "never", "500", "HTML", "git-lfs pointer"])
def test_bad_body_of_a_large_file_is_refused(server, cache, case):
    server.lfs = {WEIGHTS_NAME}
    fault, message = BODIES[case]
    server.fault = lambda method, path: fault if method == "GET" and path.startswith("/objects/") else None
    check_refused(server, cache, message)


def test_another_commit_than_the_pinned_one_is_refused(server, cache):
    server.fault = lambda method, path: Fault(headers={"X-Repo-Commit": ZERO})
    check_refused(server, cache, f"as a Hub does, with commit '{ZERO}'", server.head)


def edited(change):
    def edit(files):
        files[CONFIG_NAME] = json.dumps({**json.loads(files[CONFIG_NAME]), **change}).encode()

    return edit


def tensors(change):
    def edit(files):
        state = Augmenter(CONFIG).state_dict()
        change(state, next(iter(state)))
        files[WEIGHTS_NAME] = to_safetensors({k: v.contiguous() for k, v in state.items()})

    return edit


def replaced(name, data):
    return lambda files: files.update({name: data})


def pickled_instead(files):
    files["pytorch_model.bin"] = pickle.dumps({"weight": 1})
    del files[WEIGHTS_NAME]


CONTENTS = {  # of a repository, delivered faithfully
    "nothing": (dict.clear, "config.json.*no such file"),
    "no weights": (lambda files: files.pop(WEIGHTS_NAME), "model.safetensors.*no such file"),
    "no config": (lambda files: files.pop(CONFIG_NAME), "config.json.*no such file"),
    "pickled file instead": (pickled_instead, "pickled ones are never"),
    "config: HTML": (replaced(CONFIG_NAME, HTML), "no augmenter's configuration"),
    "config: no text": (replaced(CONFIG_NAME, b"\xff\xfe\xff"), "no augmenter's configuration"),
    "config: list": (replaced(CONFIG_NAME, b"[]"), "expected a JSON object"),
    "config: deep": (replaced(CONFIG_NAME, b"[" * 100_000), "no augmenter's configuration"),
    "config: of another model": (replaced(CONFIG_NAME, b'{"model_type": "bert"}'), "unknown keys"),
    "config: version": (edited({"version": 99}), "got 99"),
    "config: value": (edited({"tau_dropout": 2}), "tau_dropout"),
    "config: type": (edited({"size": "big"}), "size"),
    "config: a billion layers": (edited({"layers": 10**9}), "layers"),
    "config: a huge code": (edited({"tau_dim": 10**9}), "expected|cannot be built"),
    "config: a huge image": (
        edited({"fields": "pixel", "size": 10**12, "encoder_size": 8}),
        "expected|cannot be built",
    ),
    "config: of other weights": (edited({"width": 2}), "does not belong"),
    "weights: pointer": (replaced(WEIGHTS_NAME, POINTER), "git-lfs pointer"),
    "weights: pickled": (replaced(WEIGHTS_NAME, pickle.dumps({"weight": 1})), "no intact safetensors"),
    "weights: HTML": (replaced(WEIGHTS_NAME, HTML), "no intact safetensors"),
    "weights: empty": (replaced(WEIGHTS_NAME, b""), "no intact safetensors"),
    "weights: NaN": (tensors(lambda s, k: s[k].view(-1)[:1].fill_(float("nan"))), "NaN"),
    "weights: integers": (tensors(lambda s, k: s.update({k: s[k].int()})), "int32"),
    "weights: shape": (tensors(lambda s, k: s.update({k: s[k][..., :1]})), "expected"),
    "weights: extra": (tensors(lambda s, k: s.update(more=torch.zeros(1))), "unexpected"),
    "weights: missing": (tensors(lambda s, k: s.pop(k)), "lacks"),
}


@pytest.mark.parametrize(("edit", "message"), CONTENTS.values(), ids=CONTENTS)
def test_repository_without_an_augmenter_is_refused(server, cache, edit, message):
    files = dict(server.files)
    edit(files)
    commit = server.repos[REPO].commit(files)
    check_refused(server, cache, message, recovers=False)
    check_refused(server, cache, message, commit, recovers=False)


def test_pickled_files_are_not_even_fetched(server, cache):
    files = {**server.files}
    pickled_instead(files)
    server.repos[REPO].commit(files)
    with pytest.raises(WeightsError, match="pickled"):
        Augmenter.from_pretrained(REPO, cache_dir=cache)
    assert not any("pytorch_model.bin" in path for _, path in server.log)


@pytest.mark.parametrize("revision", [None, "0" * 40, "no-such-branch"])
@pytest.mark.parametrize("repo", [REPO, "org/none"])
def test_what_does_not_exist_is_named(server, cache, repo, revision):
    if repo == REPO and revision is None:
        server.repos[REPO].refs = {"other": ZERO}
    message = "no such repository" if repo != REPO else "no such (branch, tag or commit|file)"
    with pytest.raises(WeightsError, match=f"{repo}.*{message}"):
        Augmenter.from_pretrained(repo, revision=revision, cache_dir=cache)


@pytest.mark.parametrize("pinned", [False, True], ids=["main", "commit"])
def test_refused_connection_is_answered_at_once(server, cache, monkeypatch, pinned):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        point_client_to(monkeypatch, f"http://127.0.0.1:{taken.getsockname()[1]}")
        check_refused(
            server, cache, "could not be reached.*local folder", server.head if pinned else None, recovers=False
        )
    point_client_to(monkeypatch, "no address")
    check_refused(server, cache, "HF_ENDPOINT", recovers=False)


def test_a_hub_that_never_answers_is_given_up_within_ten_seconds(server, cache, monkeypatch):
    monkeypatch.undo()  # the limits as they are
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    point_client_to(monkeypatch, server.url)
    server.fault = lambda method, path: Fault(silent=True)
    begin = time.perf_counter()
    with pytest.raises(WeightsError, match=r"org/aug.*did not answer.*check network"):
        Augmenter.from_pretrained(REPO, cache_dir=cache)
    assert time.perf_counter() - begin < 9.5


def test_name_resolution_that_never_ends_is_given_up(server, cache, monkeypatch):
    import threading

    hold = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: hold.wait(30))
    try:
        check_refused(server, cache, "did not answer|no answer within", recovers=False)
    finally:
        hold.set()


@pytest.mark.parametrize("token", [True, "line\nbreak"])
def test_token_that_cannot_be_sent_is_refused(server, cache, token):
    with pytest.raises(WeightsError, match=REPO):
        Augmenter.from_pretrained(REPO, token=token, cache_dir=cache)


@pytest.mark.parametrize("revision", ["", "../../main", "/main", "a..b"])
def test_impossible_revision_is_refused(server, cache, revision):
    with pytest.raises(ValueError, match="revision must be"):
        Augmenter.from_pretrained(REPO, revision=revision, cache_dir=cache)


@pytest.mark.parametrize("name", ["org/a--b", "org/a..b", "org/name.git", f"org/{'a' * 99}", "-org/a"])
def test_impossible_repository_is_refused_without_a_request(server, cache, name):
    with pytest.raises(ValueError, match=r"repository|called"):
        Augmenter.from_pretrained(name, cache_dir=cache)
    assert server.log == []


# Faults of the cache

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
