"""The documentation: generated tables are those of the committed figures, links lead somewhere, snippets parse."""

import ast
import importlib
import importlib.util
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md") if not {"_build", "_examples", "gallery"} & set(p.parts))
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)\s]+)\)")
TOCTREE = re.compile(r"```\{toctree\}\n(.*?)```", re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
GENERATED = {"gallery/index"}


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location("report", ROOT / "benchmarks" / "report.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")  # as for a script there
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(tmp_path):
    """A copy of the pages, to be changed."""
    for page in PAGES:
        target = tmp_path / page.relative_to(DOCS)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(page, target)
    return tmp_path


def slugs(page):
    """Anchors of a page's headings, as myst-parser makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_no_page_is_stale(report, capsys):
    assert report.main(["--check"]) == 0, capsys.readouterr().err


def test_every_table_is_shown(report):
    shown = {name for page in [*PAGES, ROOT / "README.md"] for name in report.BEGIN.findall(page.read_text("utf-8"))}
    assert shown == set(report.TABLES)


def test_a_stale_page_is_reported_by_its_name_and_rewritten(report, copy, capsys):
    page = copy / "guides" / "influence.md"
    fresh = page.read_text("utf-8")
    table = report.once("influence-damping")
    page.write_text(fresh.replace(table, table.replace("±", "+-", 1)), "utf-8")
    assert report.main(["--check", "--docs", str(copy)]) == 1
    said = capsys.readouterr().err
    assert said == "guides/influence.md is stale; run python benchmarks/report.py\n"
    assert report.main(["--docs", str(copy)]) == 0
    assert page.read_text("utf-8") == fresh


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- begin: no-such-table -->\n<!-- end: no-such-table -->", "faq.md: no table is called 'no-such-table'"),
        ("<!-- begin: directions -->\n", "faq.md: the marker of 'directions' has no end"),
    ],
)
def test_markers_that_do_not_fit_are_reported_with_their_page(report, copy, capsys, text, said):
    (copy / "faq.md").write_text(text, "utf-8")
    assert report.main(["--check", "--docs", str(copy)]) == 1
    assert said in capsys.readouterr().err


def test_captions_name_what_made_the_figures(report):
    for name in report.TABLES:
        *_, last = report.once(name).strip().splitlines()
        if last == "*Published figures; not run here.*":
            continue
        assert re.fullmatch(r"\*.*Command: `python benchmarks/.*Device: .*torch 2\..*\*", last), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_internal_links_resolve(page):
    for link in LINK.findall(page.read_text("utf-8")):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{page.name} links to {link}"
        assert not anchor or anchor in slugs(target), f"{page.name} links to {link}, which has no such heading"


def test_every_page_is_in_the_table_of_contents():
    text = (DOCS / "index.md").read_text("utf-8")
    entries = {e for tree in TOCTREE.findall(text) for e in tree.split("\n") if e and not e.startswith(":")}
    assert entries - GENERATED == {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES} - {"index"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_snippets_parse_and_import_names_that_exist(page):
    for snippet in PYTHON.findall(page.read_text("utf-8")):
        for node in ast.walk(ast.parse(snippet)):
            match node:
                case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] == "learned_aug":
                    for name in names:
                        assert hasattr(importlib.import_module(module), name.name), f"{module} has no {name.name}"
                case ast.Attribute(value=ast.Name(id="learned_aug"), attr=name):
                    assert hasattr(importlib.import_module("learned_aug"), name), f"learned_aug has no {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_pages_name_no_folder_of_the_machine_that_made_them(page):
    assert not re.search(r"(?<![\w.])/(work|tmp|home|root)/", page.read_text("utf-8"))
