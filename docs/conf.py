"""The site of ``make docs``. Nothing is fetched, neither to build it nor to read it."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import fem_mf  # first: it loads MPI

from docutils import nodes  # isort: skip
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.nodes import make_refnode

(MATHJAX,) = (
    Path(str(file.locate()))
    for file in metadata.files("sphinx-mathjax-offline") or ()
    if file.name == "tex-svg.js"
)

project = "fem_mf"
author = "The fem_mf developers"
release = version = fem_mf.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"fem_mf {version}"
html_static_path = ["_static", str(MATHJAX)]
html_css_files = ["fem_mf.css"]
html_copy_source = False
html_show_copyright = False
# One file that needs no fonts and loads nothing else; Sphinx would name it on another host.
mathjax_path = MATHJAX.name

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autoclass_content = "both"  # some arguments are described at __init__
autodoc_typehints = "none"  # the docstrings say what an argument is, and the signature stays short
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes of dataclasses once, not also as members

EQUATION = re.compile(r"\b[EFDWJLCX][1-9]\b")
SECTION = re.compile(r"\btheory §([1-9])")


def prepare_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Docstrings are plain text: |x| is a norm, and an indented block is code or a formula."""
    result: list[str] = []
    section = code = False
    for line in lines:
        indented = line.startswith(" ")
        if line.strip() and not indented:
            code, section = False, re.fullmatch(r"(Args|Attributes|Returns|Raises|Yields):", line)
        elif indented and not section and not code and result and not result[-1].strip():
            code = True
            result += ["::", ""]
        if not code:
            # What is not between backticks is text.
            parts = re.split(r"(`[^`]*`+)", line.replace("\\", "\\\\"))
            parts[::2] = [re.sub(r"([|*])", r"\\\1", part) for part in parts[::2]]
            # "F." alone would be the first item of a list.
            line = re.sub(r"((?:^|: )\w)\.$", r"\1\\.", "".join(parts))
        result.append(line)
    lines[:] = result


def link_names(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Link what pages cite: (D2) and theory §4 to the theory page, `Problem` to the reference."""
    builder = app.builder
    objects = app.env.get_domain("py").objects  # type: ignore[attr-defined]
    theory = builder.get_relative_uri(docname, "theory")

    for text in list(doctree.findall(nodes.Text)):
        parent = text.parent
        if _inside(text, nodes.literal):
            found = objects.get(f"fem_mf.{text.astext().removeprefix('mf.').removesuffix('()')}")
            if found and not _inside(text, nodes.reference, nodes.title):
                link = make_refnode(
                    builder, docname, found.docname, found.node_id, nodes.Text(text.astext())
                )
                parent.replace(text, link)
        elif not _inside(
            text, nodes.literal_block, nodes.reference, nodes.title, nodes.math, nodes.strong
        ):
            pieces: list[nodes.Node] = []
            end, string = 0, text.astext()
            for match in re.finditer(f"{EQUATION.pattern}|{SECTION.pattern}", string):
                target = f"section-{match[1]}" if match[1] else match[0]
                pieces.append(nodes.Text(string[end : match.start()]))
                pieces.append(nodes.reference("", match[0], refuri=f"{theory}#{target}"))
                end = match.end()
            if pieces:
                parent.replace(text, [*pieces, nodes.Text(string[end:])])


def _inside(node: nodes.Node, *kinds: type[nodes.Node]) -> bool:
    while node.parent is not None:
        node = node.parent
        if isinstance(node, kinds):
            return True
    return False


def check_offline(app: Sphinx, exception: Exception | None) -> None:
    """No page may load anything from another host; links for the reader to follow may."""
    if exception is not None or app.builder.format != "html":
        return
    loads = re.compile(
        r"""<(?:script|img|iframe|source|video|audio|embed|object)\b[^>]*?(?:src|data)=["'](?:https?:)?//"""
        r"""|<link\b[^>]*?href=["'](?:https?:)?//"""
        r"""|url\(\s*["']?(?:https?:)?//|@import\s+["'](?:https?:)?//""",
        re.IGNORECASE,
    )
    folder = Path(app.outdir)
    files = (f for kind in ("html", "css", "js") for f in folder.rglob(f"*.{kind}"))
    guilty = {
        str(file.relative_to(folder)): found[0]
        for file in files
        if (found := loads.search(file.read_text(encoding="utf-8")))
    }
    if guilty:
        raise ExtensionError(f"pages that would load from another host: {guilty}")


def setup(app: Sphinx) -> None:
    """Connect the above."""
    # Before napoleon, which turns the sections into markup.
    app.connect("autodoc-process-docstring", prepare_docstring, priority=400)
    app.connect("doctree-resolved", link_names)
    app.connect("build-finished", check_offline)
