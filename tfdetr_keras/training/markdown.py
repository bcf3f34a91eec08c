"""Users' texts in Markdown: shown exactly as they are written, whatever they contain."""

from __future__ import annotations

# What begins HTML, an entity, a table's cell, code, a link, an image or emphasis; as entities they hold in tables, too.
_MEANINGFUL = str.maketrans({character: f"&#{ord(character)};" for character in "&<>|`*[]\\~"})


def escaped(text: str) -> str:
    """Return a text on one line, escaped so that Markdown shows it literally, in running text or a table's cell."""
    return " ".join(text.splitlines()).translate(_MEANINGFUL)
