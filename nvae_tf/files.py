"""Writing of files and directories that appear complete or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator


@contextlib.contextmanager
def new_file(path: str | os.PathLike) -> Iterator[str]:
    """Lets the caller write a file under a temporary name, and renames it at the end.

    A file that exists at `path` is replaced.

    Yields:
      The temporary path, in the same directory. If the scope ends with an error, the temporary
      file is removed.
    """
    path = os.fspath(path)
    temporary = f"{path}.tmp-{os.getpid()}"
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def write_atomically(path: str | os.PathLike, content: bytes | str) -> None:
    """Writes or replaces a file, which appears complete or not at all.

    Raises:
      OSError: if the directory does not exist or cannot be written.
    """
    with new_file(path) as temporary, open(temporary, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def check_directory_of(path: str | os.PathLike) -> None:
    """Raises a FileNotFoundError if the directory that would hold `path` does not exist."""
    directory = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(directory):
        raise FileNotFoundError(
            f"Cannot write {os.fspath(path)!r}: there is no directory {directory!r}."
        )


@contextlib.contextmanager
def new_directory(path: str | os.PathLike) -> Iterator[str]:
    """Lets the caller fill a directory under a temporary name, and renames it at the end.

    Yields:
      The path of the temporary directory. If the scope ends with an error, it is removed.

    Raises:
      ValueError: if `path` exists and is not an empty directory.
    """
    path = os.path.normpath(path)
    if os.path.exists(path) and not (os.path.isdir(path) and not os.listdir(path)):
        raise ValueError(f"{path!r} exists already and is not an empty directory.")
    temporary = f"{path}.tmp-{os.getpid()}"
    os.makedirs(temporary)
    try:
        yield temporary
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
