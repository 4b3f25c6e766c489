"""The command line as used by a user, and the demo with seconds instead of minutes."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import skimage.data
from forked import in_a_child

import demo
import lmfn
from lmfn import Deblurrer, checkout, cli, images
from lmfn.data import find_pairs
from lmfn.extras import require


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for name in ("a.png", "trip/b.jpg", "trip/ö d.png"):
        images.write(folder / name, images.Photo(0.4 + 0.2 * rng.random((40, 50, 3), dtype=np.float32)))
    return folder


def test_deblur_a_folder_with_a_broken_file(photos: Path, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "trip" / "broken.png").write_bytes(b"not a picture")
    out = photos.parent / "out"
    assert cli.main(["deblur", str(photos), "-o", str(out), "--weights", weights]) == 1
    said = capsys.readouterr().err
    assert "3 deblurred" in said
    assert "broken.png" in said
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    assert written == ["a.png", "trip/b.jpg", "trip/ö d.png"]
    (photos / "trip" / "broken.png").unlink()
    assert cli.main(["deblur", str(photos), "-o", str(out), "-w", weights, "--skip-existing"]) == 0
    assert "3 already there" in capsys.readouterr().err


def test_deblur_with_the_shipped_weights_and_with_none(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["deblur", str(photos / "a.png")]) == 0
    assert images.read_rgb(photos / "a_deblurred.png").shape == (40, 50, 3)
    assert cli.main(["deblur", str(photos / "a.png"), "--weights", "no/where/at/all"]) == 1
    assert "no/where/at/all" in capsys.readouterr().err
    assert sorted(path.name for path in photos.iterdir()) == ["a.png", "a_deblurred.png", "trip"]


@pytest.mark.parametrize(
    "arguments", ["--help", "--version", "deblur --help", "evaluate --help", "data --help", "data synth --help"]
)
def test_help_and_version_do_not_import_torch(arguments: str) -> None:
    code = (
        "import sys\n"
        "from lmfn.cli import main\n"
        "try:\n"
        f"    status = main({arguments.split()})\n"
        "except SystemExit as end:\n"
        "    status = end.code\n"
        "sys.exit(status or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


def test_python_m_lmfn_is_the_command_line() -> None:
    run = subprocess.run([sys.executable, "-m", "lmfn", "--version"], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (0, f"lmfn {lmfn.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [("debblur x.png", "deblur"), ("evalute --help", "evaluate"), ("data chek --help", "check"), ("x", "deblur, eval")],
)
def test_an_unknown_verb_is_an_error(arguments: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments.split())
    assert end.value.code == 2
    said = capsys.readouterr()
    assert meant in said.err
    assert not said.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("data synth x -o y --blur.length 5 2", "Error parsing blur: BlurOptions.length is (5.0, 2.0); it must rise"),
        ("data synth x -o y --blur.kinds.shake -1", "Error parsing blur.kinds: BlurKinds.shake is -1.0; it must be a"),
        ("data synth x -o y --seed x", "Error parsing --seed: invalid literal"),
        ("data check x --nope", "Unrecognized options: --nope"),
        ("deblur x --strength x", "Error parsing --strength: could not convert"),
    ],
)
def test_a_wrong_option_is_named_with_the_help_of_its_command(
    arguments: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments.split())
    assert end.value.code == 2
    said = " ".join(capsys.readouterr().err.replace("\u2502", " ").split())
    assert words in said
    command = " ".join(arguments.split()[: 2 if arguments.startswith("data") else 1])
    assert f"lmfn {command} --help" in said


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["lmfn", "ablate"], ("usage: lmfn ablate", "--seeds")),
        (["lmfn.card"], ("usage: card", "--average")),
        (["lmfn", "train"], ("usage: lmfn train", "--config", "--pairs")),
    ],
)
def test_commands_with_options_of_their_own(
    command: list[str], words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `python -m` runs them."""
    monkeypatch.setattr(sys, "argv", [*command, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in words), printed


def test_what_needs_a_checkout_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checkout, "__file__", str(tmp_path / "lmfn" / "checkout.py"))
    with pytest.raises(SystemExit, match=r"experiments/ablations/ablate\.py needs a checkout of the repository"):
        cli.main(["ablate", "encoder"])


def test_train_names_the_extra_that_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "require", lambda package, *rest: require(f"no_{package}", *rest))
    assert cli.main(["train", "--photos", "x"]) == 1
    assert capsys.readouterr().err == (
        'lmfn: lmfn train needs the package no_accelerate, which is not installed: pip install "lmfn-deblur[train]"\n'
    )


