"""`python -m lmfn.card`: measure weights and ship them, by a script of the repository."""

import sys

from lmfn.checkout import run

run("experiments/weights/card.py", sys.argv[1:])
