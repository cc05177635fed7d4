"""Room in a cache folder: what was used least recently goes, while other processes use the folder too."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from uuid import uuid4


def used(folder: Path) -> None:
    """Count as used now, unless another process has just removed it."""
    with suppress(FileNotFoundError):
        os.utime(folder)


def make_room(cache: Path, most: int) -> int:
    """Remove the least recently used folders of a cache until the others have at most `most` bytes.

    Each is renamed before it is deleted: another process finds it whole or not at all, and if it was reading, misses
    files; it has to check what it read.

    Args:
        cache: a folder of folders, which may not exist; also what a killed process left half-written counts.
        most: bytes.

    Returns:
        How many were there to be removed.
    """
    removed, total = 0, 0
    for folder in sorted(cache.glob("*"), key=_last_used, reverse=True):
        total += _bytes(folder)
        if total > most:
            removed += _remove(folder)
    return removed


def _last_used(folder: Path) -> float:
    """By the modification time in seconds; one that is gone by now was last used long ago."""
    with suppress(FileNotFoundError):
        return folder.stat().st_mtime
    return 0.0


def _bytes(folder: Path) -> int:
    total = 0
    with suppress(FileNotFoundError):  # removed meanwhile
        for file in folder.rglob("*"):
            total += file.stat().st_size
    return total


def _remove(folder: Path) -> bool:
    """Whether it was there to be removed."""
    aside = folder.with_name(f".{uuid4().hex}.part")
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return False
    shutil.rmtree(aside, ignore_errors=True)  # which another process may do as well
    return True
