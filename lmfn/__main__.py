"""`python -m lmfn`: the command line where `lmfn` is not on the PATH."""

import sys

from lmfn.cli import main

sys.exit(main())
