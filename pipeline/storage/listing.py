"""Finds the shards that a folder, a pattern or a list of these stands for, with their sizes, by one listing of each folder."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import unquote

from pipeline.errors import UserError
from pipeline.storage.backends import (
    HTTP,
    OBJECT_STORES,
    absolute,
    as_oserror,
    backend,
    changed_here,
    changed_in,
    is_local,
    is_transient,
    join,
    scheme_of,
    size_in,
)
from pipeline.storage.braces import count_names, expand_braces
from pipeline.storage.files import ATTEMPTS, pause

_MOST_NAMES = 1_000_000
_IN_BRACKETS = re.compile(r"\[[^]]*\]")
_COMPRESSED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|zip)$", re.IGNORECASE)
_LIST_FROM = 8  # with more shards than this in one folder, one listing is cheaper than a request for each


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Listed:
    """An existing file: its URL (local ones as absolute paths), its size in bytes, and when it was last changed, if known."""

    url: str
    size: int
    changed: float | None = field(default=None, compare=False)


def expand(patterns: str | Sequence[str]) -> list[Listed]:
    """The shards that folders, brace patterns, globs, names and lists of these stand for, in the order given.

    A folder means the `.tar` files directly in it, sorted; a glob's matches are sorted. Over http there is no listing, so
    only names and braces work there.

    Raises:
        UserError: nothing matches, a named shard is not there, a bucket is missing or closed, a scheme is unknown, a shard is
            named twice.
    """
    given = [patterns] if isinstance(patterns, str) else list(patterns)
    if not given:
        raise UserError("no shards given: name a folder, a pattern or a list of shards")
    _check_patterns(given)
    urls = [name for pattern in given for name in _expand_braces(pattern)]
    try:
        found = _find(urls)
    except OSError as error:
        raise UserError(f"shards cannot be listed: {error}") from None
    if len({listed.url for listed in found}) < len(found):
        twice = Counter(listed.url for listed in found).most_common(1)[0][0]
        raise UserError(f"{twice} is named twice; every shard of a corpus may be there once")
    return found


def names(folder: str) -> list[str]:
    """Names of the files and folders directly in a folder, sorted; empty where it does not exist."""
    fs, path = backend(folder)
    with as_oserror(folder):
        try:
            return sorted(entry.rstrip("/").rpartition("/")[2] for entry in fs.ls(path, detail=False))
        except FileNotFoundError:
            return []


def _check_patterns(patterns: list[str]) -> None:
    """Raise UserError for a pattern of a kind that is not supported, and for more names than a corpus has shards."""
    total = 0
    for pattern in patterns:
        if _is_there(absolute(pattern)):  # a name may hold any character
            continue
        if pattern.startswith("pipe:"):
            raise UserError(f"{pattern}: commands are not run: name the file or URL itself (s3://, gs://, http://)")
        if "::" in _IN_BRACKETS.sub("", pattern):  # which may hold an IPv6 address
            raise UserError(f"{pattern}: `::` joins nothing here: give several shards as a list, and a URL without a chain")
        try:
            total += count_names(pattern)
        except ValueError as error:
            raise UserError(f"{pattern[:100]}: {error}") from None
        if total > _MOST_NAMES:
            raise UserError(
                f"{pattern[:100]}: its braces stand for {total:.2g} names, more than the {_MOST_NAMES:,} that are read"
            )


def _is_there(url: str) -> bool:
    if "\0" in url:
        raise UserError(f"{url!a}: no file has such a name")
    return is_local(url) and os.path.exists(url)


def _expand_braces(pattern: str) -> list[tuple[str, bool]]:
    """Expand a pattern's braces to URLs, each with whether it is a glob."""
    url = absolute(pattern)
    if _is_there(url):
        return [(url, False)]
    try:
        urls = list(expand_braces(url))
    except ValueError:
        raise UserError(f"{pattern}: its braces do not match") from None
    return [(_literal_parents(one), True) if _has_wildcard(one) else (one, False) for one in urls]


def _literal_parents(pattern: str) -> str:
    """The glob, with the existing folders at its start escaped: their names may hold brackets."""
    folder = pattern
    while is_local(folder) and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return glob.escape(folder) + pattern[len(folder) :] if is_local(folder) else pattern


def _find(urls: list[tuple[str, bool]]) -> list[Listed]:
    over_http = _ask_http([url for url, _ in urls if scheme_of(url) in HTTP])
    wanted = Counter(url.rpartition("/")[0] for url, is_glob in urls if url not in over_http and not is_glob)
    listings = {folder: _listing(folder) for folder, times in wanted.items() if times > _LIST_FROM}
    found: list[Listed] = []
    missing: list[str] = []
    for url, is_glob in urls:
        folder, _, name = url.rpartition("/")
        if url in over_http:
            found.append(over_http[url])
        elif is_glob:
            found += _glob(url)
        elif name in listings.get(folder, ()):
            found.append(Listed(url, *listings[folder][name]))
        else:
            named = None if folder in listings and name.endswith(".tar") else _named(url)
            found += named or ()
            missing += () if named else (url,)
    if missing:
        _raise_missing(missing, len(urls))
    return found


def _named(url: str) -> list[Listed] | None:
    """The shards that one name stands for, itself or those of a folder; None where there is nothing."""
    fs, path = backend(url)
    with as_oserror(url):
        try:
            info = fs.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
    if info["type"] == "other":
        raise UserError(f"{url}: a pipe, a socket or a device, which cannot be read in parts: give a file")
    return _folder(url) if info["type"] == "directory" else [Listed(url, size_in(info, url), changed_in(info, url))]