def test_the_package_has_its_public_names_and_no_others() -> None:
    assert set(lmfn.__all__) <= set(dir(lmfn))
    for name in lmfn.__all__:
        assert getattr(lmfn, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Deblur'"):
        lmfn.Deblur  # noqa: B018


def test_data_and_evaluate(photos: Path, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, out = photos.parent / "pairs", photos.parent / "result"
    assert cli.main(["data", "synth", str(photos), "-o", str(pairs), "--blur.length", "3", "5", "--seed", "4"]) == 0
    assert cli.main(["data", "check", str(pairs)]) == 0
    assert "3 pairs" in capsys.readouterr().out
    arguments = ["evaluate", "--data", str(pairs), "--weights", weights, "-o", str(out), "--protocol", "gopro"]
    assert cli.main(arguments) == 0
    assert "SSIM matlab3d" in capsys.readouterr().out
    assert (out / "report.html").is_file()
    content = json.loads((out / "summary.json").read_text())
    assert content["protocol"] == "gopro"
    assert len(content["rows"]) == 3
    two_folders = ["--data", f"{pairs / 'blur'},{pairs / 'sharp'}", "--weights", weights]
    assert cli.main(["evaluate", *two_folders]) == 0
    still = photos.parent / "still"
    arguments = ["data", "synth", str(photos), "-o", str(still), "--kind", "sharp", "flat"]
    assert cli.main(arguments) == 0
    for pair in find_pairs(still):
        assert pair.blurred.read_bytes() == pair.sharp.read_bytes()
    assert cli.main([*arguments, "--frames"]) == 1
    assert "--kind is for photographs" in capsys.readouterr().err
    (pairs / "sharp" / "a.png").unlink()
    assert cli.main(["evaluate", "--data", str(pairs), "--weights", weights]) == 1
    assert "a.png" in capsys.readouterr().err
    assert cli.main(["data", "check", str(photos.parent / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_the_demo_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured on the smallest of its photographs alone."""
    assert not set(demo.FINE_TUNED_ON) & set(demo.NEVER_SEEN)
    assert all((Path(skimage.data.__file__).parent / name).exists() for name in demo.NEVER_SEEN)
    assert Path(demo.SHOWN).parent.name in {Path(name).stem for name in demo.NEVER_SEEN}
    monkeypatch.setattr(demo, "RUN", tmp_path / "demo")
    monkeypatch.setattr(demo, "MINUTES", 0.02)
    monkeypatch.setattr(demo, "PATCH", 64)
    monkeypatch.setattr(demo, "NEVER_SEEN", ("chelsea.png",))
    monkeypatch.setattr(demo, "SHOWN", "chelsea/2")
    (tmp_path / "demo").mkdir()
    with pytest.raises(SystemExit, match="was not made by this demo"):
        demo.main()
    (tmp_path / "demo").rmdir()
    demo.main()
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    for kind, evaluation in (("deblurred", "evaluation"), ("tuned", "evaluation_tuned")):
        rows = report[evaluation]["rows"]
        assert len(rows) == 3
        assert report[f"psnr_{kind}"] == pytest.approx(np.mean([row["deblurred"]["psnr"] for row in rows]))
        assert report["psnr_blurred"] == pytest.approx(np.mean([row["blurred"]["psnr"] for row in rows]))
    assert report.keys() >= {"ssim_blurred", "ssim_deblurred", "ssim_tuned", "seconds"}
    picture = images.read_rgb(tmp_path / "demo" / "before-after.png")
    assert picture.shape == (600, 1800, 3)


def test_deblur_a_clip(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = tmp_path / "clip.mp4"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for n in range(3):
            pixels = np.full((32, 48, 3), 90 + n, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    out = tmp_path / "out"
    out.mkdir()
    command = ["deblur", str(clip), "-o", str(out), "-w", weights, "--guard", "off"]
    assert cli.main([*command, "--dry-run"]) == 0
    assert capsys.readouterr().out == f"{clip} -> {out / 'clip.mp4'}\n"
    assert cli.main([*command, "--crf", "20", "--resume"]) == 0
    assert f"{clip} -> {out / 'clip.mp4'}: 3 frames, each sharpened independently" in capsys.readouterr().err
    with av.open(str(out / "clip.mp4")) as container:
        assert len(list(container.decode(video=0))) == 3
    assert cli.main(command) == 1
    assert "1 already there and not replaced (--overwrite does it)" in capsys.readouterr().err
    assert cli.main([*command, "--skip-existing"]) == 0
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "clip.mp4").write_bytes(clip.read_bytes())
    assert cli.main([*command[:1], str(tmp_path / "deep" / "clip.mp4"), *command[1:]]) == 1
    assert "would both become" in capsys.readouterr().err
    (tmp_path / "broken.mp4").write_text("no clip")
    assert cli.main([*command[:1], str(tmp_path / "broken.mp4"), *command[2:]]) == 1
    assert "broken.mp4 cannot be read as a video" in capsys.readouterr().err


def deblur_and_end(number: int, handler: Any, *words: object) -> int:
    """How a process ends that gets this signal while it sharpens; `handler` is the signal's before."""

    def end(_: Deblurrer, image: np.ndarray) -> np.ndarray:
        os.kill(os.getpid(), number)
        time.sleep(0.2)
        return image

    def work() -> None:
        signal.signal(number, handler)
        Deblurrer.__call__ = end  # type: ignore[assignment,method-assign]
        os._exit(cli.main(["deblur", *map(str, words)]))

    return in_a_child(work)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_request_to_end_leaves_no_claim(
    number: int, photos: Path, weights: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    assert deblur_and_end(number, usual, photos, "-o", tmp_path / "out", "-w", weights) == 1
    assert capfd.readouterr().err.endswith("lmfn: interrupted; files already written are complete\n")
    assert not [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_nohup(photos: Path, weights: str, tmp_path: Path) -> None:
    """nohup ignores the signal of a terminal that is closed, and so does a program that it starts."""
    arguments = photos / "a.png", "-o", tmp_path / "a.png", "-w", weights
    assert deblur_and_end(signal.SIGHUP, signal.SIG_IGN, *arguments) == 0
    assert (tmp_path / "a.png").is_file()


def test_a_warning_is_a_line(tmp_path: Path) -> None:
    """In a process of its own, as pytest would keep the warning."""
    images.write(tmp_path / "a.png", images.Photo(np.full((64, 64, 3), 0.5, np.float32)))
    call = [
        sys.executable,
        "-m",
        "lmfn",
        "deblur",
        str(tmp_path / "a.png"),
        "-o",
        str(tmp_path / "b.png"),
        "--strength",
        "1.5",
    ]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert "lmfn: a strength of 1.5 exaggerates the change, and its errors" in done.stderr.splitlines()
    assert ".py" not in done.stderr
