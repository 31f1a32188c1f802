"""Model cards: they state the facts, and the Hub's own parser reads them."""

import dataclasses
from importlib.metadata import version

import pytest
import torch
from huggingface_hub import ModelCard

from learned_aug import Augmenter, CardFacts, CardResult
from learned_aug.weights import files as weights
from learned_aug.weights.card import published
from learned_aug.weights.files import CONFIG_NAME, WEIGHTS_NAME
from tests.weights.fake_hub import sha256
from tests.weights.loads import CONFIG

# The client's own upload of large files uses a form of its HTTP library that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


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
    Augmenter(CONFIG).save_pretrained(tmp_path, card=FACTS)
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.license, data.library_name, data.datasets) == ("apache-2.0", "learned-aug", ["ylecun/mnist"])
    assert data.model_name == tmp_path.name
    (shown,) = data.eval_results  # the control's error is not the model's
    assert (shown.task_type, shown.dataset_type) == ("image-classification", "ylecun/mnist")
    assert (shown.metric_type, shown.metric_value) == ("error", 2.5)
    assert shown.metric_name == "Test error in percent, mean of 5 runs, trained with crops, fitted"


@pytest.mark.parametrize("lacking", [{"results": ()}, {"datasets": ()}, {"datasets": ("a/b", "c/d")}], ids=str)
def test_card_header_states_no_figure_that_has_no_data_set(tmp_path, lacking):
    Augmenter(CONFIG).save_pretrained(tmp_path, card=dataclasses.replace(FACTS, **lacking))
    assert ModelCard.load(tmp_path / "README.md").data.eval_results is None


def test_header_of_a_published_folder_has_the_name_of_its_repository(tmp_path):
    Augmenter(CONFIG).save_pretrained(tmp_path / "mine", card=FACTS)
    card = ModelCard(published(tmp_path / "mine", "org/aug")["README.md"].decode())
    assert card.data.model_name == "aug"
    assert [shown.metric_value for shown in card.data.eval_results] == [2.5]
    assert "\n# aug\n" in card.text


def test_pushed_card_names_the_repository_and_a_card_that_was_there_stays(server):
    server.augmenter.push_to_hub("me/mine")
    repo = server.repos["me/mine"]
    first = repo.files("main")["README.md"].decode()
    assert 'from_pretrained("me/mine", p=0.5)' in first
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
