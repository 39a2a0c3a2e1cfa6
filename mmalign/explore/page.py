"""An explorer as HTML that needs nothing else: a page, or a piece of one."""

import json
from importlib.resources import files

from mmalign.explore import Explorer
from mmalign.explore.packed import packed
from mmalign.io import pages

SCRIPTS = ("data.js", "grid.js", "detail.js", "legend.js", "figure.js", "explorer.js")  # as they are read


def html(explorer: Explorer, title: str = "What visual tokens say", whole: bool = True, below: str = "") -> str:
    """The page; not `whole`: a piece that may stand in a page several times, as notebooks' output does. below: a piece
    of HTML of ours that ends it.

    Texts reach the page as JSON and are shown as texts. A ValueError for a picture that is no PNG.
    """
    script = "\n".join(map(_text, SCRIPTS))
    parts = {"style": _text("explorer.css"), "script": f'"use strict";\n(() => {{\n{script}}})();\n'}
    data = json.dumps(packed(explorer), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return pages.page("mmalign.explore", "explorer.html", title=title, whole=whole, data=data, below=below, **parts)


def _text(name: str) -> str:
    return files("mmalign.explore").joinpath(name).read_text(encoding="utf-8")
