"""What users import: every public name, in whichever order, and nothing that makes them wait."""

import ast
import importlib
import inspect
import pickle
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import learned_aug

ROOT = Path(learned_aug.__file__).parent
PUBLIC = ["learned_aug", *(f"learned_aug.{name}" for name in ("fit", "influence", "training", "weights"))]
MODULES = ["learned_aug", *(module.name for module in pkgutil.walk_packages([str(ROOT)], "learned_aug."))]


def fresh(code):
    """Run code in a process that has imported nothing."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_can_be_imported(name):
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(hasattr(module, public) for public in module.__all__)
    assert set(module.__all__) <= set(dir(module))


def test_all_names_come_by_a_star_import_in_a_fresh_process():
    fresh("from learned_aug import *\nimport learned_aug\nassert set(learned_aug.__all__) <= set(globals())")


def callables(module):
    """Classes, functions and public methods that a module defines and names in __all__."""
    for name in getattr(module, "__all__", []):
        value = getattr(module, name)
        if not (inspect.isclass(value) or inspect.isfunction(value)) or value.__module__ != module.__name__:
            continue
        yield name, value
        for method, member in vars(value).items() if inspect.isclass(value) else ():
            member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if inspect.isfunction(member) and not method.startswith("_"):
                yield f"{name}.{method}", member


@pytest.mark.parametrize("name", [name for name in MODULES if name != "learned_aug.__main__"])
def test_every_public_callable_has_a_docstring_whose_first_line_ends_with_a_period(name):
    for callable_name, value in callables(importlib.import_module(name)):
        first = (inspect.getdoc(value) or "").partition("\n")[0]
        assert first.endswith("."), f"{callable_name}: {first!r}"


def test_fit_is_a_function_and_its_subpackage_still_imports():
    assert inspect.isfunction(learned_aug.fit)
    assert list(inspect.signature(learned_aug.fit).parameters)[:3] == ["model", "train", "val"]
    assert pickle.loads(pickle.dumps(learned_aug.fit)) is learned_aug.fit
    assert sys.modules["learned_aug.fit"].fit is learned_aug.fit


@pytest.mark.parametrize(
    "first",
    [
        "import learned_aug.fit",
        "from learned_aug.fit import FitConfig",
        "import learned_aug.fit as f; assert callable(f)",
        "from learned_aug.fit.pretrain import Pretraining",
        "import learned_aug.training",
        "from learned_aug import fit; assert callable(fit)",
    ],
)
def test_fit_is_the_function_whatever_was_imported_first(first):
    fresh(
        f"{first}\n"
        "import inspect, learned_aug, learned_aug.fit, learned_aug.fit as f\n"
        "from learned_aug import fit\n"
        "from learned_aug.fit import FitConfig, fit as inner\n"
        "assert inspect.isfunction(fit)\n"
        "assert learned_aug.fit is f is fit is inner\n"
        "assert FitConfig is learned_aug.FitConfig"
    )


def test_public_submodules_are_attributes_of_the_package():
    fresh("import learned_aug as a; a.influence.solve, a.training.retrain, a.viz.diversity_grid, a.functional.warp")


def test_unknown_names_are_refused_with_those_that_there_are():
    with pytest.raises(
        AttributeError, match=r"'learned_aug' has no attribute 'Augmentor'; it has AugmentedDataset, .*retrain"
    ):
        learned_aug.Augmentor  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'pretrain'"):
        from learned_aug import pretrain  # noqa: F401


@pytest.mark.parametrize(
    "code",
    [
        "import learned_aug; learned_aug.__version__; dir(learned_aug)",
        "import learned_aug.cli.main",
        "import runpy\n"
        "sys.argv = ['learned-aug', '--help']\n"
        "try:\n    runpy.run_module('learned_aug', run_name='__main__')\n"
        "except SystemExit as end:\n    assert end.code == 0",
    ],
    ids=["import", "command", "help"],
)
def test_importing_and_the_help_wait_for_neither_torch_nor_torchvision(code):
    fresh(f"import sys\n{code}\nassert not {{'torch', 'torchvision', 'numpy'}} & set(sys.modules)")


def test_import_of_all_modules_does_not_load_matplotlib():
    names = [name for name in MODULES if name != "learned_aug.__main__"]
    fresh(
        f"import importlib, sys\nfor n in {names}: importlib.import_module(n)\nassert 'matplotlib' not in sys.modules"
    )


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_longer_than_450_lines_and_each_says_what_it_holds(path):
    text = path.read_text()
    assert text.count("\n") <= 450
    assert ast.get_docstring(ast.parse(text))
