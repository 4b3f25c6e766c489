"""`lmfn doctor`: report what is installed and what runs where, and check that it computes correct results.

Probes are independent: one that fails is a line of the report and does not stop the others. The ops are checked in
separate processes, since a failing kernel can crash its process.
"""

import importlib.util
import json
import logging
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmfn

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from lmfn.network.activity import Activity

log = logging.getLogger(__name__)

PACKAGE = "lmfn-deblur"
EXTRAS = {
    "train": "training",
    "video": "video clips, also as training data",
    "eval": "the protocol realblur",
    "lpips": "the metric lpips",
    "heif": "reading HEIC and AVIF",
    "export": "lmfn export and lmfn web",
    "ncnn": "lmfn export for ncnn",
    "spandrel": "chaiNNer and ComfyUI",
    "ray": "the example on Ray",
    "bench": "plots of the benchmarks",
    "engines": "other runtimes to compare with in the benchmarks",
    "dev": "tests and linting",
}
"""The purpose of each extra."""
OPS = (
    "conv3x3", "stem", "residual_block", "upsample_add", "upsampled_conv3x3", "distill_stage", "distill_fuse",
    "esa_gate", "rfdb", "layer_gram", "layer_apply", "layer_attention", "channel_gate", "attention_merge",
)  # fmt: skip
"""The ops of `lmfn_kernels`, by the names in backend tables."""
VARIABLES = (
    "CC", "CUDA_VISIBLE_DEVICES", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HIP_VISIBLE_DEVICES", "KMP_AFFINITY", "LD_PRELOAD",
    "LMFN_BACKEND", "LMFN_TRY", "MKL_NUM_THREADS", "NVIDIA_TF32_OVERRIDE", "OMP_NUM_THREADS", "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF", "TORCH_CUDA_ARCH_LIST", "TRITON_CACHE_DIR", "TRITON_INTERPRET",
    "TRITON_PTXAS_BLACKWELL_PATH", "TRITON_PTXAS_PATH",
)  # fmt: skip
"""Environment variables that affect what runs; none contains a secret."""
SECONDS = 600
"""Time limit in seconds for a process that checks the ops; on a GPU it compiles their kernels first."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    section: str
    name: str
    value: str
    fault: str = ""
    """The problem and the remedy; empty if there is none."""


@dataclass(frozen=True)
class Report:
    """The findings, in order."""

    findings: tuple[Finding, ...]

    @property
    def faults(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.fault]

    @property
    def ok(self) -> bool:
        return not self.faults

    def text(self) -> str:
        """Plain text for an issue: the sections, and the faults repeated at the end."""
        lines: list[str] = []
        width = max(len(finding.name) for finding in self.findings)
        for i, finding in enumerate(self.findings):
            if i == 0 or finding.section != self.findings[i - 1].section:
                lines += ["", finding.section] if lines else [finding.section]
            lines.append(f"{'!' if finding.fault else ' '} {finding.name:{width}}  {finding.value}".rstrip())
        faults = [f"! {finding.section}, {finding.name}: {finding.fault}" for finding in self.faults]
        return "\n".join([*lines, "", *(faults or ["no fault was found"])])

    def json(self) -> str:
        """The same as an object: `ok`, and `sections` of names with their `value` and `fault` (null if none)."""
        sections: dict[str, dict[str, dict[str, str | None]]] = {}
        for finding in self.findings:
            line = {"value": finding.value, "fault": finding.fault or None}
            sections.setdefault(finding.section, {})[finding.name] = line
        return json.dumps({"ok": self.ok, "sections": sections}, indent=2)


Lines = Iterator[tuple[str, str] | tuple[str, str, str]]
"""Name, value and the fault, if any."""


def examine(weights: str | None = None) -> Report:
    """Examine this machine, this installation, and the network of these weights (an argument for
    `LMFN.from_pretrained`). Never raises: a failing probe is a fault in the report."""
    probes = PROBES | ({"network": partial(_network, weights)} if weights is not None else {})
    return Report(tuple(finding for section, probe in probes.items() for finding in _guarded(section, probe)))


def _guarded(section: str, probe: Callable[[], Lines]) -> Iterator[Finding]:
    try:
        for name, value, *fault in probe():
            yield Finding(section, name, value, *fault)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        yield Finding(section, "not known", "", f"this could not be found out ({reason})")


def _versions() -> Lines:
    yield "lmfn", f"{lmfn.__version__} in {_short(Path(lmfn.__file__).parent)}"
    yield "Python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "system", platform.platform()
    for requirement in _requirements():
        if _applies(requirement):
            yield _version(requirement)
    for requirement in map(_requirement, metadata.requires("torch") or ()):
        # torch.compile and the kernels expect the Triton that torch was built with.
        if requirement.name.startswith(("triton", "pytorch-triton")) and _applies(requirement):
            yield _version(requirement)


def _version(requirement: "Requirement") -> tuple[str, str] | tuple[str, str, str]:
    found, remedy = _installed(requirement.name), f'pip install "{requirement.name}{requirement.specifier}"'
    if found is None:
        return requirement.name, "not installed", f"it is not installed; {remedy}"
    if not requirement.specifier.contains(found, prereleases=True):
        return requirement.name, found, f"{found} is not {requirement.specifier}; {remedy}"
    return requirement.name, found


def _torch() -> Lines:
    import torch

    yield "CUDA", torch.version.cuda or "none (this build of torch has no CUDA)"
    if torch.version.hip:
        yield "ROCm", torch.version.hip
    if torch.version.cuda:
        yield "compiled for", " ".join(torch.cuda.get_arch_list())
        yield "cuDNN", str(torch.backends.cudnn.version())
    yield "oneDNN", "yes" if torch.backends.mkldnn.is_available() else "no: a CPU runs the network without it, slowly"
    yield "CPU instructions", torch.backends.cpu.get_cpu_capability()


def _devices() -> Lines:
    import torch

    from lmfn.device import choose_device, device_name, has_fast_bf16

    cpu = torch.device("cpu")
    bf16 = "bfloat16 in hardware" if has_fast_bf16(cpu) else "no bfloat16 in hardware"
    yield "cpu", f"{device_name(cpu)}, {bf16}"
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    listed = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    if driver:
        yield "driver", driver.splitlines()[0]
    if listed and not available:
        if torch.version.cuda is None:
            fault = "torch was built without CUDA; install it for CUDA (https://pytorch.org/get-started/locally)"
        elif os.environ.get("CUDA_VISIBLE_DEVICES") is not None:
            fault = "CUDA_VISIBLE_DEVICES hides it; unset it"
        else:
            said = " ".join(str(warning.message) for warning in raised).strip().splitlines()
            fault = f"torch cannot use it ({said[0] if said else 'no reason given'}); update the driver"
        yield "GPU", ", ".join(listed.splitlines()), fault
    for i in range(torch.cuda.device_count() if available else 0):
        p = torch.cuda.get_device_properties(i)
        free, total = torch.cuda.mem_get_info(i)
        yield f"cuda:{i}", f"{p.name}, {_gb(free)} of {_gb(total)} free, {p.multi_processor_count} multiprocessors"
        if torch.version.cuda:
            yield f"cuda:{i} capability", f"{p.major}.{p.minor}"
    if torch.backends.mps.is_available():
        yield "mps", "Apple GPU"
    for i in range(torch.xpu.device_count() if torch.xpu.is_available() else 0):
        yield f"xpu:{i}", torch.xpu.get_device_name(i)
    yield "default", str(choose_device())


def _backends() -> Lines:
    import torch

    from lmfn_kernels import explain_backend

    for device, dtype in _computing():
        x = torch.empty(1, 50, 180, 320, device=device, dtype=getattr(torch, dtype))  # as in a frame of 1280x720
        found: dict[tuple[str, str], list[str]] = {}
        for op in OPS:
            found.setdefault(explain_backend(op, x), []).append(op)
        for (backend, reason), ops in found.items():
            names = "every op" if len(found) == 1 else ", ".join(ops)
            yield f"{device}, {dtype}: {backend}", f"{names} ({reason})"


def _triton() -> Lines:
    """Triton, what it needs to compile kernels, and which of them are used."""
    import torch

    gpu = torch.cuda.is_available() or torch.xpu.is_available()
    if importlib.util.find_spec("triton") is None:
        fault = ("without it a GPU runs the ops in plain PyTorch; pip install triton",) if gpu else ()
        yield "version", "not installed", *fault
        return
    versions = (_installed(name) for name in ("triton", "pytorch-triton", "pytorch-triton-rocm", "pytorch-triton-xpu"))
    yield "version", next(filter(None, versions), "of a package that is not known")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if interpreted and gpu:
        yield "interpreter", "on", "kernels run on the CPU, line by line; unset TRITON_INTERPRET"
    yield "Gluon", "yes" if importlib.util.find_spec("triton.experimental.gluon") else "no: Triton is older than 3.4"
    compiler = shutil.which(os.environ.get("CC", "")) or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_paths()["include"], "Python.h").is_file()
    for name, there, remedy in (
        ("C compiler", compiler, "install gcc or clang"),
        ("Python.h", headers, "install Python's headers (python3-dev)"),
    ):
        fault = (f"Triton cannot launch kernels without it; {remedy}",) if gpu and not there else ()
        yield name, "yes" if there else "no", *fault
    if torch.version.hip or torch.xpu.is_available():
        return
    from lmfn_kernels.runtime.assembler import assembler, is_sound

    capabilities = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count() if gpu else 0)]
    for capability in sorted({(8, 0), (9, 0), (10, 0), *capabilities}):
        arch = 10 * capability[0] + capability[1]
        tool, fault = assembler(arch), ()
        if capability in capabilities and not is_sound(tool, arch):
            fault = ("it miscompiles kernels; set TRITON_PTXAS_PATH to the ptxas of CUDA 12.9 or newer",)
        yield f"ptxas for sm_{arch}", f"{tool.version} ({Path(tool.path).name})", *fault
    yield from _kernels_in_gluon(capabilities)


def _kernels_in_gluon(capabilities: Sequence[tuple[int, int]]) -> Lines:
    """Those on trial, and the kernel of 3x3 convolutions on each GPU, of which these are the compute capabilities."""
    import torch

    from lmfn_kernels.conv.triton_backend import ring_programs
    from lmfn_kernels.runtime.trials import ON_TRIAL, in_use

    for name in filter(in_use, ON_TRIAL):
        yield f"on trial: {name}", f"{ON_TRIAL[name]}; used, by LMFN_TRY"
    if unused := [name for name in ON_TRIAL if not in_use(name)]:
        yield "on trial, not used", f"{', '.join(unused)} (until their tests have passed on a GPU)"
    for i, capability in enumerate(capabilities):
        if ring_programs(torch.device("cuda", i)):
            yield f"3x3 on cuda:{i}", "ring_kernel (Gluon) in 16 bits and FP8"
            continue
        release = "Triton 3.6, with which alone it has run (LMFN_TRY=newer_triton tries 3.7 to 3.9)"
        lacking = release if capability == (9, 0) else "a GPU of compute capability 9.0"
        yield f"3x3 on cuda:{i}", f"conv_kernel, as ring_kernel needs {lacking}; FP8 is simulated"


def _memory() -> Lines:
    import psutil

    from lmfn import memory

    machine = psutil.virtual_memory()
    yield "machine", f"{_gb(machine.available)} of {_gb(machine.total)} free"
    limit = memory.container_limit()
    yield "container", f"{_gb(limit.used)} of {_gb(limit.limit)} used ({limit.source})" if limit else "no limit"
    yield "available", _gb(memory.available())
    folder = tempfile.gettempdir()
    yield "temporary folder", f"{_gb(shutil.disk_usage(folder).free)} free"
    with tempfile.TemporaryFile():  # a fault where none can be made
        pass


def _threads() -> Lines:
    import torch

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield "CPUs", f"{os.cpu_count()}, {cpus} of them for this process"
    quota = _cpu_quota()
    if quota is not None:
        yield "container", f"{quota:g} CPUs"
        cpus = min(cpus, max(1, round(quota)))
    threads = torch.get_num_threads()
    fault = (f"{threads} threads share {cpus} CPUs; set OMP_NUM_THREADS={cpus}",) if threads > cpus else ()
    yield "torch", f"{threads} threads", *fault


def _cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs that the control groups of the process allow; None without a limit."""
    from lmfn.memory import control_groups

    found = []
    for folder, version in control_groups("cpu", root):
        try:
            if version == 2:
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            continue
        if quota.strip() not in ("max", "-1"):
            found.append(int(quota) / int(period))
    return min(found, default=None)


