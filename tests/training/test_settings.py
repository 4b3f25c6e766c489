"""Settings from the command line and from files, and errors in them."""

import dataclasses
import math
from pathlib import Path

import pytest

from lmfn.data import Source
from lmfn.training.run import parse_settings
from lmfn.training.settings import Settings


def test_settings_from_file_and_command_line(tmp_path: Path, photos: Path) -> None:
    file = tmp_path / "base.yaml"
    file.write_text(
        f"photos: {photos}=2.5\nbatch: 3\nlr: 0.01\nnetwork:\n  rfdbs: 2\n"
        "blur:\n  length: [2, 5]\n  kinds: {comb: 0}\n"
    )
    settings = parse_settings(
        [
            "--config",
            str(file),
            "--batch",
            "7",
            "--runs",
            str(tmp_path),
            "--blur.curvature",
            "0",
            "9",
            "--blur.kinds.zoom",
            "3",
        ]
    )
    assert (settings.batch, settings.lr, settings.network_config.rfdbs) == (7, 0.01, 2)
    assert (settings.blur.length, settings.blur.curvature) == ((2, 5), (0, 9))
    assert (settings.blur.kinds.comb, settings.blur.kinds.shake, settings.blur.kinds.zoom) == (0, 1, 3)
    assert [(s.kind, str(s.path), s.weight) for s in settings.sources] == [("photos", str(photos), 2.5)]
    again = tmp_path / "again.yaml"
    again.write_text(settings.text())
    assert Settings.read(again) == dataclasses.replace(settings, config=None)


def test_the_help_names_the_settings_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_settings(["--help"])
    assert ended.value.code == 0
    assert "--config" in capsys.readouterr().out


def test_sources_by_path_weight_and_two_folders(tmp_path: Path) -> None:
    odd = tmp_path / "a,b=3"
    odd.mkdir()
    source = Source.parse("pairs", str(odd))
    assert (source.path, source.sharp, source.weight) == (str(odd), None, 1.0)
    source = Source.parse("pairs", "x/blurred,x/sharp=0.5")
    assert (source.path, source.sharp, source.weight) == ("x/blurred", "x/sharp", 0.5)
    with pytest.raises(ValueError, match="'two' is not a weight"):
        Source.parse("photos", "x=two")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"photos": ()}, "at least one of --pairs, --frames, --photos"),
        ({"batch": 0}, "batch is 0"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"lr": math.inf}, "lr is inf; it must be a finite number"),
        ({"fft": math.nan}, "fft is nan; it must be a finite number"),
        ({"betas": (0.9, 1.0)}, r"betas is \(0.9, 1.0\)"),
        ({"data_share": 0.0}, "data_share is 0.0"),
        ({"minutes": 0.0}, "minutes is 0.0"),
        ({"name": "a/b"}, "plain folder name"),
        ({"network": ("depth=3",)}, "unknown field of LMFNConfig: depth"),
        ({"network": ("rfdbs=three",)}, "rfdbs=three: rfdbs must be a whole number"),
        ({"network": ("rfdbs",)}, "rfdbs must be a whole number"),
        ({"precision": "fp16"}, "needs a GPU"),
    ],
)
def test_wrong_settings_are_named(settings: Settings, change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(settings, **change).check()


def test_broken_settings_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    for text, words in (
        ("speed: 3", "unknown setting 'speed'"),
        ("config: other.yaml", "unknown setting 'config'"),
        ("- 3", "NAME: VALUE"),
        ("batch: [", "s.yaml"),
        ("blur: {length: [5, 2]}", "length"),
        ("blur: {kinds: {comb: -1}}", "comb"),
        ("blur: {kinds: {teeth: 1}}", "teeth"),
        ("blur: {kinds: 3}", "kinds"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=words):
            Settings.read(file)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Settings.read(tmp_path / "nowhere.yaml")
