"""Output folders: what is written appears in them whole, or not at all."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UsageError
from .manifest import FILE
from .store import disk_errors


def check_output(out: Path) -> None:
    """Raise UsageError if `out` is a file, or a folder of something else than an earlier run."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"The output folder {out} is a file: name a folder that does not exist yet, or an empty one.")
    if out.is_dir() and any(out.iterdir()) and not (out / FILE).is_file():
        raise UsageError(
            f"The output folder {out} holds other files and no {FILE} of an earlier run: name an empty or new one."
        )


@contextmanager
def output_folder(out: Path) -> Iterator[Path]:
    """A folder to write into; when the block ends well, what is in it replaces what `out` held of the same names.

    When it raises, nothing of it stays, and an `out` that was made for it goes too. Raises UsageError where `out`
    cannot be used, ResourceError where the disk is full.
    """
    check_output(out)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    part = out / f".part-{uuid.uuid4().hex}"
    try:
        with disk_errors(out):
            part.mkdir(parents=True)
            yield part
            _publish(part, out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise


def _publish(part: Path, out: Path) -> None:
    # the manifest last: where it stands, all that it names does too
    for item in sorted(part.iterdir(), key=lambda item: item.name == FILE):
        target = out / item.name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        item.replace(target)
    part.rmdir()
