"""Train LMFN: on your own pairs, on frames, on photographs, on any mixture of them.

    python train.py --name first --pairs data/GoPro --val data/GoPro --steps 100000
    python train.py --name first --resume auto                                    # go on where it was cut off
    python train.py --name mine --from runs/first --pairs my/pairs --lr 2e-5 --steps 5000
    torchrun --nproc-per-node 2 train.py --name first --pairs data/GoPro          # the same samples, shared out
    tensorboard --logdir runs

`python train.py --help` lists every setting; `--config FILE` takes them from a YAML file (a run's own config.yaml is
one), and the command line goes before the file. Everything a run makes is in runs/NAME.
"""

import sys

from lmfn.training.loop import main

if __name__ == "__main__":
    sys.exit(main())
