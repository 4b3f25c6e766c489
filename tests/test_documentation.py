"""Every block, command and option of README.md and docs/. Blocks of commands and of Python are run, from top to bottom,
in a folder that contains the files that the pages mention; training is reduced to one step of a small network. What
takes minutes or changes the machine (benchmarks, make, pip), and commands within sentences, are parsed by the programs'
own parsers. Anything else is fenced as `text`."""

import argparse
import contextlib
import importlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import av
import numpy as np
import pytest
import skimage.data
import tyro
from tensorboard import program

import bench.__main__ as bench
import lmfn_kernels
from experiments.weights import card
from lmfn import LMFN, cli, data, images
from lmfn.data import downloads
from lmfn.evaluation import complexity
from lmfn.options import BlurKinds, BlurOptions
from lmfn.training.run import parse_settings
from lmfn.training.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SMALL = shlex.split(
    "--steps 1 --batch 1 --patch 64 --workers 0 --network channels=8 features=8 distilled=4 esa=4 rfdbs=1"
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n)+")


class Block(NamedTuple):
    """A block of a page: the page with the line where it begins, its kind, and its text."""

    place: str
    kind: str
    text: str


def test_every_public_name_of_the_kernels_is_documented() -> None:
    code: set[str] = set()
    for text in TEXTS.values():
        for span in [*re.findall(r"`([^`]+)`", FENCE.sub("", text)), *(fenced[2] for fenced in FENCE.finditer(text))]:
            code |= set(re.findall(r"\w+", span))
    assert set(lmfn_kernels.__all__) <= code


def blocks() -> Iterator[Block]:
    for page, text in TEXTS.items():
        for pattern in (FENCE, INDENTED):
            searched = text if pattern is FENCE else FENCE.sub(lambda fenced: "\n" * fenced[0].count("\n"), text)
            for found in pattern.finditer(searched):
                kind, inside = found.groups() if pattern is FENCE else ("", re.sub("(?m)^ {4}", "", found[0]))
                first = inside.split()[0]
                kind = kind or ("sh" if first in RUNNERS else "python" if first in ("import", "from") else "unknown")
                yield Block(f"{page.name}:{searched.count(chr(10), 0, found.start()) + 1}", kind, inside)


