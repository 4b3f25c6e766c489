"""The example for Ray, with Ray: a worker killed, a file that kills, a job that goes on (make test-ray)."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from lmfn import images
from lmfn.batch import Deblur

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.ray


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Four CPUs."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    own = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": 4, "include_dashboard": False}
    try:
        ray.init(logging_level="ERROR", **own)
    except Exception as error:  # it has seconds to start, which a busy machine may not give
        pytest.skip(f"Ray does not start here: {error}")
    yield
    ray.shutdown()


def workers() -> list[psutil.Process]:
    """Ray's processes that have loaded the network."""
    named = psutil.process_iter(["cmdline"])
    return [process for process in named if "ray::MapWorker" in " ".join(process.info["cmdline"] or ())]


@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_a_poison_file_and_a_job_that_goes_on(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from examples import ray_deblur

    folder, out = tmp_path / "in", tmp_path / "out"
    rng = np.random.default_rng(0)
    for n in range(32):
        images.write(folder / f"{n:02d}.png", images.Photo(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)))
    with pytest.raises(ValueError, match="--actors 3 needs 5 CPUs, and the cluster has 4"):
        ray_deblur.deblur(folder, out, actors=3)
    out.mkdir()
    with pytest.raises(ValueError, match=f"there is no image in {out}"):
        ray_deblur.deblur(out, out, actors=1)

    class DeadlyDeblur(Deblur):
        """In which the poison file kills, as one does on which a decoder crashes."""

        def __call__(self, batch):  # type: ignore[no-untyped-def]
            from lmfn import images

            if not hasattr(images, "whole_read"):
                images.whole_read = images.read

                def read(path, **options):  # type: ignore[no-untyped-def]
                    if path.name == "07.png":
                        os.kill(os.getpid(), 9)
                    return images.whole_read(path, **options)

                images.read = read
            return super().__call__(batch)

    monkeypatch.setattr(ray_deblur, "Deblur", DeadlyDeblur)
    monkeypatch.setattr(ray_deblur, "BATCH", 4)
    killed = []

    def kill_one() -> None:
        while not killed:
            if len(list(out.glob("*.png"))) >= 4 and (found := workers()):
                found[0].send_signal(signal.SIGKILL)
                killed.append(found[0].pid)
            time.sleep(0.02)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    counts = ray_deblur.deblur(folder, out, actors=2, weights=weights)
    killer.join(10)
    assert killed
    assert counts["failed"] == 1
    assert sum(counts.values()) == 32  # a row for each file, and none twice
    assert {path.name for path in out.glob("*.png")} == {path.name for path in folder.glob("*.png")} - {"07.png"}

    # One process writes the same.
    alone = Deblur(tmp_path / "alone", folder, weights=weights)
    alone({"path": [str(path) for path in sorted(folder.glob("*.png"))]})
    for path in out.glob("*.png"):
        assert path.read_bytes() == (tmp_path / "alone" / path.name).read_bytes()

    # A job that goes on touches no finished file, and does the new one.
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    images.write(folder / "new.png", images.Photo(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)))
    counts = ray_deblur.deblur(folder, out, actors=2, weights=weights)
    assert sum(counts.values()) == 33
    assert (out / "new.png").exists()
    assert {path: path.stat().st_mtime_ns for path in times} == times
