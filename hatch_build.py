"""The README in the metadata: its relative links lead nowhere on a package index, unless the owner says where they do.

The environment variable LEARNED_AUG_REPOSITORY, such as https://host/owner/learned-aug, makes them absolute.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


def absolute(text: str, repository: str) -> str:
    """Make the relative links of a Markdown text absolute: pictures to the raw file, others to its page."""

    def link(match: re.Match[str]) -> str:
        kind = "raw" if match["picture"] else "blob"
        return f"{match['picture']}[{match['text']}]({repository.rstrip('/')}/{kind}/main/{match['target']})"

    return re.sub(r"(?P<picture>!?)\[(?P<text>[^]]*)\]\((?P<target>(?!\w+:|#)[^)]+)\)", link, text)


class ReadmeHook(MetadataHookInterface):
    """Reads README.md into the metadata."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the field `readme`."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        if repository := os.environ.get("LEARNED_AUG_REPOSITORY"):
            text = absolute(text, repository)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
