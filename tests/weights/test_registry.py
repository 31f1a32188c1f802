import importlib.resources
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from learned_aug import Augmenter, AugmenterConfig, LearnedAugment, WeightsError, list_pretrained
from learned_aug.weights import files as weights
from learned_aug.weights import hub, registry
from learned_aug.weights.files import CONFIG_NAME, WEIGHTS_NAME
from learned_aug.weights.registry import HubRepo, Pretrained, resolve

CONFIG = AugmenterConfig(channels=1, size=8, tau_dim=8, width=4)
ROOT = Path(registry.__file__).parents[1]


def entry(files, **changes):
    values = {
        "name": "digits-cnn",
        "data": "MNIST",
        "classifier": "four convolutions",
        "bytes": sum(map(len, files.values())),
        "license": "Apache-2.0",
        "errors": {"fitted": 2.5, "untrained control": 2.625},
        "seeds": 5,
        "repo_id": "org/digits-cnn",
        "revision": "a" * 40,
        "config_sha256": weights.sha256(files[CONFIG_NAME]),
        "weights_sha256": weights.sha256(files[WEIGHTS_NAME]),
    }
    return Pretrained(**{**values, **changes})


@pytest.fixture
def augmenter():
    return Augmenter(CONFIG)


@pytest.fixture
def files(augmenter):
    return weights.encode(CONFIG, augmenter.state_dict())


@pytest.fixture
def package(tmp_path, monkeypatch, files):
    """An installed package, still without a bundle, and one name in the registry."""
    package = tmp_path / "site" / "learned_aug"
    package.mkdir(parents=True)
    monkeypatch.setattr(importlib.resources, "files", lambda name: package)
    monkeypatch.setattr(registry, "PRETRAINED", (entry(files),))
    return package


@pytest.fixture
def no_network(monkeypatch):
    """Fail the test that opens a socket or asks for an address."""

    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def same(one, two):
    one, two = one.state_dict(), two.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


# Names


NAMES = {  # what a string or path means
    "digits-cnn": "digits-cnn",
    "org/name": HubRepo("org/name", None),
    "hf-hub:org/name": HubRepo("org/name", None),
    "./folder": Path("folder"),
    "../folder": Path("../folder"),
    "/org/name": Path("/org/name"),
    "~/folder": Path("~/folder").expanduser(),
    ".": Path(),
    "..": Path(".."),
    "local-dir:folder": Path("folder"),
    "local-dir:org/name": Path("org/name"),
    "local-dir:~/folder": Path("~/folder").expanduser(),
    "local-dir:digits-cnn": Path("digits-cnn"),
    Path("org/name"): Path("org/name"),
    Path("digits-cnn"): Path("digits-cnn"),
}
OTHERS = [
    "",
    "digit-cnn",
    "org/name/more",
    "hf-hub:name",
    "hf-hub:./a",
    "local-dir:",
    "http://a/b",
    "a b",
    "C:\\weights",
]


@pytest.mark.parametrize(("source", "expected"), NAMES.items())
def test_names_mean_what_they_look_like(package, source, expected):
    found = resolve(source)
    assert (found.name if isinstance(found, Pretrained) else found) == expected


@pytest.mark.parametrize("source", [name for name in NAMES if name != "org/name"])
def test_a_folder_of_that_name_changes_nothing(package, tmp_path, monkeypatch, source):
    for name in ("digits-cnn", "org/name"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    test_names_mean_what_they_look_like(package, source, NAMES[source])


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_name_of_the_hub_and_of_a_folder_is_refused_with_both_spellings(package, tmp_path, monkeypatch, revision):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"'org/name' could mean .*'hf-hub:org/name' or './org/name'"):
        Augmenter.from_pretrained("org/name", revision=revision)