def _environment() -> Lines:
    given = [(name, os.environ[name]) for name in VARIABLES if name in os.environ]
    yield from given or [("none", "of the variables that change what runs")]


def _extras() -> Lines:
    for extra, purpose in EXTRAS.items():
        needed = [r.name for r in _requirements() if _applies(r, extra) and not _applies(r)]
        missing = [name for name in needed if _installed(name) is None]
        yield extra, f"not installed: {', '.join(missing)} (for {purpose})" if missing else f"yes (for {purpose})"


def _weights() -> Lines:
    from lmfn import weights

    for name in weights.NAMES:
        try:
            file = weights.shipped_weights(name)
        except ValueError as error:
            yield name, "damaged", str(error)
        else:
            yield name, f"SHA-256 {weights.sha256(file)[:16]}..., as shipped"


def _ops() -> Lines:
    from lmfn_kernels.selftest import CHECKS

    for device, dtype in _computing():
        log.info("checking the ops on %s in %s", device, dtype)
        faults = _check_ops(device, dtype, list(CHECKS))
        for op, check in CHECKS.items():
            name = f"{check.part}: {op}, {device}, {dtype}"
            if fault := faults[op]:
                yield name, "wrong", f"{fault}; use another device, or LMFN_BACKEND=torch, and report this"
            else:
                yield name, "forward and backward within rounding of float64"


