"""Commands that fail, crash, hang, print endlessly or leave processes behind do not affect other parts."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench import parts
from bench.parts import TIMED, WAITING, Command, Log, Outcome, Part, run_parts


def python(code: str) -> Callable[[float], list[str]]:
    return lambda minutes: [sys.executable, "-c", code.replace("MINUTES", str(minutes))]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    monkeypatch.setattr(parts, "LEAST_SECONDS", 0.1)
    with Log(tmp_path / "log.txt") as log:
        yield log


def statuses(outcomes: list[Outcome]) -> dict[str, str]:
    return {outcome.name: outcome.status for outcome in outcomes}


def test_each_ends_for_itself(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    todo = [
        Part("fails", 1, python("import sys; sys.exit(3)")),
        Part("crashes", 1, python("import os; print('before', flush=True); os.abort()")),
        Part("hangs", 0.1, python("import time; time.sleep(60)")),
        Part("ignores signals", 0.1, python("import signal, time; signal.signal(15, 1); time.sleep(60)")),
        Part("works", 4, python("print('was given', MINUTES > 0.02)")),
    ]
    seen: list[int] = []
    outcomes = run_parts(20, todo, log, report=lambda found: seen.append(len(found)))
    assert statuses(outcomes) == {
        "fails": "failed with 3",
        "crashes": "died of SIGABRT",
        "hangs": "out of time",
        "ignores signals": "out of time",
        "works": "done",
    }
    assert [outcome.failed for outcome in outcomes] == [True, True, False, False, False]
    assert seen == [1, 2, 3, 4, 5], "after each"
    said = capsys.readouterr().out
    assert said == log.path.read_text(), "all of it is in the log, too"
    assert all(line in said for line in ("before\n", "was given True\n", "hangs: out of time, "))


def test_no_time_left(log: Log) -> None:
    assert statuses(run_parts(0.01, [Part("late", 1, python("pass"))], log)) == {"late": "not started"}


def test_least_time(log: Log) -> None:
    """A part gets the time without which it has no result, at the cost of later ones, or is not started."""
    waits = python("import time; time.sleep(0.6)")
    todo = [
        Part("small share", 0.01, waits, least=5),
        Part("too long", 1, python("pass"), least=60),
        Part("short", 1, python("pass")),
    ]
    beside = [Part("compiles", 1, python("pass"), least=60)]
    assert statuses(run_parts(20, todo, log, beside=beside)) == {
        "small share": "done",
        "too long": "not started",
        "short": "done",
    }


def test_what_prints_without_end(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MOST_BYTES", 5000)
    code = r"""
import sys
sys.stdout.buffer.write(b"no line's end " * 100_000 + b"\n\xff\xfe is no UTF-8\n 10%\r100%\n")
for n in range(10_000): print("line", n)
"""
    [outcome] = run_parts(60, [Part("talks", 1, python(code))], log)
    assert outcome.status == "done"
    text = log.path.read_text()
    assert len(text) < 7000
    assert " more lines\n" in text


def test_a_line_of_progress_is_its_last_state() -> None:
    heard: list[str] = []
    command = Command([sys.executable, "-c", r"print(' 10%\r100%'); print('half', end='')"], heard.append)
    assert command.wait(60) == "done"
    assert heard == ["100%", "half"]


def lives(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"  # a zombie has ended but has not been waited for
    return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc")
def test_nothing_is_left_behind() -> None:
    """Neither a child of a finished command that keeps the pipe open nor a child of a killed command survives."""
    for parent in ("", "time.sleep(60)"):
        heard: list[str] = []
        code = (
            "import subprocess, sys, time; c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
        )
        command = Command([sys.executable, "-c", f"{code}; print(c.pid, flush=True); {parent}"], heard.append)
        end = time.monotonic() + 30
        while not heard and time.monotonic() < end:
            time.sleep(0.01)
        assert command.wait(1) == ("out of time" if parent else "done")
        while lives(int(heard[0])) and time.monotonic() < end:
            time.sleep(0.01)
        assert not lives(int(heard[0]))


BESIDE = f"""
import sys
for n in range(2):
    print({WAITING!r}, flush=True)
    if not sys.stdin.readline(): sys.exit("nobody is there")
    print("times", n)
    print({TIMED!r}, flush=True)
"""


def test_beside_the_parts_each_waits_for_its_turn(log: Log) -> None:
    """Turns take place between parts within their time limit; nothing else runs during a timing."""
    todo = [
        Part("one", 1, python("print('part one')")),
        Part("theirs", 8, None),
        Part("two", 1, python("print('two')")),
    ]
    outcomes = run_parts(60, todo, log, beside=[Part("a", 1, python(BESIDE)), Part("b", 1, python(BESIDE))])
    assert statuses(outcomes) == dict.fromkeys(["one", "theirs", "two", "a", "b"], "done")
    lines = log.path.read_text().splitlines()
    for place, line in enumerate(lines):
        if line.endswith(TIMED):
            name = line.partition(":")[0]
            assert lines[place - 1].startswith(f"{name}: times"), "nobody else had a word while it was timed"


def test_beside_the_parts_each_fails_for_itself(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """One part crashes and one hangs in its turn; the others continue."""
    monkeypatch.setattr(parts, "TURN_SECONDS", 0.5)
    codes = {
        "crashes": "import os; os.abort()",
        "hangs": f"import sys, time; print({WAITING!r}, flush=True); sys.stdin.readline(); time.sleep(60)",
        "works": BESIDE,
    }
    beside = [Part(name, 1, python(code)) for name, code in codes.items()]
    outcomes = run_parts(60, [Part("theirs", 8, None), Part("last", 1, python("pass"))], log, beside=beside)
    expected = {"theirs": "done", "last": "done", "crashes": "died of SIGABRT", "hangs": "out of time", "works": "done"}
    assert statuses(outcomes) == expected


def test_beside_the_parts_time_ends_too(log: Log) -> None:
    compiles = Part("compiles", 1, python("import time; time.sleep(60)"))
    assert statuses(run_parts(0.5, [], log, beside=[compiles])) == {"compiles": "out of time"}


def test_a_timed_part_is_alone(log: Log, tmp_path: Path) -> None:
    """A part running in parallel is stopped during a timing, but not otherwise."""
    ticks, stop = tmp_path / "ticks", tmp_path / "stop"
    ticks.touch()
    paths = f"from pathlib import Path; ticks, stop = Path({str(ticks)!r}), Path({str(stop)!r})\n"
    works = "while not stop.exists():\n    with ticks.open('a') as file: file.write('.')"
    sees_it_work = "import time\nbefore = ticks.stat().st_size\nwhile ticks.stat().st_size == before: time.sleep(0.01)"
    sees_it_stand = """
import time
before = ticks.stat().st_size
time.sleep(0.3)
print("moved by", ticks.stat().st_size - before)
stop.touch()
"""
    todo = [
        Part("tests", 1, python(paths + sees_it_work), timed=False),
        Part("timed", 1, python(paths + sees_it_stand)),
    ]
    outcomes = run_parts(60, todo, log, beside=[Part("beside", 1, python(paths + works))])
    assert statuses(outcomes) == dict.fromkeys(["tests", "timed", "beside"], "done")
    assert "moved by 0\n" in log.path.read_text()
