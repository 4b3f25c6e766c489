"""Many files: parallel steps, claims, shards, the manifest, and the class that schedulers call."""

import json
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from forked import in_a_child

from lmfn import cli, images
from lmfn.batch import Deblur
from lmfn.claims import Claim
from lmfn.files import carry_out, deblur_files, parse_shard, plan
from lmfn.jobs import run_jobs
from lmfn.manifest import Manifest


def save(path: Path, seed: int = 0, size: tuple[int, int] = (4, 5)) -> Path:
    images.write(path, images.Photo(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)))
    return path


def negative(image: np.ndarray) -> np.ndarray:
    return 1 - image


def jobs_of(folder: Path, count: int) -> list[tuple[Path, Path]]:
    return [(save(folder / f"{n}.png", n), folder / "out" / f"{n}.png") for n in range(count)]


def killed_by(poison: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    def sharpen(image: np.ndarray) -> np.ndarray:
        if np.array_equal(image, poison):
            os.kill(os.getpid(), 9)
        return negative(image)

    return sharpen


def test_reading_and_writing_go_on_beside_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step waits until the others are busy, which would never happen if they ran one after the other."""
    jobs = jobs_of(tmp_path, 6)
    read_ahead, written = threading.Event(), threading.Event()
    read, write = images.read, images.write
    threads: dict[str, set[threading.Thread]] = {"read": set(), "write": set()}

    def reads(path: Path, **options: bool) -> images.Photo:
        threads["read"].add(threading.current_thread())
        if path.name == "1.png":
            read_ahead.set()
        return read(path, **options)

    def writes(path: Path, photo: images.Photo) -> None:
        threads["write"].add(threading.current_thread())
        write(path, photo)
        written.set()

    monkeypatch.setattr(images, "read", reads)
    monkeypatch.setattr(images, "write", writes)
    calls = 0

    def sharpen(image: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        assert read_ahead.wait(30)  # the second is read while the network processes the first
        assert calls == 1 or written.wait(30)  # and the first is written while it processes the second
        return negative(image)

    outcomes = list(run_jobs(jobs, sharpen))
    assert [outcome.target for outcome in outcomes] == [target for _, target in jobs]
    assert {outcome.status for outcome in outcomes} == {"done"}
    assert {outcome.size for outcome in outcomes} == {(4, 5)}
    assert len(threads["read"] | threads["write"] | {threading.current_thread()}) == 3


def test_images_on_their_way_are_bounded_by_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmfn.jobs.AHEAD", 2**20)
    monkeypatch.setattr("lmfn.jobs.LEAST", 2**15)
    jobs = jobs_of(tmp_path, 12)
    taken, peak = 0, 0

    def large(path: Path, **_: bool) -> images.Photo:
        nonlocal peak
        peak = max(peak, int(path.stem) + 1 - taken)
        return images.Photo(np.full((2**8, 2**9, 3), 0.5, np.float32))  # 1.5 times the limit

    monkeypatch.setattr(images, "read", large)
    monkeypatch.setattr(images, "write", lambda *_: None)
    for _ in run_jobs(jobs, lambda image: image):
        taken += 1
    assert peak <= 4  # one read ahead, one in the network, one being written, one being read


def test_thousands_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No silent stop, no file processed twice, nothing left over; descriptors and memory do not grow."""
    source = save(tmp_path / "in" / "0.png")
    for n in range(1, 3000):
        os.link(source, tmp_path / "in" / f"{n:05d}.png")
    photo = images.read(source)
    written = []
    monkeypatch.setattr(images, "read", lambda *_, **__: photo)
    monkeypatch.setattr(images, "write", lambda path, _: written.append(path))
    files = []

    def sharpen(image: np.ndarray) -> np.ndarray:
        if len(written) % 100 == 0:
            files.append(psutil.Process().num_fds())
        return image

    summary = deblur_files([tmp_path / "in"], tmp_path / "out", deblurrer=sharpen)
    assert len(summary.done) == len(set(written)) == 3000
    assert max(files) <= min(files) + 3
    assert not list((tmp_path / "out").iterdir())  # no claim remains


def test_a_file_that_kills_is_given_up_and_its_neighbours_are_done(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, 7)
    poison = killed_by(images.read(jobs[3][0]).pixels)
    for _ in range(2):
        assert in_a_child(lambda: list(run_jobs(jobs, poison))) == -9
    assert not jobs[3][1].exists()
    outcomes = {outcome.source: outcome for outcome in run_jobs(jobs, poison)}
    assert [outcomes[source].status for source, _ in jobs].count("failed") == 1
    assert "given up, since 2 processes died at it; to try again, remove" in outcomes[jobs[3][0]].reason
    assert sorted(path.name for path in (tmp_path / "out").iterdir())[1:] == [f"{n}.png" for n in range(7) if n != 3]
    Claim(jobs[3][1]).release()
    assert [outcome.status for outcome in run_jobs(jobs, negative)] == ["there"] * 3 + ["done"] + ["there"] * 3


def test_an_interrupt_and_an_error_leave_no_claim(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, 5)

    def interrupted(_: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run_jobs(jobs, interrupted))
    outcomes = run_jobs(jobs, negative)
    assert next(outcomes).status == "done"
    outcomes.close()  # type: ignore[attr-defined]
    assert not list((tmp_path / "out").glob(".*"))

    def fails(_: np.ndarray) -> np.ndarray:
        raise MemoryError("too large")

    reasons = {outcome.reason for outcome in run_jobs([(jobs[4][0], tmp_path / "out" / "x.png")], fails)}
    assert reasons == {f"{jobs[4][0]}: too large"}
    assert not list((tmp_path / "out").glob(".*"))


def test_what_a_dead_process_left_half_written_is_removed(tmp_path: Path) -> None:
    [(source, target)] = jobs_of(tmp_path, 1)

    def dies_while_writing() -> None:
        os.fsync = lambda _: os.kill(os.getpid(), 9)  # type: ignore[assignment]
        list(run_jobs([(source, target)], negative))

    assert in_a_child(dies_while_writing) == -9
    assert len(list(target.parent.glob(".*.tmp"))) == 1
    assert [outcome.status for outcome in run_jobs([(source, target)], negative)] == ["done"]
    assert [path.name for path in target.parent.iterdir()] == ["0.png"]


def test_shards_are_disjoint_and_all(tmp_path: Path) -> None:
    for n in range(11):
        save(tmp_path / "in" / f"{n}.png")
    (tmp_path / "in" / "notes.txt").touch()
    deblur_files([tmp_path / "in" / "0.png"], tmp_path / "out", deblurrer=negative)
    parts = []
    for k in (1, 2, 3):
        parts.append(plan([tmp_path / "in", tmp_path / "gone"], tmp_path / "out").part((k, 3)))
        for _, target in parts[-1].jobs:  # before the next process looks
            save(target)
    assert {len(part.jobs) + len(part.existing) for part in parts} == {3, 4}
    sources = [source for part in parts for source, _ in part.jobs + part.existing]
    assert sorted(sources) == sorted((tmp_path / "in").glob("*.png"))
    assert [len(part.failed) + len(part.left_out()) for part in parts] == [2, 0, 0]
    assert parse_shard("3/8", {}) == (3, 8)
    assert parse_shard(None, {}) == (1, 1)
    assert parse_shard(None, {"RANK": "2", "WORLD_SIZE": "4"}) == (3, 4)
    for text in ("0/8", "9/8", "3", "3/8/2", "a/b"):
        with pytest.raises(ValueError, match=r"the third of eight is 3/8"):
            parse_shard(text, {})


def test_a_manifest_is_the_way_to_go_on(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(4):
        save(tmp_path / "in" / f"{n}.png", n, (20, 24))
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    manifest = tmp_path / "m.jsonl"
    command = ["deblur", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-w", weights, "--manifest", str(manifest)]
    assert cli.main(command) == 1
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert [row["status"] for row in rows].count("done") == 4
    done = next(row for row in rows if row["path"].endswith("2.png"))
    assert done["output"] == str(tmp_path / "out" / "2.png")
    assert (done["height"], done["width"], done["reason"]) == (20, 24, "")
    assert done["bytes_in"] == (tmp_path / "in" / "2.png").stat().st_size
    assert done["bytes_out"] == (tmp_path / "out" / "2.png").stat().st_size
    assert len(done["weights"]) == 64
    assert done["seconds"] > 0
    failed = next(row for row in rows if row["status"] == "failed")
    assert failed["reason"].startswith(f"{tmp_path / 'in' / 'broken.png'}: ")

    # As if a kill had cut the last line; a shard adds a file of its own and sees what the others have done.
    manifest.write_bytes(manifest.read_bytes()[:-20])
    (tmp_path / "in" / "broken.png").unlink()
    (tmp_path / "out" / "1.png").unlink()
    save(tmp_path / "in" / "4.png", 4, (20, 24))
    capsys.readouterr()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert cli.main([*command, "--shard", "2/2", "--skip-existing"]) == 0
    assert "1 done by an earlier run" in capsys.readouterr().err
    assert cli.main([*command, "--skip-existing"]) == 0
    assert cli.main(command) == 0
    assert sorted(path.name for path in tmp_path.glob("m*.jsonl")) == ["m-2-of-2.jsonl", "m.jsonl"]
    (tmp_path / "0.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match=r"0\.jsonl, line 1: no line of a manifest"):
        Manifest(tmp_path / "0.jsonl", "", {})


def test_a_manifest_holds_for_its_settings_alone(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "in" / "a.png", 0, (20, 24))
    manifest, result = tmp_path / "m.jsonl", tmp_path / "out" / "a.png"
    command = ["deblur", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-w", weights, "--manifest", str(manifest)]
    assert cli.main([*command, "--strength", "0"]) == 0
    before = result.read_bytes()
    assert cli.main([*command, "--guard", "off"]) == 1
    assert "1 already there and not replaced" in capsys.readouterr().err
    assert cli.main([*command, "--guard", "off", "--overwrite"]) == 0
    assert result.read_bytes() != before
    capsys.readouterr()
    assert cli.main([*command, "--guard", "off", "--overwrite"]) == 0
    assert "1 done by an earlier run" in capsys.readouterr().err
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert [row["settings"]["strength"] for row in rows] == [0, 1, 1]
    del rows[-1]["settings"]  # as in manifests of earlier versions
    manifest.write_text(json.dumps(rows[-1]) + "\n")
    assert cli.main([*command, "--strength", "0.5"]) == 0


def test_nothing_is_appended_to_a_file_that_is_no_manifest(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after `lmfn deblur --manifest *.png`, where the shell puts a photograph in the manifest's place."""
    photo, other = save(tmp_path / "a.png"), save(tmp_path / "b.png")
    notes = tmp_path / "notes.txt"
    notes.write_text("bread, milk\n")
    for file in (photo, notes):
        before = file.read_bytes()
        assert cli.main(["deblur", str(other), "-w", weights, "--manifest", str(file)]) == 1
        assert f"{file}, line 1: no line of a manifest; choose another name" in capsys.readouterr().err
        assert file.read_bytes() == before
    assert not (tmp_path / "b_deblurred.png").exists()
    killed = tmp_path / "killed.jsonl"  # within its first line
    for length in (3, 30):
        killed.write_bytes(b'{"path": "photos/1.png", "output": ""'[:length])
        Manifest(killed, "", {}).__exit__()


def test_what_the_plan_has_found_is_reported_too(tmp_path: Path) -> None:
    done, new = save(tmp_path / "a.png"), save(tmp_path / "b.png")
    deblur_files([done], tmp_path / "out", deblurrer=negative)
    planned, reported = plan([done, new, tmp_path / "gone.png"], tmp_path / "out"), []
    carry_out(planned, negative, None, report=lambda outcome: reported.append((outcome.source, outcome.status)))
    assert reported == [(done, "there"), (tmp_path / "gone.png", "failed"), (new, "done")]


def test_a_claim_goes_whose_process_died_right_after_its_work(tmp_path: Path) -> None:
    [(source, target)] = jobs_of(tmp_path, 1)
    assert in_a_child(lambda: (Claim(target).take(), save(target), os.kill(os.getpid(), 9))) == -9
    assert Claim(target).deaths() == 1
    assert [outcome.status for outcome in run_jobs([(source, target)], negative)] == ["there"]
    assert [path.name for path in target.parent.iterdir()] == ["0.png"]


def test_the_class_for_schedulers(weights: str, tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    paths = [save(root / name, n, (20, 24)) for n, name in enumerate(("a.png", "trip/b.jpg"))]
    (root / "broken.png").write_bytes(b"no image")
    given = [*map(str, paths), str(root / "broken.png"), str(root / "gone.png"), str(tmp_path / "x.png"), str(paths[0])]
    deblur = pickle.loads(pickle.dumps(Deblur(out, root, weights=weights)))
    rows = deblur({"path": np.array(given, dtype=object)})
    assert list(rows) == ["path", "output", "status", "reason", "seconds"]
    assert rows["path"] == given
    assert rows["status"] == ["done", "done", "failed", "failed", "failed", "done"]
    assert rows["output"][1] == str(out / "trip" / "b.jpg")
    assert [reason.partition(": ")[0] for reason in rows["reason"]] == ["", "", *given[2:5], ""]
    assert rows["seconds"][0] > 0
    before = (out / "a.png").stat()
    assert deblur({"path": given})["status"][:2] == ["there", "there"]
    assert (out / "a.png").stat().st_mtime_ns == before.st_mtime_ns
    deblur_files([root / "a.png"], tmp_path / "alone", deblurrer=deblur._deblurrer)
    assert (tmp_path / "alone" / "a.png").read_bytes() == (out / "a.png").read_bytes()
    assert Deblur(weights=weights)({"path": [str(paths[0])]})["output"] == [str(root / "a_deblurred.png")]
    with pytest.raises(ValueError, match="out is missing"):
        Deblur(root=root, weights=weights)
    with pytest.raises(ValueError, match=r"the extension is \.gif; it must be one of"):
        Deblur(weights=weights, extension="gif")
    with pytest.raises(ValueError, match="the suffix is 'a/b'"):
        Deblur(weights=weights, suffix="a/b")
    overwriting = Deblur(weights=weights, suffix="")({"path": [str(paths[0])]})
    assert "would overwrite it" in overwriting["reason"][0]
