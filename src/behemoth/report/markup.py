"""Markup for the pages: the frame, text made safe, tables, figures drawn for a wide page and for a phone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files

WIDE, NARROW = 720.0, 360.0
POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # no script, no request to anywhere


def page(
    title: str,
    heading: str,
    subtitle: str,
    lead: str,
    sections: Mapping[str, str],
    footer: str,
    kind: str = "",
) -> str:
    """A whole page of ready markup: what it is, the answer, links to the sections, the sections with content."""
    sections = {name: content for name, content in sections.items() if content}
    ids = {name: name.lower().replace(" ", "-") for name in sections}
    links = " ".join(f'<a href="#{ids[name]}">{name}</a>' for name in sections)
    body = "".join(
        f'<section aria-labelledby="{ids[name]}"><h2 id="{ids[name]}">{name}</h2>{content}</section>'
        for name, content in sections.items()
    )
    style = files("behemoth.report").joinpath("style.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body{f' class="{kind}"' if kind else ""}>
<header>
<h1>{heading}</h1>
<p class="subtitle">{subtitle}</p>
{lead}
<nav aria-label="Contents">{links}</nav>
</header>
<main>{number_figures(body)}</main>
<footer>{footer}</footer>
</body>
</html>
"""


def words(value: object) -> str:
    """Text made safe to show: markup escaped, control characters and lone surrogates made visible."""
    shown = "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else c for c in str(value))
    return escape(shown.encode("utf-8", "replace").decode("utf-8"), quote=True)


def missing(what: str) -> str:
    return f'<p class="missing">{what}: not run.</p>'


def both(draw: Callable[[float], str]) -> str:
    """The drawing for a wide page and the one for a phone; the style sheet shows one of them."""
    return f'<div class="wide">{draw(WIDE)}</div><div class="narrow">{draw(NARROW)}</div>'


def figure(draw: Callable[[float], str], caption: str) -> str:
    return f"<figure>{both(draw)}<figcaption>{caption}</figcaption></figure>"


def number_figures(body: str) -> str:
    count = 0

    def numbered(match: re.Match[str]) -> str:
        nonlocal count
        count += 1
        return f"{match[0]}<b>Figure {count}.</b> "

    return re.sub("<figcaption>", numbered, body)


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Iterable[int] = (),
    classes: Sequence[str] = (),
    caption: str = "",
) -> str:
    """A table of ready markup; a row's first cell is its heading, and a row of one cell spans the table."""
    of = dict.fromkeys(numbers, ' class="number"')
    top = "".join(f'<th scope="col"{of.get(i, "")}>{cell}</th>' for i, cell in enumerate(head))
    body = []
    for number, row in enumerate(rows):
        kind = f' class="{words(classes[number])}"' if classes else ""
        if len(row) == 1:
            body.append(f'<tr><th scope="colgroup" colspan="{len(head)}">{row[0]}</th></tr>')
            continue
        cells = "".join(f"<td{of.get(i, '')}>{cell}</td>" for i, cell in enumerate(row[1:], start=1))
        body.append(f'<tr{kind}><th scope="row">{row[0]}</th>{cells}</tr>')
    said = f"<caption>{caption}</caption>" if caption else ""
    return f"<table>{said}<thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table>"
