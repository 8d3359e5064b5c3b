"""Short texts for messages: one line, a few names of many, no secrets."""

import os
import re
import unicodedata
from collections.abc import Iterable
from urllib.parse import quote

# Environment variables whose values must not appear in a message.
SECRETS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "KF_PIPELINES_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
)


def one_line(value: object, limit: int | None = None) -> str:
    """Return a value's text with every run of white space replaced by one space.

    Args:
        value: an error or a text.
        limit: largest number of characters to return; None for all.
    """
    return " ".join(str(value).split())[:limit]


def normalised(text: str) -> str:
    """Return a name in Unicode form C; file systems and programs write the same name in several forms."""
    return unicodedata.normalize("NFC", text)


def first_names(names: Iterable[str], total: int | None = None, limit: int = 3) -> str:
    """Join the first names with commas, and count the rest: `a, b, c and 4 more`.

    Args:
        names: all names, or the first few of them.
        total: how many names there are, if `names` are only the first few.
        limit: how many names to write out.
    """
    given = list(names)
    more = (len(given) if total is None else total) - limit
    return ", ".join(given[:limit]) + (f" and {more} more" if more > 0 else "")


def without_secrets(text: str) -> str:
    """Return a library's message without the values of `SECRETS`, and without user names and passwords in addresses."""
    for secret in filter(None, (os.environ.get(name, "").strip() for name in SECRETS)):
        text = text.replace(secret, "…").replace(quote(secret, safe=""), "…")
    return re.sub(r"//\S*@", "//", text)
