"""Import names of a package on first use, so that unused dependencies cost no time and need not be installed."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def loader(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package. `homes` maps each name to the submodule that defines it, or that it
    is."""

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(f"{package}.{homes[name]}")
        return module if name == homes[name] else getattr(module, name)

    def names() -> list[str]:
        return sorted({*vars(import_module(package)), *homes})

    return get, names