def commands(text: str) -> list[list[str]]:
    """The words of the commands in a block, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def spans() -> set[str]:
    """The text between single backticks, wrapped or not."""
    found = set[str]()
    for text in TEXTS.values():
        found |= {" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", FENCE.sub("", text))}
    return found


def run_lmfn(words: list[str]) -> None:
    if words[0] == "train":
        words = words + SMALL
    try:
        status: Any = cli.main(words)
    except SystemExit as end:
        status = end.code
    assert status == 0


def parse_lmfn(words: list[str]) -> None:
    if words[0] == "train":
        parse_settings(words[1:])
        return
    with pytest.MonkeyPatch.context() as patch:
        for verb in {*get_args(cli.Verb), *get_args(get_type_hints(cli.Data)["action"])} - {cli.Data}:
            patch.setattr(verb, "run", lambda _: True)
        assert cli.main(words) == 0


def parse_bench(words: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "measure", lambda _: 0)
        if words[0] in bench.OTHERS:
            patch.setattr(f"{bench.OTHERS[words[0]][0]}.run", lambda _: 0)
        assert bench.main(words) == 0


def parse_python(words: list[str]) -> None:
    if words[:2] == ["-m", "bench"]:
        parse_bench(words[2:])
    elif words[0] == "train.py":
        parse_settings(words[1:])
    else:
        assert (ROOT / words[0]).is_file()
        if words[1:]:
            script = importlib.import_module(words[0].removesuffix(".py").replace("/", "."))
            tyro.cli(script.Arguments, args=words[1:])


def run_python(words: list[str]) -> None:
    if words[0] == "train.py":
        run_lmfn(["train", *words[1:]])
    else:
        parse_python(words)


def parse_make(words: list[str]) -> None:
    made = subprocess.run(["make", "-n", "-C", ROOT, *words], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


def parse_pip(words: list[str]) -> None:
    """The package is on no index, so it is installed from the checkout."""
    assert words[0] in ("install", "wheel")
    (target,) = (word for word in words[1:] if not word.startswith("-"))
    of, _, extras = target.rstrip("]").partition("[")
    assert of == "."
    assert {extra for extra in extras.split(",") if extra} <= PROJECT["optional-dependencies"].keys()


def parse_source(words: list[str]) -> None:
    """The path on which `lmfn` is found after `make demo`."""
    assert words == [".venv/bin/activate"]
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "-m venv .venv\n" in recipe
    assert 'pip install --quiet --editable ".[' in recipe
    assert PROJECT["scripts"] == {"lmfn": "lmfn.cli:main"}


def parse_pytest(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-k", default="")
    parser.add_argument("-m")
    parser.add_argument("-s", "--benchmark-only", action="store_true")
    parser.add_argument("files", nargs="+")
    asked = parser.parse_args(words)
    tests = "".join((ROOT / file).read_text(encoding="utf-8") for file in asked.files if not (ROOT / file).is_dir())
    assert not tests or re.search(rf"def test_\w*{asked.k}", tests)


def parse_torchrun(words: list[str]) -> None:
    asked = importlib.import_module("torch.distributed.run").parse_args(words)
    RUNNERS["" if asked.no_python else "python"].parse([asked.training_script, *asked.training_script_args])


def parse_tensorboard(words: list[str]) -> None:
    program.TensorBoard().configure(argv=["tensorboard", *words])


class Runner(NamedTuple):
    """Parses a program's command and, if it is cheap, runs it; both take the words after the program's name."""

    parse: Callable[[list[str]], None]
    run: Callable[[list[str]], None] | None = None


RUNNERS = {
    "lmfn": Runner(parse_lmfn, run_lmfn),
    "python": Runner(parse_python, run_python),
    "make": Runner(parse_make),
    "pip": Runner(parse_pip),
    "source": Runner(parse_source),
    "pytest": Runner(parse_pytest),
    "torchrun": Runner(parse_torchrun),
    "tensorboard": Runner(parse_tensorboard),
}
RUNNERS[""] = Runner(lambda words: RUNNERS[words[0]].parse(words[1:]))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the pages mention, small."""
    root = tmp_path_factory.mktemp("world")
    scene = skimage.data.astronaut()

    def write(path: str, n: int = 0) -> None:
        images.write(root / path, images.Photo(scene[100 + n : 196 + n, 150:270]))

    def pairs(pattern: str, count: int = 1) -> None:
        """Images named by a pattern for blurred and sharp ones, with {a,b} in it."""
        before, (blurred, sharp), after = (part.split(",") for part in re.split(r"[{}]", pattern))
        for n in range(count):
            write(f"{before[0]}{blurred}{after[0]}".replace("N", str(n)), n + 2)
            write(f"{before[0]}{sharp}{after[0]}".replace("N", str(n)), n)

    for path in ("photo.jpg", "holiday/a.png", "holiday/deep/b.jpg", "my/photos/a.png", "my/kept-apart/a.png"):
        write(path)
    for path in ("data/sharp/a.png", "data/sharp/b.png"):
        write(path)
    for n in range(13):
        write(f"data/240fps/{n}.png", n)
    pairs("my/{blurred,sharp}/N.png", 2)
    pairs("my/validation/{blur,sharp}/N.png")
    pairs("my/mixed/{N_blur,N_sharp}.png")
    pairs("DATA/{blur,sharp}/N.png")
    for split in ("train", "test"):
        for variant in ("blur", "blur_gamma"):
            pairs(f"data/GoPro/{split}/GOPR1/{{{variant},sharp}}/N.png")
        pairs("data/RSBlur/RSBlur/scene/shot/{real_blur/real_blur,gt/gt_sharp}.png")
        pairs("data/RealBlur/RealBlur-J/scene/{blur/blur_N,gt/gt_N}.png")
        for name, folder, names in (
            (f"RSBlur/RSBlur_real_{split}.txt", "RSBlur/scene/shot", "gt/gt_sharp real_blur/real_blur"),
            (f"RealBlur/RealBlur_J_{split}_list.txt", "RealBlur-J/scene", "gt/gt_0 blur/blur_0"),
        ):
            (root / "data" / name).write_text(" ".join(f"{folder}/{name}.png" for name in names.split()))
    with av.open(str(root / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for n in range(2):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(scene[100:164, 150 + n : 214 + n]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with zipfile.ZipFile(root / "GOPRO_Large.zip", "w") as archive:
        for path in sorted((root / "data" / "GoPro").rglob("*.png")):
            archive.write(path, path.relative_to(root / "data"))
    data.pack([data.Source("pairs", root / "my" / "validation")], root / "val.npz")
    small = LMFN.from_preset("lmfn", channels=8, features=8, distilled=4, esa=4, rfdbs=1)
    small.save_pretrained(root / "runs" / "first")
    shutil.copy(root / "runs" / "first" / "model.safetensors", root / "runs" / "first" / "ema.safetensors")
    return root


@pytest.mark.parametrize("block", list(blocks()), ids=lambda block: block.place)
def test_blocks(block: Block, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = shutil.copytree(world, tmp_path / "world")
    monkeypatch.chdir(place)
    if block.kind == "python":
        monkeypatch.setattr(sys, "argv", ["-", "DATA"])
        exec(block.text, {"__name__": "__main__"})
    elif block.kind == "sh":
        for name, known in downloads.DATASETS.items():
            few = replace(known, pairs=dict.fromkeys(known.pairs, 1), size=None, sequences={})
            monkeypatch.setitem(downloads.DATASETS, name, few)
        monkeypatch.setattr(complexity, "count_gmacs", lambda *_: 1.0)  # takes seconds
        for program_name, *words in commands(block.text):
            if "-o" in words:  # the output that the command should create does not exist yet
                shutil.rmtree(words[words.index("-o") + 1], ignore_errors=True)
            runner = RUNNERS[program_name]
            (runner.run or runner.parse)(words)
    else:
        assert block.kind == "text", "fence what is no command and no Python as text"
        assert block.text.split()[0] not in RUNNERS


def test_commands_within_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    verbs = r"lmfn( data)? [\w-]+|python -m bench [\w-]+"
    for span in spans():
        command = span.removesuffix("...").strip()
        name, *words = shlex.split(command) if span.split()[0] in RUNNERS else [""]
        if not words:
            continue
        with pytest.raises(SystemExit, match=r"^0$") if re.search(f"({verbs})$", command) else contextlib.nullcontext():
            RUNNERS[name].parse([*words, "--help"] if re.search(f"({verbs})$", command) else words)
        capsys.readouterr()


def test_options_within_sentences() -> None:
    classes = [*get_args(cli.Verb), *get_args(get_type_hints(cli.Data)["action"]), Settings, card.Arguments]
    known = {f"--{field.name}" for of in classes for field in fields(of)} | {"--from", "--version", "--help"}
    known |= {f"--blur.{field.name}" for field in fields(BlurOptions)}
    known |= {f"--blur.kinds.{field.name}" for field in fields(BlurKinds)} | {"--blur.kinds.KIND"}
    known = {option.replace("_", "-") for option in known} | {f"--no-{option[2:]}" for option in known}
    for script in (*ROOT.glob("bench/*.py"), *ROOT.glob("experiments/*/*.py")):
        known |= set(re.findall(r'"(--[\w-]+)"', script.read_text(encoding="utf-8")))
    asked = {span.split()[0] for span in spans() if span.startswith("--")}
    assert asked - known == set()
