"""Packages that only some functions need."""

import importlib.util

import pytest

from lmfn.extras import require


def test_a_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r'protocol x needs the package cv2, .*: pip install "lmfn-deblur\[eval\]"'):
        require("cv2", "protocol x", "eval")
