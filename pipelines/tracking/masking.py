"""Passwords do not belong in messages, logs or command lines."""

import re

HIDDEN = "***"
# up to the last @ before white space or the next URL: a password may hold @, / and : as they are
_USER_AND_PASSWORD = re.compile(r"(://[^\s/:]*:)(?:(?!://)\S)*@")
_TOKEN_AS_USER = re.compile(r"(\bhttps?://)[^\s/:@]+@", re.IGNORECASE)
_IN_QUERY = re.compile(r"([?&](?:ssl)?(?:password|passwd|pwd|token)=)[^\s&#'\"]*", re.IGNORECASE)


def masked(text: str) -> str:
    """A text with the passwords of all URLs in it hidden: `scheme://user:***@host`, also a token that stands as the
    user of an HTTP URL, and `?password=***` of a database's URL."""
    text = _USER_AND_PASSWORD.sub(rf"\1{HIDDEN}@", text)
    text = _TOKEN_AS_USER.sub(rf"\1{HIDDEN}@", text)
    return _IN_QUERY.sub(rf"\1{HIDDEN}", text)
