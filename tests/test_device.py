"""Which device is chosen, and the processor's name."""

from pathlib import Path

import pytest
import torch

from lmfn import device


def test_the_cpu_is_named_where_proc_names_it_and_where_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(device, "Path", lambda _: cpuinfo)
    monkeypatch.setattr(device.platform, "processor", lambda: "")
    monkeypatch.setattr(device.platform, "machine", lambda: "riscv64")
    assert device.device_name(torch.device("cpu")) == "riscv64"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some CPU: 3 GHz\n")
    assert device.device_name(torch.device("cpu")) == "Some CPU: 3 GHz"
