"""Train LMFN: on your own pairs, on frames, on photographs, on any mixture of them.

    python train.py --name first --pairs data/GoPro --val data/GoPro --steps 100000
    python train.py --name first --resume auto                                    # continue after an interruption
    python train.py --name mine --from runs/first --pairs my/pairs --lr 2e-5 --steps 5000
    torchrun --nproc-per-node 2 train.py --name first --pairs data/GoPro          # the same samples, distributed
    tensorboard --logdir runs

`lmfn train` is the same command in the installed package. `python train.py --help` lists every setting;
`--config FILE` takes them from a YAML file (a run's own config.yaml is one), which the command line overrides.
All outputs of a run are in runs/NAME. The loop itself is lmfn/training/loop.py.
"""

import sys

from lmfn.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
