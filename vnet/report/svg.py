"""A matplotlib figure as SVG text for a page: named for screen readers, in the page's own ink, with links to rows."""

from __future__ import annotations

import io
import re
from html import escape

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK = "#010203"  # stands for the page's own colour until the SVG is written


def svg_text(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as inline SVG: transparent, text kept as text, the same bytes each time.

    A link of the figure (`set_urls` of an artist) is `#ANCHOR NAME`: the anchor it leads to, and its name.

    Args:
        name: unique on the page; it starts every id.
        title, description: what a screen reader says.
    """
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
    body = text.getvalue()
    body = body[body.index("<svg") :].replace(INK, "currentColor")
    # a width of its own would not shrink on a phone
    body = re.sub(r'<svg ([^>]*?)(?:width|height)="[^"]*"([^>]*?)(?:width|height)="[^"]*"', r"<svg \1\2", body, count=1)
    body = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', body)
    body = re.sub(r'(url\(#|xlink:href="#)([^")\s]*)(?=[")])', rf"\1{name}-\2", body)
    body, links = re.subn(r'<a xlink:href="#([^ "]*) ([^"]*)"', r'<a href="#\1" aria-label="\2"', body)
    # what has the role of an image hides its links from screen readers
    role = "group" if links else "img"
    tag, _, inner = body.partition(">")
    named = f'role="{role}" aria-labelledby="{name}-title {name}-description"'
    words = (
        f'<title id="{name}-title">{escape(title)}</title>\n<desc id="{name}-description">{escape(description)}</desc>'
    )
    return f"{tag} {named}>\n{words}{inner}"
