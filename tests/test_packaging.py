"""The wheel and the editable install both find the bundled weights."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.version import Version

from learned_aug import Augmenter, AugmenterConfig
from learned_aug.weights import files as weights
from learned_aug.weights.registry import Pretrained

ROOT = Path(__file__).parents[1]
NAME = "digits-test"
LOAD = f"""
import sys

def refuse(event, args):
    if event.startswith("socket."):
        raise AssertionError(event)

sys.addaudithook(refuse)
import torch
import learned_aug
from learned_aug import LearnedAugment, list_pretrained

assert {NAME!r} in [entry.name for entry in list_pretrained()]
augment = LearnedAugment.from_pretrained({NAME!r})
assert augment(torch.rand(1, 8, 8)).shape == (1, 8, 8)
print(learned_aug.__file__)
"""


@pytest.fixture
def sources(tmp_path):
    """A copy of what a build reads."""
    copy = tmp_path / "sources"
    for name in ("learned_aug", "pretrained"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "hatch_build.py"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture
def with_weights(sources):
    """The same with one more set of weights, which the table knows."""
    augmenter = Augmenter(AugmenterConfig(channels=1, size=8, tau_dim=8, width=4))
    augmenter.save_pretrained(sources / "pretrained" / NAME)
    files = weights.encode(augmenter.config, augmenter.state_dict())
    entry = Pretrained(
        name=NAME,
        data="MNIST",
        classifier="none",
        bytes=sum(map(len, files.values())),
        license="apache-2.0",
        errors={},
        seeds=0,
        repo_id="org/test",
        revision="a" * 40,
        config_sha256=weights.sha256(files["config.json"]),
        weights_sha256=weights.sha256(files["model.safetensors"]),
    )
    with (sources / "learned_aug" / "weights" / "registry.py").open("a") as table:
        table.write(f"\nPRETRAINED = (*PRETRAINED, {entry!r})\n")
    return sources


def build(sources, hook):
    """Files of the wheel that the build backend makes."""
    pytest.importorskip("hatchling")
    out = sources.parent / "wheel"
    code = f"import sys, hatchling.build as b; print(b.{hook}(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, out], cwd=sources, check=True, capture_output=True, text=True)
    unpacked = sources.parent / "site"
    with zipfile.ZipFile(out / done.stdout.split()[-1]) as wheel:
        wheel.extractall(unpacked)
    return unpacked


def load(path, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(path)}
    done = subprocess.run(
        [sys.executable, "-c", LOAD], cwd=tmp_path, check=True, env=environment, capture_output=True, text=True
    )
    assert Path(done.stdout.strip()).parents[1] == path


def test_wheel_carries_the_bundled_weights_and_loads_them_without_a_socket(with_weights, tmp_path):
    site = build(with_weights, "build_wheel")
    assert sorted(path.name for path in (site / "learned_aug" / "pretrained" / NAME).iterdir()) == sorted(weights.NAMES)
    load(site, tmp_path)


def test_editable_install_reads_them_from_the_sources(with_weights, tmp_path):
    site = build(with_weights, "build_editable")
    (pth,) = site.glob("*.pth")
    assert pth.read_text().strip() == str(with_weights)
    assert not (site / "learned_aug").exists()  # no second copy that could grow old
    load(with_weights, tmp_path)


def test_wheel_can_be_built_while_there_are_no_weights(sources):
    for path in (sources / "pretrained").iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    site = build(sources, "build_wheel")
    assert (site / "learned_aug" / "transform.py").is_file()
    assert [path.name for path in (site / "learned_aug" / "pretrained").iterdir()] == ["README.md"]


def test_source_distribution_carries_the_weights(with_weights):
    pytest.importorskip("hatchling")
    code = "import hatchling.build as b, sys, tarfile\nf = b.build_sdist(sys.argv[1])\n"
    code += "print(*tarfile.open(sys.argv[1] + '/' + f).getnames())"
    done = subprocess.run(
        [sys.executable, "-c", code, with_weights.parent / "sdist"],
        cwd=with_weights,
        check=True,
        capture_output=True,
        text=True,
    )
    assert any(name.endswith(f"pretrained/{NAME}/model.safetensors") for name in done.stdout.split())


def test_oldest_versions_that_are_tested_are_those_that_the_project_promises():
    project = (ROOT / "pyproject.toml").read_text()
    bounds = dict(re.findall(r'"([\w-]+)(?:\[\w+\])?>=([\d.]+)"', project))
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / ".ci" / "oldest.txt").read_text(), flags=re.M))
    needed = re.search(r"^dependencies = \[(.*?)^\]", project, flags=re.M | re.S)[1]
    assert [name for name in re.findall(r'"([\w-]+)', needed) if name not in pins] == []
    differing = [name for name in pins.keys() & bounds.keys() if Version(pins[name]) != Version(bounds[name])]
    assert differing == []
