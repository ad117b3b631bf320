"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator


def write_atomically(path: str | os.PathLike, content: bytes | str) -> None:
    """Writes a file under a temporary name in the same directory, then renames it.

    Raises:
      OSError: if the directory does not exist or cannot be written.
    """
    path = os.fspath(path)
    temporary = f"{path}.tmp-{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


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
