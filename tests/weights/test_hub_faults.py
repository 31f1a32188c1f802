"""What happens when reading from a Hub fails: one documented error in time, and no damage that stays."""

import json
import pickle
import socket
import time

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save as to_safetensors

from learned_aug import Augmenter, WeightsError
from learned_aug.weights.files import CONFIG_NAME, WEIGHTS_NAME
from tests.weights.fake_hub import Fault
from tests.weights.loads import CONFIG, HTML, REPO, ZERO, at, check_refused, flip, point_client_to

# The client's own upload of large files uses a form of its HTTP library that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


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
