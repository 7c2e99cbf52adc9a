"""What killed processes leave behind: temporary files, and uploads that were never completed."""

from __future__ import annotations

from pipeline.storage.backends import as_oserror, backend, join, scheme_of
from pipeline.storage.files import TEMPORARY, remove
from pipeline.storage.listing import names


def discard_unfinished(folder: str) -> None:
    """Remove the files directly in a folder that were begun by `write_atomic` and never finished.

    A process that is still writing there fails; to be called when nobody needs to.

    Raises:
        OSError: storage refuses.
    """
    for name in names(folder):
        if name.startswith(".") and name.endswith(TEMPORARY):
            remove(join(folder, name))
    if scheme_of(folder) in ("s3", "s3a"):
        _abort_uploads(folder)


def _abort_uploads(folder: str) -> None:
    """Uploads in parts that were not completed: invisible, and paid for."""
    fs, path = backend(folder)
    bucket, _, prefix = path.partition("/")
    with as_oserror(folder):
        found = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix.rstrip('/')}/" if prefix else "")
        for upload in found.get("Uploads", ()):
            fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
