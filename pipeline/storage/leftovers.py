"""What killed processes leave behind: temporary files, and uploads that were never completed."""

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
    """Remove what was begun directly in a folder by `write_atomic` and can no longer be finished.

    Locally a living writer is known by its lock, on S3 an upload may be going on for a day; other storage tells nothing.

    Args:
        folder: path or URL.
        finished: nobody has anything left to write there, so that what nothing is known of goes too.

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
    """End uploads in parts that were begun before a time and never completed: invisible, and paid for."""
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
    except PermissionError as error:  # a right that writing does not need
        log.warning("uploads that were never completed are left alone: %s", error)
