"""What the documentation's site makes of the repository's own pages.

The README is its first page, CONTRIBUTING one of the others, and a link to a file of code, which is no page, becomes
the file's name.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#]+)(#[^)]*)?\)")


def on_files(files, config):
    """Adds the README as the first page, and CONTRIBUTING."""
    for page, source in (("index.md", "README.md"), ("contributing.md", "CONTRIBUTING.md")):
        # seen from docs/, which is the site's root
        text = re.sub(r"\]\(docs/", "](", (ROOT / source).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Takes links to what the site does not hold out of a page."""
    del config
    folder = Path(page.file.src_uri).parent

    def shown(link):
        target = Path(*_resolved(folder / link[2]))
        return link[0] if files.get_file_from_path(target.as_posix()) else link[1]

    return _LINK.sub(shown, markdown)


def _resolved(path):
    parts = []
    for part in path.parts:
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return parts