@pytest.mark.parametrize("folder", [*NAMES, *OTHERS])
def test_what_is_saved_under_a_name_is_read_under_it_or_refused(
    package, tmp_path, monkeypatch, augmenter, folder, no_network
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if folder == "/org/name":
        folder = f"{tmp_path}{folder}"
    before = sorted(tmp_path.rglob("*"))
    if isinstance(NAMES.get(folder), Path) or str(folder).startswith("/"):
        augmenter.save_pretrained(folder)
        assert same(Augmenter.from_pretrained(folder), augmenter)
        return
    with pytest.raises(ValueError, match=r"would not read a local folder.*save to './") as caught:
        augmenter.save_pretrained(folder)
    assert f"'./{folder}'" in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
    augmenter.save_pretrained(f"./{folder}")
    assert same(Augmenter.from_pretrained(f"./{folder}"), augmenter)


def test_without_a_home_directory_its_names_are_refused(monkeypatch, augmenter):
    def unknown(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", unknown)
    for call in (Augmenter.from_pretrained, augmenter.save_pretrained):
        with pytest.raises(ValueError, match="~/weights"):
            call("~/weights")


def test_revision_belongs_to_the_hub():
    assert resolve("org/name", revision="v1") == HubRepo("org/name", "v1")
    with pytest.raises(ValueError, match="revision='v1' is for Hub repositories"):
        resolve("./folder", revision="v1")


@pytest.mark.parametrize("source", OTHERS)
def test_other_names_are_refused_with_those_that_exist(package, source):
    with pytest.raises(ValueError, match=r"digits-cnn.*'org/name'.*'./folder'"):
        resolve(source)


def test_a_wrong_name_is_answered_with_the_closest_and_a_folder_of_that_name(package, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digit-cnn").mkdir()
    with pytest.raises(ValueError, match=r"did you mean 'digits-cnn'\?.*'./digit-cnn'"):
        Augmenter.from_pretrained("digit-cnn")


def test_without_weights_no_name_is_listed(monkeypatch):
    monkeypatch.setattr(registry, "PRETRAINED", ())
    assert list_pretrained() == []
    with pytest.raises(ValueError, match="none in this release"):
        LearnedAugment.from_pretrained("cifar10-wrn")


def test_every_listed_name_has_its_weights_and_loads(no_network):
    for listed in list_pretrained():
        folder = registry.bundle(listed.name)
        assert folder is not None, listed.name
        assert listed.bytes == sum((folder / name).stat().st_size for name in weights.NAMES)
        card = (folder / "README.md").read_text()
        assert all(f"{error:.2f} ±" in card for error in listed.errors.values())
        assert f"| {listed.seeds} |" in card
        header = ModelCard(card).data
        assert header.model_name == listed.name
        own = next(iter(listed.errors.values()))
        assert [round(result.metric_value, 2) for result in header.eval_results] == [own]
        assert isinstance(Augmenter.from_pretrained(listed.name), Augmenter)
    assert len({listed.name for listed in list_pretrained()}) == len(list_pretrained())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "Digits CNN"),
        ("name", "org/digits"),
        ("repo_id", "digits"),
        ("revision", "main"),
        ("revision", "A" * 40),
        ("config_sha256", "a" * 40),
        ("weights_sha256", ""),
        ("errors", {"fitted": 101.0}),
        ("errors", {"fitted": float("nan")}),
        ("errors", {}),
        ("seeds", 0),
        ("seeds", -1),
    ],
)
def test_an_entry_that_pins_or_measures_nothing_is_refused(files, field, value):
    with pytest.raises(ValueError, match=field):
        entry(files, **{field: value})


@pytest.mark.parametrize("values", [{"repo_id": None}, {"revision": None}, {"repo_id": None, "revision": "main"}])
def test_an_entry_is_published_at_a_commit_or_not_at_all(files, values):
    assert entry(files, repo_id=None, revision=None).repo_id is None
    with pytest.raises(ValueError, match=r"repo_id|revision"):
        entry(files, **values)


def test_an_entry_reads_well(files):
    assert str(entry(files)) == (
        "digits-cnn: MNIST, four convolutions, test error 2.50 % (untrained control 2.62 %) over 5 seeds, 0.0 MiB, "
        "Apache-2.0"
    )
    assert "four convolutions, test error 2.50 % over 5 seeds, 0.0" in str(entry(files, errors={"fitted": 2.5}))
    assert "test error not measured" in str(entry(files, errors={}, seeds=0))
    assert len({entry(files), entry(files)}) == 1


# The bundled copy


def in_wheel(package):
    return package / "pretrained"


def in_clone(package):
    (package.parent / "pyproject.toml").write_text("")
    return package.parent / "pretrained"


@pytest.mark.parametrize("place", [in_wheel, in_clone])
def test_bundled_weights_load_without_a_socket_or_the_hub_client(package, augmenter, place, no_network, monkeypatch):
    augmenter.save_pretrained(place(package) / "digits-cnn")
    for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # importing it would fail
    assert same(Augmenter.from_pretrained("digits-cnn"), augmenter)
    assert same(LearnedAugment.from_pretrained("digits-cnn").augmenter, augmenter)


