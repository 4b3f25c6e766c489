"""The manifest of a run over many files: one line of JSON per file, from which a later run resumes."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from lmfn.jobs import Outcome

START = '{"path": '
"""Of every line."""


def row(outcome: Outcome, weights: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a line: `path`, `output`, `status` (done, there or failed), `reason`,
    `doubts`, `notes`, `seconds`, `height` and `width`, `bytes_in` and `bytes_out`, the digest of the weights, and
    the settings."""
    height, width = outcome.size or (None, None)
    return {
        "path": str(outcome.source),
        "output": "" if outcome.target == Path() else str(outcome.target),
        "status": outcome.status,
        "reason": outcome.reason,
        "doubts": outcome.doubts,
        "notes": outcome.notes,
        "seconds": round(outcome.seconds, 3),
        "height": height,
        "width": width,
        "bytes_in": _bytes(outcome.source),
        "bytes_out": _bytes(outcome.target) if outcome.status == "done" else None,
        "weights": weights,
        "settings": dict(settings),
    }


class Manifest:
    """Appends to the manifest of an earlier run, line by line.

    Each `shard` (k of n) has its own file next to `path`, so that processes do not share one; all of them are read.
    Raises ValueError for a file that is not a manifest.
    """

    def __init__(self, path: Path, weights: str, settings: Mapping[str, Any], shard: tuple[int, int] = (1, 1)) -> None:
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is no file; choose another name for the manifest")
        self.weights, self.settings = weights, dict(settings)
        self._path = path if shard[1] == 1 else path.with_stem(f"{path.stem}-{shard[0]}-of-{shard[1]}")
        self._done: dict[str, dict[str, Any]] = {}
        for file in (path, *path.parent.glob(f"{path.stem}-*-of-*{path.suffix}")):
            for line in _lines(file):
                if line["status"] == "done":
                    self._done[line["path"]] = line
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("ab+")
        if self._file.tell() and (self._file.seek(-1, os.SEEK_END), self._file.read(1))[1] != b"\n":
            self._file.write(b"\n")  # after a line that a kill left incomplete

    def is_done(self, source: Path, target: Path) -> bool:
        """Whether an earlier run made this result from this file, both unchanged, with these weights and settings."""
        line = self._done.get(str(source))
        return (
            line is not None
            and (line["output"], line["weights"]) == (str(target), self.weights)
            and line.get("settings", self.settings) == self.settings  # of earlier versions: none
            and line["bytes_in"] == _bytes(source)
            and line["bytes_out"] == _bytes(target)
        )

    def add(self, outcome: Outcome) -> None:
        """Write the line of a file."""
        self._file.write(json.dumps(row(outcome, self.weights, self.settings)).encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    if not file.exists():
        return
    for number, text in enumerate(file.read_text(encoding="utf-8", errors="surrogateescape").splitlines(), start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            if number > 1 or text[: len(START)] == START[: len(text)]:
                continue  # incomplete after a kill
            line = None  # a photograph, say: nothing may be appended to it
        if not isinstance(line, dict) or not {"path", "output", "status", "weights"} <= line.keys():
            raise ValueError(f"{file}, line {number}: no line of a manifest; choose another name")
        yield line


def _bytes(path: Path) -> int | None:
    return os.stat(path).st_size if path.exists() else None
