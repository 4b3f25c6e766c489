"""Optional dependencies, installed by `pip install "lmfn-deblur[EXTRA]"`."""

import importlib.util


def require(module: str, what: str, extra: str) -> None:
    """Raise ValueError, with the remedy, if a package that `what` needs is missing."""
    if importlib.util.find_spec(module) is None:
        raise ValueError(
            f'{what} needs the package {module}, which is not installed: pip install "lmfn-deblur[{extra}]"'
        )
