import importlib
import inspect
import pickle
import subprocess
import sys

import pytest

import learned_aug
from learned_aug.fit import pretrain


@pytest.mark.parametrize("module", ["learned_aug", "learned_aug.fit"])
def test_every_public_name_exists_and_is_documented(module):
    module = importlib.import_module(module)
    for name in module.__all__:
        value = getattr(module, name)
        assert value.__doc__ or not (inspect.isclass(value) or inspect.isfunction(value)), name


def test_fit_is_a_function_and_its_subpackage_still_imports():
    assert inspect.isfunction(learned_aug.fit)
    assert list(inspect.signature(learned_aug.fit).parameters)[:3] == ["model", "train", "val"]
    assert pickle.loads(pickle.dumps(learned_aug.fit)) is learned_aug.fit
    assert callable(pretrain)


def test_both_spellings_of_fit_work_in_a_fresh_process():
    code = (
        "import learned_aug, learned_aug.fit\n"
        "from learned_aug.fit import pretrain, fit\n"
        "from learned_aug import fit as f\n"
        "assert callable(learned_aug.fit) and f is fit"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_does_not_load_matplotlib():
    code = "import sys, learned_aug.cli; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
