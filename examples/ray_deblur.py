"""Sharpen a folder of photographs on a Ray cluster: python examples/ray_deblur.py PHOTOS OUT --actors 8 --gpus 1

The folders must be at the same place on all machines. Only paths travel; each actor loads the network once and reads
and writes the files itself (`lmfn.batch.Deblur`). OUT.manifest, a folder of Parquet files, has a row for each
photograph: path, output, status, reason, seconds. Started again, the job leaves out what is in its checkpoint,
OUT.checkpoint: it goes on where it was cut off, or adds new photographs. Failed ones are tried again once that folder
is removed.

Needs pip install "lmfn-deblur[ray]".
"""

import argparse
import sys
from pathlib import Path

import pyarrow.parquet
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data.checkpoint import CheckpointConfig

from lmfn import images
from lmfn.batch import Deblur

SPARE = 2
"""CPUs beside the actors'. A job that goes on filters the finished files in a task of its own: where actors hold all
CPUs, it waits for ever, without a word."""
BATCH = 8
"""Files in a call: what is done again, or looked at again, where a worker dies."""


def deblur(folder: Path, out: Path, *, actors: int, gpus: float = 0, weights: str = "lmfn") -> dict[str, int]:
    """Sharpen all images below a folder; how many files have which status. Raises ValueError for too few CPUs."""
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if cpus < actors + SPARE:
        raise ValueError(f"{actors} actors need {actors + SPARE} CPUs, and the cluster has {cpus}; take fewer --actors")
    manifest, checkpoint = Path(f"{out}.manifest"), Path(f"{out}.checkpoint")
    DataContext.get_current().checkpoint_config = CheckpointConfig(
        id_column="path", checkpoint_path=str(checkpoint), delete_checkpoint_on_success=False
    )
    paths = ray.data.from_items([{"path": str(path)} for path in images.find_images(folder)])
    paths.map_batches(
        Deblur,
        fn_constructor_kwargs={"out": str(out), "root": str(folder), "weights": weights},
        compute=ActorPoolStrategy(size=actors),
        batch_size=BATCH,
        num_cpus=1,
        num_gpus=gpus,
    ).write_parquet(str(manifest))
    rows = pyarrow.parquet.read_table(manifest, columns=["status"]) if any(manifest.glob("*.parquet")) else None
    counts = {} if rows is None else {row["values"]: row["counts"] for row in rows["status"].value_counts().to_pylist()}
    return dict(sorted(counts.items()))


def main() -> int:
    """The exit status: 1 if a file failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--actors", type=int, default=1, help="processes, each with a copy of the network")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each actor; 0.5 puts two on one")
    parser.add_argument("--weights", default="lmfn")
    options = parser.parse_args()
    ray.init()
    counts = deblur(
        options.folder.resolve(),
        options.out.resolve(),
        actors=options.actors,
        gpus=options.gpus,
        weights=options.weights,
    )
    print(", ".join(f"{number} {status}" for status, number in counts.items()))
    return 1 if counts.get("failed") else 0


if __name__ == "__main__":
    sys.exit(main())
