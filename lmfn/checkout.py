"""Scripts of the repository that the installed package does not include."""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path


def run(script: str, arguments: Sequence[str]) -> None:
    """Run a script of the checkout that this package lies in; without one, end the process with a message."""
    file = Path(__file__).parents[1] / script
    if not file.is_file():
        sys.exit(f"lmfn: {script} needs a checkout of the repository; the installed package does not include it")
    sys.argv = [str(file), *arguments]
    runpy.run_path(str(file), run_name="__main__")
