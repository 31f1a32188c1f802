"""Settings of the documentation: python -m sphinx -W --keep-going -b html docs docs/_build/html."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported; bars are no output to show

import torch  # noqa: E402

import learned_aug  # noqa: E402

torch.set_num_threads(1)

project = "learned-aug"
author = "learned-aug contributors"
copyright = "learned-aug contributors"
release = version = learned_aug.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "cli_help",
    "docstrings",
    "public_names",
]
root_doc = "index"
exclude_patterns = ["_build", "_ext", "_examples", "sg_execution_times.rst", "gallery/sg_execution_times.rst"]
nitpicky = False
default_role = "code"  # docstrings write names in single backticks

# Nothing is fetched while the pages are built: no intersphinx. Formulas are drawn by the browser of the reader.
html_theme = "furo"
html_title = f"learned-aug {release}"
html_static_path: list[str] = []
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
# The owner may set the address of the repository; without it no page shows one.
if repository := os.environ.get("LEARNED_AUG_REPOSITORY"):
    html_theme_options |= {"source_repository": repository, "source_branch": "main", "source_directory": "docs/"}

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_preprocess_types = False


def stage_examples(source: Path, staged: Path) -> None:
    """Copy the examples to a folder that belongs to the documentation, as sphinx-gallery wants them.

    The gallery writes beside its scripts and needs a title above each docstring; examples are plain scripts, whose
    docstring begins with a sentence. Cells marked `# %% [markdown]` become cells of reStructuredText.
    """
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    (staged / "GALLERY_HEADER.rst").write_text(
        "Examples\n========\n\nEach example is a script of the folder ``examples/`` of the repository; the quick ones "
        "were run when these pages were built.\n"
    )
    for script in sorted(source.glob("*.py")):
        (staged / script.name).write_text(as_gallery(script.read_text("utf-8"), script.stem), "utf-8")
    for folder in (folder for folder in source.iterdir() if folder.is_dir() and any(folder.glob("*.png"))):
        shutil.copytree(folder, staged / folder.name, ignore=shutil.ignore_patterns("augmenter"))


def as_gallery(text: str, name: str) -> str:
    """Return a script whose docstring has a title, and whose cells of Markdown are reStructuredText."""
    first = re.match(r'"""(?P<title>[^\n]+)\n(?P<underline>[=\-~^#]{3,}\n)?', text)
    if first and not first["underline"]:
        title = name.replace("_", " ").capitalize()
        text = f'"""{title}\n{"=" * len(title)}\n\n{text[3:]}'
    cell, out = False, []
    for line in text.split("\n"):
        if line.startswith("# %%"):
            cell = "[markdown]" in line
            line = "# %%" if cell else line
        elif cell and line.startswith("# "):
            line = _as_rst(line)
        out.append(line)
    return "\n".join(out)


def _as_rst(line: str) -> str:
    """Return one comment line of Markdown as reStructuredText."""
    if heading := re.fullmatch(r"# (#+) (.+)", line):
        return f"# {heading[2]}\n# {('=' if len(heading[1]) == 1 else '-') * len(heading[2])}"
    if picture := re.fullmatch(r"# !\[(.*)\]\((.+)\)", line):
        return f"# .. image:: /_examples/{picture[2]}\n#    :alt: {picture[1]}"
    return line.replace("`", "``").replace("````", "``")


# The examples are run in their copy. The walk-through is not: it takes a minute and shows committed pictures.
stage_examples(HERE.parent / "examples", HERE / "_examples")
RUN_WHEN_BUILT = ("use_in_pipeline", "with_logger")  # each takes less than 20 s on one core
sphinx_gallery_conf = {
    "examples_dirs": [str(HERE / "_examples")],
    "gallery_dirs": [str(HERE / "gallery")],
    "filename_pattern": rf"/({'|'.join(RUN_WHEN_BUILT)})\.py$",
    "ignore_pattern": "__init__",
    "abort_on_example_error": False,
    "download_all_examples": False,
    "min_reported_time": 1,
    "show_memory": False,
    "show_signature": False,
    "plot_gallery": os.environ.get("LEARNED_AUG_DOCS_RUN", "1") == "1",
}
