"""Packages that only some of this one's functions need, and `pip install "lmfn-deblur[EXTRA]"` brings."""

import importlib.util


def require(module: str, what: str, extra: str) -> None:
    """Raise ValueError, with the remedy, where a package is missing that `what` needs."""
    if importlib.util.find_spec(module) is None:
        raise ValueError(
            f'{what} needs the package {module}, which is not installed: pip install "lmfn-deblur[{extra}]"'
        )
