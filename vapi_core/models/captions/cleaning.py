"""LlamaGen's cleaning of captions: what its FLAN-T5 features were made of (official `language/t5.py`, there from
PixArt).

The rules are the official ones, in the official order, and a caption passes them twice. Cleaning removes much, product
codes and CJK characters among it: it is for generators that were trained so.
"""

import html
import re
import warnings
from urllib.parse import unquote_plus

_HOSTS = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_SUFFIXES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_DASHES = "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"

Rules = list[tuple[re.Pattern[str], str]]


def _rules(*pairs: tuple[str, str]) -> Rules:
    return [(re.compile(pattern), replacement) for pattern, replacement in pairs]


_BEFORE_MARKUP = _rules(
    ("<person>", "person"),
    (rf"\b((?:https?:(?:/{{1,3}}|[a-zA-Z0-9%])|{_HOSTS}))", ""),
    (rf"\b((?:www:(?:/{{1,3}}|[a-zA-Z0-9%])|{_HOSTS}))", ""),
)
_AFTER_MARKUP = _rules(
    (r"@[\w\d]+\b", ""),  # nicknames
    ("[\u31c0-\u9fff]+", ""),  # CJK strokes, letters, ideographs
    (f"[{_DASHES}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    ("&quot;?", ""),  # what was escaped twice
    ("&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),  # a backslash and an n
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"[\S]+\.(?:{_SUFFIXES})", ""),  # file names
    (r"[\"']{2,}", '"'),
    (r"[.]{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_JOINT = re.compile("[-_]")  # where there are more than three, they stand for spaces
_LAST = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # product codes
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_SUFFIXES})(\simage[s]?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # sizes, the second x being Cyrillic
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def clean_caption(caption: str) -> str:
    """The caption in lower case without links, markup, codes and advertising; may be empty."""
    return _clean_once(_clean_once(caption))


def _clean_once(caption: str) -> str:
    import ftfy

    caption = _apply(_BEFORE_MARKUP, unquote_plus(caption).strip().lower())
    caption = _apply(_AFTER_MARKUP, _text_of(caption))
    if len(_JOINT.findall(caption)) > 3:
        caption = _JOINT.sub(" ", caption)
    caption = html.unescape(html.unescape(ftfy.fix_text(caption))).strip()
    return _apply(_LAST, caption).strip()


def _apply(rules: Rules, caption: str) -> str:
    for pattern, replacement in rules:
        caption = pattern.sub(replacement, caption)
    return caption


def _text_of(markup: str) -> str:
    from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)  # a caption may look like an address
        return BeautifulSoup(markup, features="html.parser").text
