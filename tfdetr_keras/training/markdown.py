"""Texts of users in Markdown: shown as they are written, whatever they hold."""

from __future__ import annotations

# What begins HTML, an entity, a table's cell, code, a link, an image or emphasis; as entities they hold in tables, too.
_MEANINGFUL = str.maketrans({character: f"&#{ord(character)};" for character in "&<>|`*[]\\~"})


def escaped(text: str) -> str:
    """Write a text on one line so that Markdown shows it as it is: as text, in the running text or a table's cell."""
    return " ".join(text.splitlines()).translate(_MEANINGFUL)
