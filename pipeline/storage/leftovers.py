"""Removes what killed processes leave behind: temporary files, and uploads that were never completed."""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.storage.backends import OBJECT_STORES, absolute, as_oserror, backend, is_local, join, scheme_of
from pipeline.storage.files import TEMPORARY, discard_if_dead, remove
from pipeline.storage.listing import names

_LONGEST_UPLOAD = timedelta(days=1)

log = logging.getLogger(__name__)


def discard_unfinished(folder: str, finished: bool) -> None:
    """Remove the files that `write_atomic` began directly in a folder and whose writers are dead.

    A local writer lives while it holds its lock, and the writer of an upload to S3 counts as living for a day; on other storage
    this cannot be known.

    Args:
        folder: path or URL.
        finished: nothing is left to write there: files whose writers are not known to live, and all uploads to S3, are removed
            too.

    Raises:
        OSError: storage refuses.
    """
    scheme = scheme_of(folder)
    if scheme in ("s3", "s3a"):
        _abort_uploads(folder, datetime.now(UTC) - (timedelta() if finished else _LONGEST_UPLOAD))
    elif scheme not in OBJECT_STORES and (is_local(folder) or finished):
        for name in names(folder):
            if name.startswith(".") and name.endswith(TEMPORARY):
                known = is_local(folder) and discard_if_dead(Path(absolute(folder), name))
                if finished and not known:
                    remove(join(folder, name))


def _abort_uploads(folder: str, before: datetime) -> None:
    """Abort multipart uploads that began before a time and were never completed: they are invisible, and cost money."""
    fs, path = backend(folder)
    bucket, _, prefix = path.partition("/")
    place: dict[str, Any] = {"Bucket": bucket, "Prefix": f"{prefix.rstrip('/')}/" if prefix else ""}
    try:
        with as_oserror(folder):
            while True:
                found = fs.call_s3("list_multipart_uploads", **place)
                for upload in found.get("Uploads", ()):
                    if upload["Initiated"] > before:
                        continue
                    with suppress(FileNotFoundError):  # completed or ended by somebody else
                        fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
                if not found.get("IsTruncated"):
                    return
                place |= {"KeyMarker": found["NextKeyMarker"], "UploadIdMarker": found["NextUploadIdMarker"]}
    except PermissionError as error:  # writing does not need this permission
        log.warning("uploads that were never completed are left alone: %s", error)
