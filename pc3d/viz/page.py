"""Web pages in one file: styles, scripts, data and pictures inside, nothing fetched."""

from __future__ import annotations

import base64
import html
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pc3d._extras import require

PAGE_LIMIT = 10_000_000
"""Most bytes of a page."""
_TEMPLATES = Path(__file__).parent / "templates"


def render_page(template: str, **content: Any) -> str:
    """A page from a template of this package; every text in it is escaped, and its policy forbids the network.

    Args:
        template: name of the file in ``templates/``.
        **content: what the template shows.
    """
    jinja2 = require("jinja2", extra="viz", purpose="web pages")
    markup = require("markupsafe", extra="viz").Markup
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Own files, which hold no text from outside.
    environment.globals["own"] = lambda name: markup((_TEMPLATES / name).read_text(encoding="utf-8"))
    plotly = require("plotly.offline", extra="viz", purpose="web pages")
    environment.globals["plotly_js"] = lambda: markup(plotly.get_plotlyjs())
    text: str = environment.get_template(template).render(**content)
    return text


def write_page(text: str, path: Path) -> Path:
    """Write a page, beside its place and then into it.

    Raises:
        ValueError: it has more than 10 MB.
    """
    data = text.encode("utf-8")
    if len(data) > PAGE_LIMIT:
        raise ValueError(f"the page has {len(data) / 1e6:.1f} MB, more than {PAGE_LIMIT / 1e6:.0f}: show less in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def plotly_text(text: str) -> str:
    """A text that plotly, which reads some tags in titles and names, will show as it is."""
    return html.escape(text, quote=False)


def typed_array(values: NDArray[Any]) -> dict[str, str]:
    """An array ``(n,)`` the way plotly.js reads it without parsing numbers; 64 bits become 32."""
    narrow = {"f8": "f4", "i8": "i4", "u8": "u4"}
    kind = values.dtype.str[1:]
    dtype = narrow.get(kind, kind)
    data = np.ascontiguousarray(values, dtype=f"<{dtype}")
    return {"dtype": dtype, "bdata": base64.b64encode(data.tobytes()).decode("ascii")}


def data_url(data: bytes, mime: str) -> str:
    """Bytes as an address that a page can use in place of a file's."""
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"
