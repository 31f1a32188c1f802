import json
import os
import stat

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from learned_aug import Augmenter, AugmenterConfig, LearnedAugment, WeightsError
from learned_aug.weights.files import CONFIG_NAME, WEIGHTS_NAME, encode, write_atomic

CONFIG = AugmenterConfig(channels=1, size=8, tau_dim=8, width=4, mean=(0.1,), std=(0.3,))


@pytest.fixture
def folder(tmp_path):
    Augmenter(CONFIG).save_pretrained(tmp_path / "weights")
    return tmp_path / "weights"


def test_round_trip_gives_the_same_config_and_images(tmp_path):
    augmenter = Augmenter(CONFIG)
    images = torch.rand(4, 1, 8, 8)
    augmenter.calibrate_(images)
    augmenter.save_pretrained(tmp_path)
    loaded = Augmenter.from_pretrained(tmp_path)
    noise = augmenter.draw_noise(4)
    assert loaded.config.to_dict() == CONFIG.to_dict()
    assert torch.equal(loaded(images, noise), augmenter(images, noise))
    assert LearnedAugment.from_pretrained(tmp_path).augmenter.config == loaded.config


def test_saving_leaves_two_readable_files_and_no_others(folder):
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]
    mask = os.umask(0)
    os.umask(mask)
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o666 & ~mask for p in folder.iterdir())


def test_loaded_weights_survive_the_file(folder):
    loaded = Augmenter.from_pretrained(folder)
    before = {name: t.clone() for name, t in loaded.state_dict().items()}
    (folder / WEIGHTS_NAME).write_bytes(b"")
    assert all(torch.equal(t, before[name]) for name, t in loaded.state_dict().items())


def test_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(handle):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_process_that_dies_while_it_saves_leaves_no_config_of_other_weights(folder, monkeypatch):
    augmenter = Augmenter.from_pretrained(folder)

    def dies(source, target):
        if target.name == "config.json":
            raise KeyboardInterrupt
        return replace(source, target)

    replace = os.replace
    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        augmenter.save_pretrained(folder)
    with pytest.raises(WeightsError, match=r"has no config.json"):
        Augmenter.from_pretrained(folder)


def test_folder_that_cannot_be_made_raises_and_writes_nothing(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        Augmenter(CONFIG).save_pretrained(tmp_path / "file" / "weights")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=name):
        Augmenter.from_pretrained(folder)


def test_pickled_weights_are_named_and_not_loaded(folder):
    (folder / WEIGHTS_NAME).rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"no model.safetensors, only \['pytorch_model.bin'\].*never loaded"):
        Augmenter.from_pretrained(folder)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=st.sampled_from(["cut", "random", "append", "html"]), where=st.integers(0, 10_000), junk=st.binary())
@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_damaged_file_is_refused_or_read_exactly(folder, name, damage, where, junk):
    path = folder / name
    good = path.read_bytes()
    expected = Augmenter.from_pretrained(folder).state_dict()
    bad = {
        "cut": good[: where % len(good)],
        "random": junk,
        "append": good + junk,
        "html": b"<!doctype html><html>404</html>",
    }[damage]
    path.write_bytes(bad)
    try:
        state, message = Augmenter.from_pretrained(folder).state_dict(), None
    except WeightsError as error:
        state, message = None, str(error)
    path.write_bytes(good)
    if message is not None:
        assert str(path) in message
    else:  # white space after the JSON, or nothing appended
        assert all(torch.equal(state[k], expected[k]) for k in expected)


def edit(folder, change):
    state = load_file(folder / WEIGHTS_NAME)
    state = {name: tensor.clone() for name, tensor in state.items()}
    change(state, next(iter(state)))
    save_file(state, folder / WEIGHTS_NAME)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, k: s.pop(k), "lacks"),
        (lambda s, k: s.update(more=torch.zeros(1)), "unexpected"),
        (lambda s, k: s.update({k: s[k][..., :1].contiguous()}), "expected"),
        (lambda s, k: s.update({k: s[k].to(torch.float8_e4m3fn)}), "float8"),
        (lambda s, k: s.update({k: torch.full_like(s[k], 1e300, dtype=torch.float64)}), "infinity"),
        (lambda s, k: s.update({k: s[k].long()}), "int64"),
        (lambda s, k: s[k].view(-1)[:1].fill_(float("nan")), "NaN"),
    ],
    ids=["missing key", "extra key", "shape", "float8", "too large", "integer", "nan"],
)
def test_tensors_that_do_not_fit_are_refused(folder, change, message):
    edit(folder, change)
    with pytest.raises(WeightsError, match=message):
        Augmenter.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "got 99"),
        ({"hue": 1}, "unknown keys"),
        ({"size": "big"}, "size"),
        ({"std": "3"}, "std must be 1 or"),
    ],
)
def test_config_of_another_release_or_of_wrong_values_is_refused(folder, change, message):
    path = folder / CONFIG_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(WeightsError, match=message):
        Augmenter.from_pretrained(folder)


@pytest.mark.parametrize("change", [{"mean": [10**400]}, {"width": 10**30}, {"warp": 10**400}, {"tau_dropout": None}])
def test_values_that_no_network_has_are_refused_as_damage(folder, change):
    path = folder / CONFIG_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(WeightsError):
        Augmenter.from_pretrained(folder)


def test_config_that_is_no_object_is_refused(folder):
    (folder / CONFIG_NAME).write_text("[]")
    with pytest.raises(WeightsError, match="object"):
        Augmenter.from_pretrained(folder)


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_save_accepts_load_reads_as_float32(tmp_path, dtype):
    augmenter = Augmenter(CONFIG).to(dtype)
    augmenter.save_pretrained(tmp_path)
    assert {t.dtype for t in load_file(tmp_path / WEIGHTS_NAME).values()} == {dtype}
    loaded = Augmenter.from_pretrained(tmp_path)
    assert {t.dtype for t in (*loaded.parameters(), *loaded.buffers())} == {torch.float32}
    expected = augmenter.state_dict()
    assert all(torch.equal(t, expected[name].float()) for name, t in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.fill_(float("nan")), "NaN"),
        (lambda t: t.fill_(float("inf")), "infinity"),
        (lambda t: t.to(torch.float8_e4m3fn), "float8"),
        (lambda t: t.to(torch.complex64), "complex64"),
    ],
)
def test_what_load_would_refuse_is_not_saved(tmp_path, change, message):
    state = Augmenter(CONFIG).state_dict()
    name = next(iter(state))
    with pytest.raises(WeightsError, match=f"{name}.*{message}"):
        encode(CONFIG, {**state, name: change(state[name])})


@pytest.mark.parametrize("dtype", DTYPES)
def test_loading_does_not_depend_on_the_default_dtype(folder, dtype):
    expected = Augmenter.from_pretrained(folder)
    torch.set_default_dtype(dtype)
    try:
        loaded = Augmenter.from_pretrained(folder)
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)
    for one, two in zip(
        (*loaded.parameters(), *loaded.buffers()), (*expected.parameters(), *expected.buffers()), strict=True
    ):
        assert one.dtype == torch.float32
        assert torch.equal(one, two)
