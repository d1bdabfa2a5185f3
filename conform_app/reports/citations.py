# SPDX-License-Identifier: Apache-2.0
"""Pandoc citations and BibTeX, as far as the methods text needs them.

``[@key; @other]`` in the text names entries of a BibTeX file.  The reader handles the plain form that
``references.bib`` is written in: one field a line, values in braces.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

_GROUP = re.compile(r"\[(@[^\]]+)\]")
_KEY = re.compile(r"@([A-Za-z][\w:-]*)")
_ENTRY = re.compile(r"^@(\w+)\{([^,\s]+),\s*$(.*?)^\}\s*$", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^\s*(\w+)\s*=\s*\{(.*)\},?\s*$", re.MULTILINE)
_LATEX = {r"\'e": "é", r"\'a": "á", r"\'o": "ó", r"\"o": "ö", r"\"u": "ü", r"\"a": "ä", r"\&": "&", "--": "–"}


@dataclass(frozen=True)
class Entry:
    """One reference: its kind, key, fields and the BibTeX text it was read from."""

    kind: str
    key: str
    fields: dict[str, str]
    text: str

    @property
    def surnames(self) -> list[str]:
        """Surnames of the authors, in order."""
        people = [p.strip() for p in _plain(self.fields.get("author", "")).split(" and ") if p.strip()]
        return [p.split(",")[0].strip() if "," in p else p.split()[-1] for p in people]

    @property
    def short(self) -> str:
        """``Prince et al., 2022``."""
        names, year = self.surnames, self.fields.get("year", "n.d.")
        if not names:
            return f"{_plain(self.fields.get('title', self.key))}, {year}"
        first = names[0] if len(names) == 1 else f"{names[0]} & {names[1]}"
        return f"{first if len(names) < 3 else names[0] + ' et al.'}, {year}"


def cited_keys(text: str) -> list[str]:
    """Keys cited in `text`, each once, in the order in which they first appear."""
    keys = [key for group in _GROUP.findall(text) for key in _KEY.findall(group)]
    return list(dict.fromkeys(keys))


def read_bibliography(text: str) -> dict[str, Entry]:
    """Entries of a BibTeX file by key."""
    found = {}
    for match in _ENTRY.finditer(text):
        fields = {name.lower(): value.strip() for name, value in _FIELD.findall(match[3])}
        found[match[2]] = Entry(match[1].lower(), match[2], fields, match[0].rstrip() + "\n")
    return found


def _plain(text: str) -> str:
    for coded, letter in _LATEX.items():
        text = text.replace("{" + coded + "}", letter).replace(coded, letter)
    return text.replace("{", "").replace("}", "")


def format_reference(entry: Entry) -> str:
    """One reference as HTML: authors (year). Title. Venue. Link."""
    get = {name: html.escape(_plain(value)) for name, value in entry.fields.items()}
    people = get.get("author", "").split(" and ")
    shown = ", ".join(_initials(p) for p in people[:6]) + (" et al." if len(people) > 6 else "")
    venue = (
        get.get("journal") or get.get("booktitle") or get.get("publisher") or get.get("howpublished") or ""
    )
    volume = get.get("volume", "")
    place = (
        f"<i>{venue}</i>" + (f" {volume}" if volume else "") + (f", {get['pages']}" if "pages" in get else "")
    )
    link = f"https://doi.org/{get['doi']}" if "doi" in get else get.get("url", "")
    anchor = f' <a href="{link}">{link}</a>' if link else ""
    return (
        f"{shown} ({get.get('year', 'n.d.')}). {get.get('title', '')}. {place + '.' if venue else ''}{anchor}"
    )


def _initials(person: str) -> str:
    if "," not in person:
        return person.strip()
    last, first = (part.strip() for part in person.split(",", 1))
    return f"{last} " + "".join(word[0] for word in re.split(r"[\s-]+", first) if word)


def markdown_to_html(text: str, bibliography: dict[str, Entry]) -> str:
    """Methods text as HTML with linked citations and the list of references.

    Headings (``#``), paragraphs, ``code`` and citations are understood: what the methods text uses.
    """
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip()):
        heading = re.match(r"(#+)\s+(.*)", block)
        if heading:
            level = min(len(heading[1]) + 2, 5)
            blocks.append(f"<h{level}>{html.escape(heading[2])}</h{level}>")
        elif block.strip():
            blocks.append(f"<p>{_inline(' '.join(block.split()), bibliography)}</p>")
    entries = [bibliography[key] for key in cited_keys(text) if key in bibliography]
    if entries:
        ordered = sorted(entries, key=lambda e: (e.short.lower(), e.key))
        items = "".join(f'<li id="ref-{e.key}">{format_reference(e)}</li>' for e in ordered)
        blocks.append(f"<h4>References</h4><ul class='references'>{items}</ul>")
    return "\n".join(blocks)


def _inline(text: str, bibliography: dict[str, Entry]) -> str:
    def cite(match: re.Match[str]) -> str:
        links = []
        for key in _KEY.findall(html.unescape(match[1])):
            entry = bibliography.get(key)
            links.append(f'<a href="#ref-{key}">{html.escape(entry.short)}</a>' if entry else key)
        return "(" + "; ".join(links) + ")"

    escaped = _GROUP.sub(cite, html.escape(text, quote=False))
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
