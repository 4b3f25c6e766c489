"""Files written atomically, with names of any kind."""

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
