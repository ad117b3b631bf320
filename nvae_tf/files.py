"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator


@contextlib.contextmanager
def new_file(path: str | os.PathLike) -> Iterator[str]:
    """A file to be written under a temporary name beside it, and renamed at the end.

    Yields:
      The temporary path, which is removed if the scope ends with an error. What was at the path
      before is replaced.
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
    """Writes a file as `new_file` does.

    Raises:
      OSError: if the directory does not exist or cannot be written.
    """
    with new_file(path) as temporary, open(temporary, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def check_directory_of(path: str | os.PathLike) -> None:
    """Raises a FileNotFoundError if there is no directory for a file at that path."""
    directory = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(directory):
        raise FileNotFoundError(
            f"Cannot write {os.fspath(path)!r}: there is no directory {directory!r}."
        )


@contextlib.contextmanager
def new_directory(path: str | os.PathLike) -> Iterator[str]:
    """A directory to be filled under a temporary name beside it, and renamed at the end.

    Yields:
      The temporary directory, which is removed if the scope ends with an error.

    Raises:
      ValueError: if there is something at the path already, other than an empty directory.
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
