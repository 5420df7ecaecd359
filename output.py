"""Output folders: what is written appears in them whole, or not at all."""

from __future__ import annotations

import errno
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError, UsageError
from .manifest import FILE, read
from .scratch import held, sweep
from .spec import Job
from .store import disk_errors

PART = ".part-"


def check_output(out: Path) -> None:
    """Raise UsageError if `out` is a file, or a folder of something else than an earlier run."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"The output folder {out} is a file: name a folder that does not exist yet, or an empty one.")
    if out.is_dir() and any(not _is_part(item) for item in out.iterdir()) and not (out / FILE).is_file():
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
    try:
        with disk_errors(out):
            _make(out)
            sweep(out, PART)
            with held(out / f"{PART}{uuid.uuid4().hex}") as part:
                part.mkdir()
                yield part
                _publish(part, out)
    except BaseException:
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise


def _earlier(out: Path) -> set[str]:
    """Folders of targets that an earlier run left in `out`."""
    if not (out / FILE).is_file():
        return set()
    try:
        known = read(out)
    except InputError:
        return set()
    folders = {Job(record.target, record.precision, record.device).folder for record in known.targets}
    return {name for name in folders if Path(name).name == name and (out / name / FILE).is_file()}


def _is_part(item: Path) -> bool:
    """Whether it is what a run writes into, or its lock: of one in progress, or left by one that was killed."""
    return item.name.startswith(PART) and not item.is_symlink()


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = error.strerror or str(error)
        raise UsageError(
            f"The output folder {out} cannot be used: {reason}. Give a folder that you may write to."
        ) from error


def _publish(part: Path, out: Path) -> None:
    for name in _earlier(out) - {item.name for item in part.iterdir()}:
        shutil.rmtree(out / name, ignore_errors=True)  # a target of the earlier run, not asked for in this one
    # the manifest last: where it stands, all that it names does too
    for item in sorted(part.iterdir(), key=lambda item: item.name == FILE):
        target = out / item.name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        elif item.is_dir():
            target.unlink(missing_ok=True)
        item.replace(target)
    part.rmdir()