def _folder(url: str) -> list[Listed]:
    listing = _listing(url)
    found = [Listed(join(url, name), *listing[name]) for name in sorted(listing) if name.endswith(".tar")]
    if found and (others := [name for name in sorted(listing) if _COMPRESSED.search(name)]):
        log.warning(
            "%s: %d compressed archives beside the shards are not part of the corpus, such as %s: unpack those that should be",
            *(url, len(others), others[0]),
        )
    if not found:
        raise UserError(f"{url}: this folder holds no shards (.tar files){_instead(url, sorted(listing))}")
    return found


def _instead(url: str, listing: Iterable[str]) -> str:
    """The end of the message about a folder without shards: what it holds instead, and what to do."""
    packed = next((name for name in listing if ".tar." in name or name.endswith(".tgz")), None)
    if packed:
        return f"; {packed} is compressed: unpack it first"
    if capitals := next((name for name in listing if name.lower().endswith(".tar")), None):
        return f"; rename {capitals} to {capitals[:-4]}.tar, or give a pattern: '{join(url, '*' + capitals[-4:])}'"
    if below := next((one for one in ("*/*.tar", "*/*/*.tar") if is_local(url) and _any(url, one)), None):
        return f", but its subfolders do: give a pattern, '{join(url, below)}'"
    return "; make some from images: pseudolabel pack SRC DST"


def _any(folder: str, pattern: str) -> bool:
    return next(glob.iglob(pattern, root_dir=folder), None) is not None


def _glob(url: str) -> list[Listed]:
    fs, path = backend(url)
    with as_oserror(url):
        found = fs.glob(path, detail=True)
    prefix = "" if is_local(url) else f"{scheme_of(url)}://"
    named = ((prefix + (name.lstrip("/") if prefix else name), info) for name, info in found.items() if info["type"] == "file")
    files = [Listed(name, size_in(info, url), changed_in(info, name)) for name, info in named]
    if not files:
        raise UserError(f"{url}: nothing matches")
    return sorted(files, key=lambda listed: listed.url)


def _ask_http(urls: list[str]) -> dict[str, Listed]:
    """Find files over http, with their sizes, by HEAD requests, many at a time."""
    if not urls:
        return {}
    if globbed := next((url for url in urls if "*" in url.partition("?")[0]), None):
        raise UserError(f"{globbed}: over http nothing can be listed; write braces, such as shard-{{000000..000099}}.tar")
    backend(urls[0])  # raises UserError once where the backend is not installed
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(_ask_server, urls))
    missing = [url for url, answer in zip(urls, answers) if answer is None]
    if missing:
        _raise_missing(missing, len(urls))
    return {answer.url: answer for answer in answers if answer is not None}


def _ask_server(url: str) -> Listed | None:
    fs, path = backend(url)
    for attempt in range(ATTEMPTS):
        try:
            info = fs.info(path)
        except FileNotFoundError as error:  # what fsspec makes of any failure; the cause tells them apart
            cause = error.__cause__
            status = getattr(cause, "status", None)
            if status in (404, 410):
                return None
            if attempt == ATTEMPTS - 1 or not is_transient(cause):
                raise OSError(f"{url}: {f'the server answers {status}' if status else cause or 'no answer'}") from None
            pause(attempt)
            continue
        if info.get("mimetype") == "text/html":
            raise UserError(
                f"{url}: this is a web page; over http nothing can be listed: name the shards, with braces if there are many"
            )
        return Listed(url, size_in(info, url), changed_in(info, url))
    return None


def _raise_missing(missing: list[str], wanted: int) -> None:
    url = missing[0]
    if scheme_of(url) in OBJECT_STORES and _bucket_missing(url):
        raise UserError(f"{url}: there is no bucket of that name")
    rest = f" ({len(missing)} of the {wanted} named are missing)" if wanted > 1 else ""
    raise UserError(f"{url}: no such shard{'' if url.endswith('.tar') else ' or folder'}{rest}{_hint(url)}")


def _hint(url: str) -> str:
    if "$" in url:
        return "; variables (`$`) are not expanded: write the path out, or let the shell expand it, by --set"
    if is_local(url) and unquote(url) != url and _is_there(unquote(url)):
        return f"; paths and file:// URLs are taken literally: write {unquote(url)}"
    return ""


def _bucket_missing(url: str) -> bool:
    fs, path = backend(url)
    with as_oserror(url):
        return not fs.exists(path.partition("/")[0])


def _entry(entry: os.DirEntry[str]) -> tuple[int, float | None]:
    """Size and time of a file; 0 and None for a link that leads nowhere, which counts as damaged when it is read."""
    return (0, None) if _is_lost(entry) else (entry.stat().st_size, changed_here(entry.path))


def _is_lost(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def _listing(folder: str) -> dict[str, tuple[int, float | None]]:
    """Name -> size, and time of the last change, of the files directly in a folder; empty where there is no such folder."""
    if is_local(folder):
        try:
            with os.scandir(absolute(folder) or "/") as entries:
                return {entry.name: _entry(entry) for entry in entries if entry.is_file() or _is_lost(entry)}
        except (FileNotFoundError, NotADirectoryError):
            return {}
    fs, path = backend(folder)
    with as_oserror(folder):
        try:
            entries = fs.ls(path, detail=True)
        except FileNotFoundError:
            return {}
    files = (info for info in entries if info["type"] == "file")
    return {info["name"].rpartition("/")[2]: (size_in(info, folder), changed_in(info, folder)) for info in files}


def _has_wildcard(url: str) -> bool:
    return scheme_of(url) not in HTTP and any(character in url for character in "*?[")
