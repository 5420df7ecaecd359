"""The store: stages kept under the hash of all that made them, proved whole each time before they are used again.

- objects/<digest>/: object.json beside the files of one stage
- tmp/<name>/: what is being written or removed, each under the lock of its owner in <name>.lock
- locks/<digest>.lock: so that one process makes a stage and the others wait for it
What killed processes left in tmp/ and locks/ goes when the next process writes there.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shlex
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import Timeout
from pydantic import BaseModel

from .errors import GraphwrightError, ResourceError, UsageError
from .scratch import held, size_of, sweep, walk

Write = Callable[[Path], None]

_log = logging.getLogger(__name__)

_FORMAT = 1  # a part of every key: a new form of the store finds none of the old objects
_RECORD = "object.json"
TIMING = "timing"  # folder of what builders learned of the time that kernels take; a builder writes there itself
_NOT_SOURCES = frozenset({"tests", "benchmarks", "examples", "out", "build", "dist"})  # at the package's top level
_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would grow past the largest size allowed",
}
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG)
_NO_FOLDER = (errno.ENOTDIR, errno.EEXIST)


@dataclass(frozen=True)
class Key:
    """What a stage is: its name and, as JSON, everything that acts on its content. Equal digests mean equal stages.

    Raises TypeError or ValueError where a part is not JSON.
    """

    stage: str
    parts: Mapping[str, Any] = field(compare=False)
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        # There and back once: the parts read from object.json must give the same text (int keys sort as text then).
        parts = json.loads(json.dumps(dict(self.parts), allow_nan=False))
        whole = {"format": _FORMAT, "stage": self.stage, "parts": parts}
        text = json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False)
        object.__setattr__(self, "parts", parts)
        object.__setattr__(self, "digest", hashlib.sha256(text.encode()).hexdigest())


def key(stage: str, /, **parts: Any) -> Key:
    """The key of `stage` made from `parts`. Raises TypeError or ValueError where a part is not JSON."""
    return Key(stage, parts)


def versions(*packages: str) -> dict[str, str]:
    """The installed version of each of `packages`; those that are absent are left out."""
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def hash_file(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def own_digest() -> str:
    """The SHA-256 over graphwright's own sources: a changed pass or exporter must not find a stage of the old one."""
    return sources_digest(Path(__file__).parent)