def _network(name: str) -> Lines:
    """The network of these weights, and the activity of its hidden units."""
    import torch

    from lmfn import LMFN, LMFNConfig, weights
    from lmfn.network.activity import Activity, sample_picture, summarise, unit_activity
    from lmfn.network.checkpoint import find_weights

    model = LMFN.from_pretrained(name).eval()
    file = find_weights(name)
    yield "file", f"{_short(file)}, SHA-256 {weights.sha256(file)[:16]}..."
    config, usual = asdict(model.config), asdict(LMFNConfig())
    yield "config", ", ".join(f"{key}={value}" for key, value in config.items() if value != usual[key]) or "the usual"
    yield "parameters", f"{sum(parameter.numel() for parameter in model.parameters()):,}"
    shares = unit_activity(model, sample_picture())
    blocks = summarise(shares)
    for block, found in blocks.items():
        yield block, _of_units(found)
    dying = [block for block, found in blocks.items() if found.dying]
    fault = (f"most units of {', '.join(dying)} do nothing; see docs/training.md, dead units",) if dying else ()
    yield "hidden units", _of_units(Activity.of(torch.cat(list(shares.values())))), *fault


def _of_units(found: "Activity") -> str:
    return (
        f"{found.units} units, positive at {found.firing:.1%} of the pixels; {found.dead} of them at less than 0.2%, "
        f"{found.silent} at none"
    )


