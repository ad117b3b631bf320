"""Files that appear complete or not at all, locks, and small files that are checked when read.

That holds for processes that are killed. After a loss of power the file system decides.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import math
import os
import secrets
import shutil
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

_NAMES = "names of all arrays"  # so that none can be lost, which zip's checksums do not show
_SMALL = 1 << 24  # bytes of a text; those of this package have some thousands


@contextlib.contextmanager
def new_file(path: str | os.PathLike) -> Iterator[str]:
    """Lets the caller write a file under a temporary name, and renames it at the end.

    A regular file that exists at `path` is replaced; a link leads to the file that is.

    Yields:
      The temporary path, in the same directory. If the scope ends with an error, the temporary
      file is removed.

    Raises:
      ValueError: `path` is a directory, a device or the like; nothing has changed.
      OSError: The directory does not exist or cannot be written.
    """
    path = os.path.realpath(path)
    check_regular(path)
    temporary = os.path.join(os.path.dirname(path), _temporary_name())
    with _named(path), open(temporary, "xb"):  # not what somebody else has put there
        pass
    mode = os.stat(path).st_mode if os.path.exists(path) else None
    try:
        if mode is not None:  # nobody may read more of it meanwhile
            os.chmod(temporary, mode | stat.S_IWUSR)
        yield temporary
        if mode is not None:
            os.chmod(temporary, mode)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Makes an error of the system name this path, not the temporary one beside it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def _temporary_name() -> str:
    """Returns a name that is hidden and short: the target's own may be as long as names can be."""
    return f".{secrets.token_hex(8)}"


def check_regular(path: str | os.PathLike) -> None:
    """Raises a ValueError if there is something at `path` that is no regular file."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{os.fspath(path)!r} is not a regular file, so it is not replaced.")


def write_atomically(path: str | os.PathLike, content: bytes | str) -> None:
    """Writes or replaces a file, which appears complete or not at all.

    Raises:
      OSError: if the directory does not exist or cannot be written.
    """
    with new_file(path) as temporary, open(temporary, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def check_output(path: str | os.PathLike) -> None:
    """Checks that a file can be written, before the work whose result it holds.

    Raises:
      FileNotFoundError: The directory that would hold it does not exist.
      PermissionError: That directory cannot be written.
      OSError: There can be no such name, because it is too long.
      ValueError: It is a directory, a device or the like.
    """
    path = os.path.realpath(path)
    with contextlib.suppress(FileNotFoundError):
        os.stat(path)  # fails if there cannot be such a name
    check_regular(path)
    directory = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(directory):
        raise FileNotFoundError(
            f"Cannot write {os.fspath(path)!r}: there is no directory {directory!r}."
        )
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(f"Cannot write into {directory!r}.")


def check_new_directory(path: str | os.PathLike) -> None:
    """Checks that a directory can be created, before the work whose results it holds.

    Raises:
      ValueError: `path` exists and is not an empty directory, or is a mount point.
    """
    path = os.path.realpath(path)
    if os.path.ismount(path):
        raise ValueError(f"{path!r} is a mount point; name a directory below it.")
    if os.path.exists(path) and not (os.path.isdir(path) and not os.listdir(path)):
        raise ValueError(f"{path!r} exists already and is not an empty directory.")


@contextlib.contextmanager
def new_directory(path: str | os.PathLike) -> Iterator[str]:
    """Lets the caller fill a directory under a temporary name, and renames it at the end.

    An empty directory at `path` is replaced; a link leads to the directory that is.

    Yields:
      The path of the temporary directory. If the scope ends with an error, it is removed.

    Raises:
      ValueError: if `path` exists and is not an empty directory, or is a mount point.
      OSError: if the directory cannot get its name in the end, such as because something else has
        it by then; the message says where it stays.
    """
    check_new_directory(path)
    path = os.path.realpath(path)
    temporary = os.path.join(os.path.dirname(path), _temporary_name())
    with _named(path):
        os.makedirs(temporary)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    try:
        os.rename(temporary, path)
    except OSError as error:
        raise OSError(
            f"The new directory {temporary!r} stays, because it cannot be renamed to {path!r}: "
            f"{error.strerror}."
        ) from error


@contextlib.contextmanager
def locked(path: str | os.PathLike, activity: str) -> Iterator[None]:
    """A scope in which one process is at a time. Others wait, which they log.

    The system releases the lock of a killed process. The file stays.

    Args:
      path: The lock, a file that is created if need be.
      activity: What the other process does, for the log, such as "publishes to DIRECTORY".

    Raises:
      OSError: The file cannot be opened, or its file system has no locks.
    """
    with open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.warning("Waiting for another process that %s.", activity)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_cache(directory: str | os.PathLike) -> None:
    """Creates a cache's directory, for what has no other place, unless it exists.

    Raises:
      OSError: It cannot be created; the message says how to choose another.
    """
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"Cannot create {os.fspath(directory)!r} ({error.strerror}), where decoded images are "
            "kept. The variable XDG_CACHE_HOME, or data.cache_dir, names another place."
        ) from error


def to_json(fields: Mapping[str, Any]) -> str:
    """Returns an object as JSON text, with null for numbers that are not finite."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: plain(inside) for name, inside in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inside) for inside in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(fields), indent=2, allow_nan=False) + "\n"