def sources_digest(package: Path) -> str:
    """The SHA-256 over the *.py files of a package, without the folders that are no part of an installed package."""
    digest = hashlib.sha256()
    for parent, folders, names in os.walk(package, onerror=_raise):
        top = Path(parent) == package
        folders[:] = sorted(name for name in folders if name[0] != "." and not (top and name in _NOT_SOURCES))
        for name in sorted(name for name in names if name.endswith(".py")):
            path = Path(parent, name)
            digest.update(f"{path.relative_to(package).as_posix()}\0{hash_file(path)}\0".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def disk_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """Say what the disk said while `path` is written, in words a user can act on.

    Raises ResourceError where disk, quota or file size limit ran out (`needed`: bytes to be written, if known), and
    UsageError where `path`, or something above or below it, is not writable or no folder. Other errors pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise ResourceError(_full(path, error, needed)) from error
        denied = error.errno in _DENIED and _concerns(error, path)
        if denied or (error.errno in _NO_FOLDER and not path.is_dir()):
            raise UsageError(
                f"{path} cannot be used ({error.strerror}: {error.filename or path}): "
                "give a folder that you may write to, or change its owner or permissions."
            ) from error
        raise


def _full(path: Path, error: OSError, needed: int | None) -> str:
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    facts = f"{shutil.disk_usage(there).free} bytes free" + (f", {needed} needed" if needed is not None else "")
    if error.errno == errno.EFBIG:
        import resource  # not on every system

        facts += f"; `ulimit -f`, in bytes: {resource.getrlimit(resource.RLIMIT_FSIZE)[0]}, where -1 is no limit"
    return (
        f"{error.filename or path} cannot be written: {_FULL[error.errno or 0]} ({facts}). Free some space (the store: "
        "`graphwright clean`), or use another disk: GRAPHWRIGHT_STORE for the store, --out for the output."
    )


def _concerns(error: OSError, path: Path) -> bool:
    if not isinstance(error.filename, str | bytes):
        return False
    named, path = Path(os.fsdecode(error.filename)).absolute(), path.absolute()
    return named.is_relative_to(path) or path.is_relative_to(named)


class _File(BaseModel, extra="forbid"):
    size: int
    sha256: str


class _Object(BaseModel, extra="forbid"):
    """object.json."""

    version: Literal[1] = 1
    stage: str
    key: dict[str, Any]
    files: dict[str, _File]
    time: str


class Store:
    """Stages by key in `root`; by default in $GRAPHWRIGHT_STORE, else in graphwright/ in the user's cache folder.

    Safe for any number of processes: an object is there whole or not at all, wherever one of them is killed.
    Raises UsageError if the folder cannot be made, or if anyone else could write into it.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root.absolute() if root else _default_root()
        self._objects, self._temp, self._locks = (self.root / name for name in ("objects", "tmp", "locks"))
        for folder in (self.root, self._objects, self._temp, self._locks):
            _own_folder(folder)
            if folder != self.root and folder.is_symlink():
                raise UsageError(f"{folder} is a link, but must be a real folder: `rm {shlex.quote(str(folder))}`.")

    def get(self, key: Key) -> Path | None:
        """The folder of the object, each file of it hashed anew; None if there is none.

        A damaged object is removed with a warning, and counts as none.
        """
        folder = self._objects / key.digest
        if not (folder.exists() or folder.is_symlink()):
            return None
        damage = _damage(folder, key.digest)
        if damage and self._discard(folder):
            _log.warning("The stored stage %r was damaged (%s): it is removed and made anew.", key.stage, damage)
        return None if damage else folder

    def put(self, key: Key, write: Write) -> Path:
        """Keep what `write` puts into the empty folder that it is given, and return the object's folder.

        Nothing stays behind if `write` raises. Raises ResourceError where the disk, quota or file size limit ran out.
        """
        with self.scratch() as temp:
            write(temp)
            _seal(temp, key)
            return self._publish(temp, key)

    def take(self, key: Key, write: Write) -> tuple[Path, bool]:
        """The object's folder and True if it was there, else False after `put`, which one process does for all."""
        found = self.get(key)
        if found:
            return found, True
        with disk_errors(self.root), self._making(key):
            found = self.get(key)  # another process may have made it while this one waited
            return (found, True) if found else (self.put(key, write), False)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder that is gone after the block, for what is large and not kept."""
        with disk_errors(self.root), self._name() as folder:
            folder.mkdir(mode=0o700)
            yield folder

    def size(self) -> tuple[int, int]:
        """How many objects there are, and their bytes."""
        folders = _named(self._objects, 64)
        return len(folders), sum(map(size_of, folders))

    def clean(self) -> tuple[int, int]:
        """Remove all objects, and what killed processes left half written; how many objects, how many bytes in all."""
        count = total = 0
        with disk_errors(self.root):
            for folder in _named(self._objects, 64):
                size = size_of(folder)
                if self._discard(folder):
                    count, total = count + 1, total + size
            total += sweep(self._temp) + sweep(self._locks)
            if (self.root / TIMING).is_dir():
                total += sweep(self.root / TIMING)
        return count, total

    def _publish(self, temp: Path, key: Key) -> Path:
        final = self._objects / key.digest
        while True:
            try:
                temp.rename(final)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
                if self.get(key):  # another process was faster; the same key means the same content
                    return final
            else:
                _sync(self._objects)
                return final

    def _discard(self, folder: Path) -> bool:
        """Remove an object, for readers at one moment; False if it is gone already."""
        with self._name() as doomed:
            try:
                folder.rename(doomed)
            except FileNotFoundError:
                return False
        return True

    @contextlib.contextmanager
    def _name(self) -> Iterator[Path]:
        """A name below tmp/. What killed processes left goes first, so that it cannot grow."""
        sweep(self._temp)
        sweep(self._locks)
        with held(self._temp / uuid.uuid4().hex) as name:
            yield name

    def _making(self, key: Key) -> contextlib.AbstractContextManager[object]:
        """Hold the key, so that this process alone makes its stage."""
        name, stack = self._locks / key.digest, contextlib.ExitStack()
        try:
            stack.enter_context(held(name, timeout=0))
        except Timeout:
            _log.info("Another process makes the stage %r: waiting for it.", key.stage)
            stack.enter_context(held(name))
        return stack


def _default_root() -> Path:
    if own := os.environ.get("GRAPHWRIGHT_STORE"):
        return Path(own).absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if cache.is_absolute():
        return cache / "graphwright"
    try:
        return Path.home() / ".cache" / "graphwright"
    except RuntimeError as error:
        raise UsageError(f"There is no folder for the store ({error}): set GRAPHWRIGHT_STORE.") from error


def _own_folder(folder: Path) -> None:
    with disk_errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = folder.stat()
    if info.st_uid != os.getuid():
        wrong, command = f"belongs to user {info.st_uid}, not to you", f"chown -R {os.getuid()}"
    elif info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        wrong, command = f"can be written by others (mode {stat.S_IMODE(info.st_mode):o})", "chmod 700"
    else:
        return
    raise UsageError(
        f"The store's folder {folder} {wrong}: run `{command} {shlex.quote(str(folder))}`, or set GRAPHWRIGHT_STORE to "
        "a folder of your own."
    )


def _seal(folder: Path, key: Key) -> None:
    """Write object.json for what is in `folder`, and bring all of it to the disk."""
    try:
        files = _payload(folder)
    except ValueError as error:
        raise GraphwrightError(f"The stage {key.stage!r} cannot be stored: {error}.") from error
    if (folder / _RECORD).exists():
        raise GraphwrightError(f"The stage {key.stage!r} cannot be stored: it wrote a file of its own as {_RECORD}.")
    record = _Object(
        stage=key.stage,
        key=dict(key.parts),
        files={name: _File(size=path.stat().st_size, sha256=hash_file(path)) for name, path in files.items()},
        time=datetime.now(UTC).isoformat(),
    )
    (folder / _RECORD).write_text(record.model_dump_json(indent=2) + "\n")
    for path in (*(path for path, _ in walk(folder)), folder):
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _payload(folder: Path) -> dict[str, Path]:
    """The files of an object by relative name. Raises ValueError at what is neither regular file nor folder."""
    files = {}
    for path, info in walk(folder):
        name = path.relative_to(folder).as_posix()
        if stat.S_ISREG(info.st_mode):
            files[name] = path
        elif not stat.S_ISDIR(info.st_mode):
            raise ValueError(f"{name} is neither a regular file nor a folder")
    files.pop(_RECORD, None)
    return files


def _damage(folder: Path, digest: str) -> str:
    """What is wrong with an object, in words; empty if it is whole."""
    if folder.is_symlink():
        return "its folder is a link"
    try:
        record = _Object.model_validate_json((folder / _RECORD).read_bytes())
        if Key(record.stage, record.key).digest != digest:
            return f"{_RECORD} is of another key"
        return _difference(record.files, _payload(folder))
    except (OSError, ValueError) as error:
        return " ".join(str(error).split())


def _difference(wanted: Mapping[str, _File], found: Mapping[str, Path]) -> str:
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found or name not in wanted:
            return f"{name} is {'missing' if name in wanted else 'extra'}"
        size = found[name].stat().st_size
        if size != wanted[name].size:
            return f"{name} has {size} bytes instead of {wanted[name].size}"
        if hash_file(found[name]) != wanted[name].sha256:
            return f"{name} has other content"
    return ""


def _named(folder: Path, digits: int) -> list[Path]:
    """The entries that the store itself named: so many hex digits. Anything else in there is not its own."""
    return sorted(path for path in folder.iterdir() if re.fullmatch(rf"[0-9a-f]{{{digits}}}", path.name))


def _raise(error: OSError) -> None:
    raise error
