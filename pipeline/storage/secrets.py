"""What a URL may hold of secrets, taken out: whatever is printed, logged or written down goes through here."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, unquote

_SCHEME = r"[A-Za-z][\w+.-]*://"
_URL = re.compile(
    rf"""(\b{_SCHEME})((?:(?!\b{_SCHEME})[^\s'"])*?)(\?[\w.%~-]+=[^\s'"]*?)?(?=[:,;.)\]]*(?:[\s'"]|$)|\b{_SCHEME})"""
)
_HOST = re.compile(r"(?:\[[^]]*\]|[^:/?@]*)(?::\d*)?(?=[/?]|$)")
_BUCKET = re.compile(r"[^:/?@]*(?=[/?]|$)")
_BUCKETS = ("s3://", "s3a://", "gs://", "gcs://")
"""After these there is no port, so that digits behind a colon are a password."""

_SIGNING = re.compile(
    r"x-(amz|goog|oss|obs)-.*|x-id|(aws|oss)accesskeyid|googleaccessid|expires|signature|policy|key-pair-id|(access_)?token|"
    r"s[eiprstv]|srt|sig|spr|sip|sdd|sk[estv]|skoid|sktid",
    re.IGNORECASE,
)
"""Names in a query that sign a URL (S3, Google, CloudFront, Azure and others) and do not choose what it stands for."""

_LEAST = 4
"""Characters of a secret that is looked for by itself; shorter ones are a part of too many words."""

_given: set[str] = set()
"""The secrets of all URLs that this process was given: libraries cut URLs to pieces before they speak of them."""


def _user(scheme: str, rest: str) -> str:
    """What stands before the `@` that ends user and password, in what follows a URL's scheme; a password may hold anything."""
    first = rest.partition("/")[0]
    if "@" in first:
        return first.rpartition("@")[0]
    host = (_BUCKET if scheme.lower() in _BUCKETS else _HOST).match(rest)
    return "" if host else rest.rpartition("@")[0]


def without_secrets(url: str) -> str:
    """A URL without its user, password and signature."""
    if "://" not in url:
        return url
    scheme, separator, rest = url.partition("://")
    user = _user(scheme + separator, rest)
    plain = rest[len(user) + 1 :] if user else rest.removeprefix("@")
    return f"{scheme}://{plain.partition('?')[0]}"


def unsigned(url: str) -> str | None:
    """A URL without user, password and signature; None where its query says more, and so may choose what is sent."""
    query = url.partition("?")[2] if "://" in url else ""
    names = [pair.partition("=")[0] for pair in query.split("&") if pair]
    return without_secrets(url) if all(map(_SIGNING.fullmatch, names)) else None


def remember(url: str) -> None:
    """Know the secrets of a URL that was given, so that `scrubbed` finds them in whatever words a library puts them."""
    scheme, separator, rest = url.partition("://")
    if not separator or ("@" not in rest and "?" not in rest):
        return
    user = _user(scheme + separator, rest)
    name, colon, password = user.partition(":")
    pieces = re.split("[/?@]", password)  # where libraries cut, which take what comes before a slash for a host or a bucket
    parts = [password, *pieces, f"{name}:{pieces[0]}" if colon else name]
    parts += [pair.partition("=")[2] for pair in rest[len(user) :].partition("?")[2].split("&") if "=" in pair]
    for part in (user, *parts):
        for spelled in {part, unquote(part), quote(part), quote(part, safe="")}:
            if spelled and (part is user or len(spelled) >= _LEAST):
                _given.add(f"{spelled}@" if part is user else spelled)


def scrubbed(text: str) -> str:
    """A text without the secrets of any URL that this process was given, in which every other URL has no user and no query."""
    text = _URL.sub(_without_user, text)
    found = [secret for secret in tuple(_given) if secret in text]
    for secret in sorted(found, key=len, reverse=True):
        text = text.replace(secret, "***@" if secret.endswith("@") else "***")
    return _URL.sub(_without_user, text) if found else text


def _without_user(found: re.Match[str]) -> str:
    user = _user(found[1], found[2])
    return found[1] + (found[2][len(user) + 1 :] if user else found[2].removeprefix("@"))


def scrubbed_document(value: Any) -> Any:
    """Plain data of which every text is scrubbed."""
    if isinstance(value, str):
        return scrubbed(value)
    if isinstance(value, dict):
        return {key: scrubbed_document(inner) for key, inner in value.items()}
    return [scrubbed_document(inner) for inner in value] if isinstance(value, list | tuple) else value