def _check_ops(device: str, dtype: str, ops: list[str]) -> dict[str, str | None]:
    """The fault of each op, or None."""
    found: dict[str, str | None] = {}
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # the images are small
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from lmfn_kernels.selftest import main; sys.exit(main(sys.argv[1:]))"
    )
    while left := [op for op in ops if op not in found]:
        command = [sys.executable, "-c", code, device, dtype, *left]
        try:
            done = subprocess.run(command, capture_output=True, timeout=SECONDS, env=one_thread)
            output, end = done.stdout, _ending(done.returncode, done.stderr)
        except subprocess.TimeoutExpired as error:
            output, end = error.stdout or b"", f"it did not end within {SECONDS} s"
        lines = [json.loads(line) for line in output.decode().splitlines() if line.startswith('{"op":')]
        found |= {line["op"]: line["fault"] for line in lines}
        # After a reported fault (status 3) the next process continues without that op; otherwise it crashed in the next
        # op.
        if not (lines and lines[-1]["fault"]) and (rest := [op for op in left if op not in found]):
            found[rest[0]] = end
    return found


def _ending(status: int, errors: bytes) -> str:
    if status < 0:
        return f"its process was ended by {signal.Signals(-status).name}"
    last = errors.decode(errors="replace").strip().splitlines()[-1:]
    return f"its process ended with status {status} ({''.join(last) or 'nothing was said'})"


PROBES: dict[str, Callable[[], Lines]] = {
    "versions": _versions,
    "torch": _torch,
    "devices": _devices,
    "environment": _environment,
    "memory": _memory,
    "threads": _threads,
    "Triton": _triton,
    "backends": _backends,
    "extras": _extras,
    "weights": _weights,
    "ops": _ops,
}


def _computing() -> list[tuple[str, str]]:
    """Devices, one of each kind of GPU, with the dtypes to check."""
    import torch

    found = [("cpu", "float32")]
    if torch.cuda.is_available():
        kinds = {torch.cuda.get_device_name(i): f"cuda:{i}" for i in reversed(range(torch.cuda.device_count()))}
        found += [(device, dtype) for device in sorted(kinds.values()) for dtype in ("bfloat16", "float16", "float32")]
    if torch.xpu.is_available():
        found += [("xpu:0", "bfloat16"), ("xpu:0", "float32")]
    if torch.backends.mps.is_available():
        found.append(("mps", "float32"))
    return found


def _requirements() -> list["Requirement"]:
    """The requirements of this package including extras: as installed or, in a checkout, from pyproject.toml."""
    try:
        texts = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        file = Path(lmfn.__file__).parent.parent / "pyproject.toml"
        project: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        texts = [*project["dependencies"]]
        for extra, needed in project["optional-dependencies"].items():
            for text in needed:
                package, _, marker = text.partition(";")
                texts.append(
                    f"{package}; ({marker}) and extra == '{extra}'" if marker else f"{package}; extra == '{extra}'"
                )
    return list(map(_requirement, texts))


def _applies(requirement: "Requirement", extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _requirement(text: str) -> "Requirement":
    from packaging.requirements import Requirement

    return Requirement(text)


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str:
    """The output of a command; empty if it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _short(path: Path) -> str:
    return re.sub(f"^{re.escape(str(Path.home()))}(?=/)", "~", str(path))


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
