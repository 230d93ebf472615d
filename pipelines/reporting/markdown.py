"""Markdown for people who read the source too: lines of prose are short, a table has one line a row."""

import textwrap
from collections.abc import Sequence
from typing import Any

WIDTH = 118


def prose(*sentences: str, first: str = "", then: str = "") -> str:
    """One paragraph, broken into lines; `first` and `then` stand before its first line and the others."""
    text = " ".join(sentence for sentence in sentences if sentence)
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=then,
        break_long_words=False,
        break_on_hyphens=False,
    )


def item(text: str) -> str:
    """One entry of a list."""
    return prose(text, first="- ", then="  ")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; columns in which no row has anything are left out."""
    used = [i for i in range(len(header)) if not rows or any(str(row[i]) for row in rows)]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cells[i]) for i in used) + " |" for cells in lines)


def counted(number: int, thing: str) -> str:
    """A number of things: 1 seed, 1,000 images."""
    first, *rest = thing.split(" ", 1)
    return " ".join([f"{number:,}", first if number == 1 else f"{first}s", *rest])
