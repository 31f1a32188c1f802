"""Which module may import which, read from the source."""

import ast
from pathlib import Path

import pytest

import learned_aug

ROOT = Path(learned_aug.__file__).parent
# Each module, and the modules it may import. `learned_aug` itself, the public face, may import any.
ALLOWED = {
    "functional": set(),
    "nets": {"functional"},
    "weights": {"nets"},
    "card": {"nets", "weights"},
    "hub": {"weights"},
    "registry": {"nets", "weights", "hub"},
    "augmenter": {"functional", "nets", "weights", "card", "hub", "registry"},
    "transform": {"functional", "nets", "augmenter"},
    "fit.events": set(),
    "fit.data": set(),
    "fit.rng": set(),
    "fit.stream": {"fit.data", "fit.rng"},
    "fit.checkpoint": {"weights"},
    "fit.parallel": set(),
    "fit.head": set(),
    "fit.problem": {"fit.events", "fit.head", "fit.parallel"},
    "fit.ihvp": {"fit.problem"},
    "fit.influence": {"fit.head", "fit.problem"},
    "fit.config": {"fit.ihvp"},
    "fit.diagnostics": {"augmenter", "fit.head"},
    "fit.fingerprint": {"fit.checkpoint", "fit.data", "fit.ihvp", "fit.rng", "fit.stream"},
    "fit.training": {"augmenter"} | {f"fit.{m}" for m in ["config", "events", "head", "parallel", "problem"]},
    "fit.run": {"augmenter"} | {f"fit.{m}" for m in ["checkpoint", "events", "parallel", "stream", "training"]},
    "fit.gan": {"augmenter"}
    | {f"fit.{m}" for m in ["config", "diagnostics", "events", "head", "parallel", "rng", "training"]},
    "fit.s_val": {f"fit.{m}" for m in ["config", "events", "head", "ihvp", "influence", "problem"]},
    "fit.choose": {"augmenter", "fit.config", "fit.data", "fit.head", "fit.influence", "fit.s_val"},
    "fit.dropout": {"augmenter", "nets"}
    | {f"fit.{m}" for m in ["config", "diagnostics", "events", "head", "influence", "parallel", "problem"]}
    | {f"fit.{m}" for m in ["rng", "s_val", "training"]},
    "fit.maximize": {"augmenter"}
    | {f"fit.{m}" for m in ["config", "diagnostics", "events", "head", "influence", "parallel", "problem"]}
    | {f"fit.{m}" for m in ["rng", "s_val", "training"]},
    "fit.retrain": {"fit.choose", "fit.config", "fit.data", "fit.events", "fit.head"},
    "fit.compare": {f"fit.{m}" for m in ["choose", "config", "data", "events", "retrain", "rng"]},
    "fit.stages": {"augmenter", "nets"}
    | {f"fit.{m}" for m in ["config", "data", "diagnostics", "dropout", "events", "gan", "head", "ihvp", "influence"]}
    | {f"fit.{m}" for m in ["maximize", "parallel", "problem", "rng", "s_val", "stream", "training"]},
    "fit.pipeline": {"augmenter", "nets"}
    | {f"fit.{m}" for m in ["checkpoint", "config", "data", "events", "fingerprint", "head", "ihvp", "parallel"]}
    | {f"fit.{m}" for m in ["rng", "run", "stages"]},
    "viz": {"augmenter", "fit.events"},
    "demo": {"augmenter", "fit", "nets", "transform", "viz", "weights"},
    "report": {"card", "fit", "viz", "weights"},
    "folder": {"fit.data"},
    "cli_fit": {"card", "fit", "folder", "nets", "report", "viz", "weights"},
    "cli": {"augmenter", "card", "cli_fit", "demo", "fit", "hub", "registry", "viz", "weights"},
    "__main__": {"cli"},
}


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if not name.endswith("__init__"):
            yield name, path


def imported(name, path):
    """Modules of this package that a source file imports, anywhere in it."""
    package = ["learned_aug", *name.split(".")[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            prefix = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (prefix, node.module) if part)
            targets = [f"{base}.{a.name}" if base == "learned_aug" else base for a in node.names]
        else:
            continue
        yield from (t.removeprefix("learned_aug.") for t in targets if t.startswith("learned_aug."))


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_module_imports_only_what_its_layer_allows(name, path):
    assert name in ALLOWED, f"give {name} its place in ALLOWED"
    assert set(imported(name, path)) <= ALLOWED[name]


def test_allowed_imports_have_no_cycle():
    order = list(ALLOWED)
    for name, targets in ALLOWED.items():
        assert all(t == "fit" or order.index(t) < order.index(name) for t in targets), name
