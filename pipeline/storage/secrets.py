"""What a URL may hold of secrets, taken out: whatever is printed, logged or written down goes through here."""

from __future__ import annotations

import re
from typing import Any

_URL = re.compile(r"""(\b[A-Za-z][\w+.-]*://)(?:[^/\s'"]*@)?([^\s'"]*?)(\?[\w.%~-]+=[^\s'"]*?)?(?=[:,;.)\]]*(?:[\s'"]|$))""")


def without_secrets(url: str) -> str:
    """A URL without its user, password and signature."""
    if "://" not in url:
        return url
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def scrubbed(text: str) -> str:
    """A text in which every URL is without user, password and query."""
    return _URL.sub(lambda found: found[1] + found[2], text)


def scrubbed_document(value: Any) -> Any:
    """Plain data of which every text is scrubbed."""
    if isinstance(value, str):
        return scrubbed(value)
    if isinstance(value, dict):
        return {key: scrubbed_document(inner) for key, inner in value.items()}
    return [scrubbed_document(inner) for inner in value] if isinstance(value, list | tuple) else value
