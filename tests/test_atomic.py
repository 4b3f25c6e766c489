"""Files written atomically, with names of any kind."""

import errno
import os
from pathlib import Path

import pytest

from lmfn import atomic


@pytest.mark.parametrize("name", ["a", "a" * 255, "ä" * 127 + "b", ".png".rjust(249, "a"), "日" * 85])
def test_names_as_long_as_they_may_be(tmp_path: Path, name: str) -> None:
    for content in (b"old", b"new"):
        atomic.write(tmp_path / "folder" / name, content)
        assert os.listdir(tmp_path / "folder") == [name]
        assert (tmp_path / "folder" / name).read_bytes() == content


def test_an_error_names_the_file_where_nothing_can_be_removed_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a read-only file system, which refuses to remove even what is not there."""

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OSError, match="Read-only file system") as raised:
        atomic.write(tmp_path / "a.png", b"content")
    assert raised.value.filename == str(tmp_path / "a.png")
