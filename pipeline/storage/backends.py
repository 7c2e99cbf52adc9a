"""Finds the fsspec backend of a URL, and turns its failures into OSErrors that name the URL and the cause."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

import fsspec

from pipeline.errors import UserError, installing
from pipeline.storage.secrets import remember

HTTP = ("http", "https")
_CHANGED = ("LastModified", "last_modified", "Last-Modified", "mtime", "updated", "created")  # S3, Azure, http, GCS, memory
OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az")
"""Storage where nothing is visible under a name before its file is closed."""

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""The extra that brings what a kind of storage needs."""

_BACKEND_ERRORS = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("gcsfs.retry", "HttpError"),
)


def scheme_of(url: str) -> str:
    """The URL's scheme, lower-cased; empty for a path of this machine, `file://` too."""
    scheme = url.split("://", 1)[0].lower() if "://" in url else ""
    return "" if scheme in ("file", "local") else scheme


def is_local(url: str) -> bool:
    """Whether the URL is a path of this machine."""
    return not scheme_of(url)


def is_writable(url: str) -> bool:
    """Whether this kind of storage can be written at all (http cannot)."""
    return scheme_of(url) not in HTTP


def absolute(url: str) -> str:
    """The URL in a form that means the same in every process: local paths (`file://`, `~`, relative ones) become absolute."""
    if not is_local(url):
        remember(url)
        return url if "?" in url else url.rstrip("/")
    return os.path.abspath(os.path.expanduser(url.split("://", 1)[-1]))


def join(folder: str, name: str) -> str:
    """The URL of `name` in `folder`."""
    return f"{folder.rstrip('/')}/{name}"


def backend(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it.

    Raises:
        UserError: unknown scheme, or one whose package is not installed.
    """
    scheme = scheme_of(url)
    remember(url)
    if not scheme:
        return fsspec.filesystem("file"), absolute(url)
    try:
        fs = fsspec.filesystem(scheme, use_listings_cache=False)  # other processes write there
    except ImportError as error:
        fix = installing(_EXTRAS[scheme]) if scheme in _EXTRAS else str(error)
        raise UserError(f"{url}: storage of kind '{scheme}://' needs a package that is not installed: {fix}") from None
    except ValueError:
        raise UserError(
            f"{url}: unknown kind of storage '{scheme}://'; known are paths, s3://, gs://, http(s):// and fsspec's others"
        ) from None
    return fs, fs._strip_protocol(url)


def size_in(info: dict[str, Any], url: str) -> int:
    """The size of a file, from its backend's `info`; OSError where it is unknown."""
    if info.get("size") is None:
        raise OSError(f"{url}: the server does not tell its size")
    return int(info["size"])


def changed_in(info: dict[str, Any], url: str) -> float | None:
    """The time of a file's last change, from its backend's `info`: seconds since 1970 by that storage's clock, or None.

    On this machine it is the time of the last change of any kind (ctime), which cannot be set back: a file that is copied with
    its old date, or moved over another, counts as new.
    """
    if is_local(url):
        return changed_here(absolute(url))
    found = next((info[name] for name in _CHANGED if info.get(name)), None)
    if isinstance(found, str):
        try:
            found = datetime.fromisoformat(found) if found[:1].isdigit() else parsedate_to_datetime(found)
        except ValueError:
            return None
    if isinstance(found, datetime):
        return found.timestamp()
    return float(found) if isinstance(found, int | float) else None


def changed_here(path: str) -> float:
    """`changed_in` of a file of this machine: the later of a link's time and its target's."""
    return max(os.stat(path).st_ctime_ns, os.lstat(path).st_ctime_ns) / 1e9


def is_transient(error: BaseException | None) -> bool:
    """Whether trying again may help."""
    status = getattr(error, "status", None)
    if status is not None:
        return status == 429 or status >= 500
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        return False
    return isinstance(error, (OSError, EOFError, *_backend_errors()))


@contextmanager
def as_oserror(url: str) -> Iterator[None]:
    """Turn the failures of any backend inside the block into FileNotFoundError, PermissionError or OSError with a message."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, (OSError, *_backend_errors())) or str(error).startswith(url):
            raise
        raise _in_words(url, error) from error


def _in_words(url: str, error: BaseException) -> OSError:
    status = getattr(error, "status", None)
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    reason = "" if "://" in text or text.startswith("/") else text
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{url}: {reason or 'no such file'}")
    if status in (401, 403):
        return PermissionError(f"{url}: access denied (the server answers {status})")
    if isinstance(error, PermissionError):
        return PermissionError(f"{url}: access denied" + (f" ({reason})" if reason else ""))
    if "credentials" in text.lower():
        return PermissionError(f"{url}: access denied ({text}); set the storage's usual credentials, such as AWS_PROFILE")
    return OSError(f"{url}: {f'the server answers {status}' if status else text or type(error).__name__}")


def _backend_errors() -> tuple[type[BaseException], ...]:
    """The exceptions, beside OSError, of those backends that are loaded."""
    return tuple(getattr(sys.modules[module], name) for module, name in _BACKEND_ERRORS if module in sys.modules)