def test_folder_beside_an_installed_package_is_no_bundle(package, augmenter):
    augmenter.save_pretrained(package.parent / "pretrained" / "digits-cnn")
    assert registry.bundle("digits-cnn") is None


@pytest.mark.parametrize("name", weights.NAMES)
@pytest.mark.parametrize(
    "damage", [lambda d: d[:-1], lambda d: d + b" ", lambda d: d[:-2] + bytes([d[-2] ^ 1]) + d[-1:]]
)
def test_damaged_bundle_is_refused_with_the_published_copy_as_remedy(package, augmenter, name, damage, no_network):
    augmenter.save_pretrained(in_wheel(package) / "digits-cnn")
    path = in_wheel(package) / "digits-cnn" / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(WeightsError, match=rf"{name} has SHA-256.*from_pretrained\('org/digits-cnn', revision='aaa"):
        Augmenter.from_pretrained("digits-cnn")


def test_bundle_without_a_file_is_refused(package, augmenter, no_network):
    augmenter.save_pretrained(in_wheel(package) / "digits-cnn")
    (in_wheel(package) / "digits-cnn" / WEIGHTS_NAME).unlink()
    with pytest.raises(WeightsError, match=f"has no {WEIGHTS_NAME}"):
        Augmenter.from_pretrained("digits-cnn")


def test_bundled_weights_load_fast(tmp_path, monkeypatch):
    augmenter = Augmenter()  # of the default size
    files = weights.encode(augmenter.config, augmenter.state_dict())
    monkeypatch.setattr(registry, "PRETRAINED", (entry(files),))
    monkeypatch.setattr(importlib.resources, "files", lambda name: tmp_path)
    augmenter.save_pretrained(tmp_path / "pretrained" / "digits-cnn")
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        Augmenter.from_pretrained("digits-cnn")
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 0.15  # the bar is .05 on a free machine


@pytest.fixture
def unpublished(monkeypatch, files):
    monkeypatch.setattr(registry, "PRETRAINED", (entry(files, repo_id=None, revision=None),))


def test_unpublished_weights_load_from_the_bundle_and_nowhere_else(package, unpublished, augmenter, no_network):
    with pytest.raises(WeightsError, match=r"'digits-cnn' come with the package.*lacks them; install"):
        Augmenter.from_pretrained("digits-cnn")
    augmenter.save_pretrained(in_wheel(package) / "digits-cnn")
    assert same(Augmenter.from_pretrained("digits-cnn"), augmenter)
    (in_wheel(package) / "digits-cnn" / CONFIG_NAME).write_text("{}")
    with pytest.raises(WeightsError, match=r"install learned-aug again$"):
        Augmenter.from_pretrained("digits-cnn")


# Without a bundle: the pinned commit on the Hub


def test_without_a_bundle_the_pinned_commit_is_asked_for(package, augmenter, files, monkeypatch):
    asked = {}

    def fetch(repo_id, names, **kwargs):
        asked.update(kwargs, repo_id=repo_id)
        return hub.Fetched("a" * 40, files)

    monkeypatch.setattr(hub, "fetch", fetch)
    assert same(Augmenter.from_pretrained("digits-cnn", cache_dir="cache"), augmenter)
    assert asked["repo_id"] == "org/digits-cnn"
    assert asked["revision"] == "a" * 40
    assert asked["pins"] == {name: weights.sha256(data) for name, data in files.items()}
    assert asked["cache_dir"] == "cache"


# The import


def python(code):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    ).stdout


def test_import_and_local_folders_do_not_load_the_hub_client(tmp_path, augmenter):
    augmenter.save_pretrained(tmp_path)
    python(
        "import sys, pathlib, learned_aug; from learned_aug import Augmenter\n"
        f"Augmenter.from_pretrained(pathlib.Path({str(tmp_path)!r})).save_pretrained({str(tmp_path / 'more')!r})\n"
        "assert 'huggingface_hub' not in sys.modules"
    )


def test_import_adds_less_than_a_tenth_to_that_of_torchvision():
    code = (
        "import time; a = time.perf_counter(); import torchvision; from torchvision.transforms import v2\n"
        "b = time.perf_counter(); import learned_aug; print((time.perf_counter() - b) / (b - a))"
    )
    assert min(float(python(code)) for _ in range(2)) < 0.1
