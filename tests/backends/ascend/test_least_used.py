"""What was used least recently goes from a cache folder, though others make room in it too."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from twintune.backends.ascend.least_used import make_room, used

SIZE = 100  # bytes of a folder's file


def fill(cache: Path, names: list[str]) -> None:
    """Folders with a file each, the first used least recently."""
    for second, name in enumerate(names):
        file = cache / name / "deep" / "file"
        file.parent.mkdir(parents=True)
        file.write_bytes(bytes(SIZE))
        os.utime(cache / name, (second, second))


def size(folder: Path) -> int:
    """All bytes that a folder of `fill` counts, its folder within too."""
    return SIZE + (folder / "deep").stat().st_size


def test_the_least_recently_used_go(tmp_path: Path) -> None:
    fill(tmp_path, ["a", ".left-by-a-killed-process", "b", "c"])
    used(tmp_path / "a")
    assert make_room(tmp_path, 2 * size(tmp_path / "a")) == 2
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["a", "c"]
    assert make_room(tmp_path, 2 * size(tmp_path / "a")) == 0


def test_an_absent_cache_has_room(tmp_path: Path) -> None:
    assert make_room(tmp_path / "absent", 0) == 0
    used(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_several_make_room_at_the_same_time(tmp_path: Path) -> None:
    names = [str(number) for number in range(200)]
    fill(tmp_path, names)
    with ThreadPoolExecutor(4) as pool:
        removed = list(pool.map(lambda _: make_room(tmp_path, 0), range(4)))
    assert sum(removed) >= len(names)
    assert not any((tmp_path / name).exists() for name in names)
