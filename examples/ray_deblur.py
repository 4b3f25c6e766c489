"""Sharpen a folder of photographs on a Ray cluster: python examples/ray_deblur.py PHOTOS OUT --actors 8 --gpus 1

The folders must have the same path on all machines. Only paths are transferred: each actor loads the network once, and
reads and writes the files itself (`lmfn.batch.Deblur`). OUT.manifest, a folder of Parquet files, has one row per
photograph: path, output, status, reason, seconds. The same command again skips what is in the job's checkpoint,
OUT.checkpoint: it resumes an interrupted job, or adds new photographs. Remove the checkpoint to try failed ones again.

Needs pip install "lmfn-deblur[ray]".
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data.checkpoint import CheckpointConfig

from lmfn import images
from lmfn.batch import Deblur

SPARE = 2
"""CPUs besides those of the actors. A resumed job filters the finished files in a task of its own: if the actors hold
all CPUs, it waits for ever, without a message."""
BATCH = 8
"""Files per call: what is repeated, or at least looked at again, when a worker dies."""
BLOCKS = 1000
"""Maximum number of blocks. The checkpoint records whole blocks."""


def deblur(folder: Path, out: Path, *, actors: int, gpus: float = 0, weights: str = "lmfn") -> dict[str, int]:
    """Sharpen all images below a folder; returns the number of files by status. Raises ValueError for too few CPUs, and
    without images."""
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if cpus < actors + SPARE:
        raise ValueError(f"--actors {actors} needs {actors + SPARE} CPUs, and the cluster has {cpus}")
    paths, manifest = images.find_images(folder), Path(f"{out}.manifest")
    if not paths:
        raise ValueError(f"there is no image in {folder}")
    # Checkpoints work only for what is read from files.
    listed = Path(f"{out}.paths.parquet")
    pq.write_table(pa.table({"path": [str(path) for path in paths]}), listed)
    DataContext.get_current().checkpoint_config = CheckpointConfig(
        id_column="path", checkpoint_path=f"{out}.checkpoint", delete_checkpoint_on_success=False
    )
    ray.data.read_parquet(str(listed), override_num_blocks=min(BLOCKS, -(-len(paths) // BATCH))).map_batches(
        Deblur,
        fn_constructor_kwargs={"out": str(out), "root": str(folder), "weights": weights},
        compute=ActorPoolStrategy(size=actors),
        batch_size=BATCH,
        num_cpus=1,
        num_gpus=gpus,
    ).write_parquet(str(manifest))
    statuses = pq.read_table(manifest, columns=["status"])["status"].to_pylist()
    return dict(sorted(Counter(statuses).items()))


def main() -> int:
    """Returns the exit status: 1 if a file failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--actors", type=int, default=1, help="processes, each with a copy of the network")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each actor; 0.5 puts two on one")
    parser.add_argument("--weights", default="lmfn")
    options = parser.parse_args()
    ray.init()
    try:
        counts = deblur(
            options.folder.resolve(),
            options.out.resolve(),
            actors=options.actors,
            gpus=options.gpus,
            weights=options.weights,
        )
    except ValueError as error:
        parser.error(str(error))
    print(", ".join(f"{number} {status}" for status, number in counts.items()))
    return 1 if counts.get("failed") else 0


if __name__ == "__main__":
    sys.exit(main())
