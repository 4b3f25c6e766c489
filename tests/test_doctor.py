"""`lmfn doctor` reports, finds faults, and survives failures of everything it uses."""

import json
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch

import lmfn_kernels
from lmfn import LMFN, LMFNConfig, cli, doctor, weights
from lmfn_kernels import selftest
from lmfn_kernels.runtime.trials import ON_TRIAL, trying

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def probe(section: str) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor._guarded(section, doctor.PROBES[section])}


@pytest.fixture
def no_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_check_ops", lambda _device, _dtype, ops: dict.fromkeys(ops))


@pytest.mark.usefixtures("no_ops")
def test_all_probes_answer_here(capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.main(["doctor"])
    text = capsys.readouterr().out
    assert text.splitlines()[0] == "versions"
    assert "not known" not in text
    assert re.search(r"lmfn +0\.", text)
    assert cli.main(["doctor", "--json"]) == status
    found = json.loads(capsys.readouterr().out)
    assert list(found["sections"]) == list(doctor.PROBES)
    assert found["ok"] == (status == 0)
    assert found["sections"]["versions"]["torch"]["value"] == torch.__version__
    assert set(found["sections"]["ops"]) >= {f"{c.part}: {op}, cpu, float32" for op, c in selftest.CHECKS.items()}


def test_a_probe_that_raises_is_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> doctor.Lines:
        yield "one", "1"
        raise RuntimeError("no such thing\nand more")

    monkeypatch.setattr(doctor, "PROBES", {"first": broken, "second": lambda: iter([("two", "2")])})
    assert cli.main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "first"
    assert lines[1].split() == ["one", "1"]
    assert lines[-1] == "! first, not known: this could not be found out (RuntimeError: no such thing)"
    assert "  two        2" in lines


def test_tables_are_complete() -> None:
    assert set(doctor.EXTRAS) == set(PROJECT["optional-dependencies"])
    sources = [file.read_text() for file in Path(lmfn_kernels.__file__).parent.glob("*/op.py")]
    assert set(doctor.OPS) == set(re.findall(r'\bchoose\(.*"(\w+)"\)', "".join(sources)))


def test_requirements_of_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", nothing)
    found = doctor._requirements()
    needed = [r for r in found if doctor._applies(r)]
    assert [str(r) for r in needed] == PROJECT["dependencies"]
    assert {r.name for r in found if doctor._applies(r, "video")} - {r.name for r in needed} == {"av"}


def test_missing_and_old_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_installed", {"torch": "1.13.1", "numpy": "2.0.0"}.get)
    found = probe("versions")
    assert re.fullmatch(r'1\.13\.1 is not >=.*; pip install "torch>=.*"', found["torch"].fault)
    assert not found["numpy"].fault
    assert "not installed" in found["safetensors"].fault
    assert "PyYAML" in probe("extras")["train"].value
    assert not probe("extras")["train"].fault, "an extra is a choice"


def test_triton_that_torch_was_not_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.requires
    monkeypatch.setattr(metadata, "requires", lambda name: ["triton==0.1"] if name == "torch" else real(name))
    assert "is not ==0.1" in probe("versions")["triton"].fault


@pytest.mark.parametrize(
    ("cuda", "hidden", "remedy"),
    [(None, None, "built without CUDA"), ("13.0", "", "unset"), ("13.0", None, "the driver .* is too old")],
)
def test_a_gpu_that_torch_cannot_use(
    cuda: str | None, hidden: str | None, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable() -> bool:
        import warnings

        warnings.warn("the driver (11040) is too old", stacklevel=1)
        return False

    monkeypatch.setattr(doctor, "_output", lambda *command: "H100" if "name" in command[1] else "570.1")
    monkeypatch.setattr(torch.cuda, "is_available", unavailable)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    found = probe("devices")
    assert found["driver"].value == "570.1"
    assert found["GPU"].value == "H100"
    assert re.search(remedy, found["GPU"].fault)


def test_a_gpu_needs_a_compiler_and_no_interpreter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not any(finding.fault for finding in probe("Triton").values()), "a CPU compiles no kernels"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    found = probe("Triton")
    assert "install gcc" in found["C compiler"].fault
    assert "unset TRITON_INTERPRET" in found["interpreter"].fault


def test_kernels_on_trial() -> None:
    """What is used is described; what is not is a line in all, and none if all are used."""
    assert "ring_fuse, " in probe("Triton")["on trial, not used"].value
    with trying("ring_fuse"):
        found = probe("Triton")
        assert found["on trial: ring_fuse"].value == "distill_fuse, forward; used, by LMFN_TRY"
        assert "ring_fuse" not in found["on trial, not used"].value
    with trying(*ON_TRIAL):
        assert "on trial, not used" not in probe("Triton")


def test_an_assembler_that_miscompiles(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmfn_kernels.conv import triton_backend
    from lmfn_kernels.runtime import assembler

    found = probe("Triton")
    assert re.match(r"1\d\.\d+", found["ptxas for sm_100"].value)
    monkeypatch.setattr(assembler, "newer", lambda: None)
    monkeypatch.setattr(assembler, "is_sound", lambda _tool, arch: arch != 90)
    assert not any(finding.fault for finding in probe("Triton").values()), "there is no such GPU here"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: [(9, 0), (12, 0)][i])
    monkeypatch.setattr(triton_backend, "ring_programs", lambda device: [132, 0][device.index])
    found = probe("Triton")
    assert found["3x3 on cuda:0"].value.startswith("ring_kernel")
    other = found["3x3 on cuda:1"].value
    assert other == "conv_kernel, as ring_kernel needs a GPU of compute capability 9.0; FP8 is simulated"
    monkeypatch.setattr(triton_backend, "ring_programs", lambda _: 0)
    on_hopper = probe("Triton")["3x3 on cuda:0"].value
    assert on_hopper == (
        "conv_kernel, as ring_kernel needs Triton 3.6, with which alone it has run (LMFN_TRY=newer_triton tries 3.7 to "
        "3.9); FP8 is simulated"
    )
    assert "TRITON_PTXAS_PATH" in found["ptxas for sm_90"].fault
    assert not found["ptxas for sm_120"].fault


def test_a_backend_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe("backends")["cpu, float32: torch"].value.startswith("every op (")
    from lmfn_kernels.runtime import backend

    monkeypatch.setattr(backend, "INTERPRETED", False)
    with lmfn_kernels.backend("triton"):
        assert "cannot run here" in probe("backends")["not known"].fault


def test_damaged_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_text("0 lmfn.safetensors\n")
    (tmp_path / "lmfn.safetensors").write_bytes(b"")
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    assert all("missing or damaged" in finding.fault for finding in probe("weights").values())


def test_more_threads_than_the_container_has_cpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, text in (
        ("proc/self/cgroup", "0::/a\n"),
        ("sys/fs/cgroup/a/cpu.max", "150000 100000\n"),
        ("sys/fs/cgroup/cpu.max", "max 100000\n"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert doctor._cpu_quota(tmp_path) == 1.5
    (tmp_path / "proc/self/cgroup").write_text("3:cpu,cpuacct:/b\n")
    (tmp_path / "sys/fs/cgroup/cpu").mkdir()
    (tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert doctor._cpu_quota(tmp_path) is None
    (tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_quota_us").write_text("200000\n")
    assert doctor._cpu_quota(tmp_path) == 2
    monkeypatch.setattr(doctor, "_cpu_quota", lambda: 1.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert "set OMP_NUM_THREADS=1" in probe("threads")["torch"].fault


@pytest.mark.parametrize(
    ("ending", "fault"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV"),
        ("raise SystemExit('out of tune')", "status 1 .out of tune"),
    ],
)
def test_an_op_that_takes_its_process_with_it(
    ending: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = f"""
import json, os, signal
def main(arguments):
    for op in arguments[2:]:
        if op == "b":
            {ending}
        print(json.dumps({{"op": op, "fault": "it is off" if op == "c" else None}}), flush=True)
        if op == "c":
            return 3
"""
    (tmp_path / "lmfn_kernels").mkdir()
    (tmp_path / "lmfn_kernels" / "__init__.py").touch()
    (tmp_path / "lmfn_kernels" / "selftest.py").write_text(stand_in)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = doctor._check_ops("cpu", "float32", ["a", "b", "c", "d"])
    assert found.keys() == set("abcd")
    assert (found["a"], found["c"], found["d"]) == (None, "it is off", None)
    assert re.search(fault, found["b"] or "")


def test_an_op_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        lines = "".join(
            f'{{"op": "{op}", "fault": null}}\n' for op in command[5 : command.index("b") if "b" in command else None]
        )
        if "b" in command:
            raise subprocess.TimeoutExpired(command, 1, output=lines.encode())
        return subprocess.CompletedProcess(command, 0, lines.encode(), b"")

    monkeypatch.setattr(subprocess, "run", run)
    found = doctor._check_ops("cpu", "float32", ["a", "b", "c"])
    assert (found["a"], found["c"]) == (None, None)
    assert "did not end within" in (found["b"] or "")


def test_an_op_that_is_wrong_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_check_ops", lambda _device, _dtype, ops: dict.fromkeys(ops) | {"rfdb": "it is off"})
    found = probe("ops")
    assert "it is off" in found["rfdb: rfdb, cpu, float32"].fault
    assert not found["conv: conv3x3, cpu, float32"].fault


@pytest.mark.usefixtures("no_ops")
def test_weights_are_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Healthy, with a block whose units never fire, with a NaN among the weights, and missing."""
    monkeypatch.setattr(doctor, "PROBES", {})
    torch.manual_seed(0)
    model = LMFN(LMFNConfig(channels=16, features=16, distilled=8, esa=4, rfdbs=1, similarity="cosine"))
    model.save_pretrained(tmp_path / "alive")
    assert cli.main(["doctor", "--weights", str(tmp_path / "alive")]) == 0
    text = capsys.readouterr().out
    assert "similarity=cosine" in text
    assert re.search(r"hidden units +160 units, positive at [3-7]\d\.\d% of the pixels", text)
    with torch.no_grad():
        model.encoder.rb_16th.conv1.bias.fill_(-1e3)
    model.save_pretrained(tmp_path / "dead")
    assert cli.main(["doctor", "--weights", str(tmp_path / "dead")]) == 1
    text = capsys.readouterr().out
    assert re.search(
        r"encoder\.rb_16th +16 units, positive at 0\.0% .* 16 of them at less than 0\.2%, 16 at none", text
    )
    assert "most units of encoder.rb_16th do nothing" in text
    with torch.no_grad():
        model.encoder.rb_16th.conv1.bias[0] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    assert cli.main(["doctor", "--weights", str(tmp_path / "broken")]) == 1
    assert "not finite, in encoder.rb_16th.conv1.bias" in capsys.readouterr().out
    assert cli.main(["doctor", "--weights", str(tmp_path / "missing.safetensors")]) == 1
    assert "missing.safetensors" in capsys.readouterr().out