def to_csv(names: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a table as CSV: a line of the columns' names, and a line for each row."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([names, *rows])
    return text.getvalue()


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray] | None:
    """Reads arrays that can be computed again, from what `write_arrays` wrote.

    Returns:
      The arrays by name; None if there is no file, or if it is damaged, which is logged.

    Raises:
      OSError: It cannot be read.
    """
    if not os.path.exists(path):
        return None
    with open(path, "rb") as file:
        content = io.BytesIO(file.read())
    try:
        with np.load(content) as archive:  # zipfile verifies the checksums
            arrays = dict(archive)
        if sorted(arrays.pop(_NAMES).tolist()) != sorted(arrays):
            raise ValueError("it lacks arrays")
        return arrays
    # NumPy and zipfile raise these for damage.
    except (
        AttributeError,  # it is a single array
        EOFError,
        KeyError,
        RuntimeError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
    ) as error:
        logging.warning("%s is damaged, so it is computed again: %s", path, error)
        return None


def write_arrays(path: str | os.PathLike, arrays: Mapping[str, Any]) -> None:
    """Writes arrays by name, whole or not at all.

    Raises:
      OSError: The directory does not exist or cannot be written.
    """
    content = io.BytesIO()
    named: dict[str, Any] = {**arrays, _NAMES: np.array(list(arrays))}
    np.savez(content, **named)
    write_atomically(path, content.getvalue())


def keep_arrays(path: str | os.PathLike, arrays: Mapping[str, Any]) -> None:
    """Writes arrays that can be computed again, for a later `read_arrays`, and makes the directory.

    A place that cannot be written costs whoever needs them the time, and not the result: that is
    logged.
    """
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_arrays(path, arrays)
    except OSError as error:
        logging.warning("This result cannot be kept, so it will be computed again: %s", error)


def read_bytes(path: str | bytes | os.PathLike, most: float = math.inf) -> bytes:
    """Reads a file that is to end: a pipe or a device may never do so.

    Args:
      path: The path.
      most: The number of bytes that it may have; the error names it in MiB.

    Raises:
      ValueError: It is not a regular file, or has more bytes.
      OSError: There is none, or it cannot be read.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{os.fspath(path)!r} is not a regular file.")
    if status.st_size > most:
        raise ValueError(f"{os.fspath(path)!r} has more than {most / 2**20:g} MiB.")
    with open(path, "rb") as file:
        return file.read()


def read_text(path: str | os.PathLike) -> str:
    """Reads a small text, such as a configuration.

    Raises:
      ValueError: It is not a regular file, has more than 16 MiB, or is not UTF-8.
      OSError: There is none, or it cannot be read.
    """
    try:
        return read_bytes(path, _SMALL).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(path)!r} is not a text in UTF-8: {error}.") from error


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      ValueError: As from `read_text`, or it is not a JSON object.
      OSError: There is none, or it cannot be read.
    """
    text = read_text(path)
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)!r} is not JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{os.fspath(path)!r} is not a JSON object.")
    return fields
