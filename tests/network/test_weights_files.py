"""Weights files that are broken, foreign or absurd: one immediate error that names the file, and no silent type
cast."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
from torch import Tensor

from lmfn import LMFN, cli
from lmfn.network import checkpoint

SMALL = {"channels": 8, "features": 8, "distilled": 4, "esa": 4, "rfdbs": 1}


def file_of(
    path: Path, *, metadata: object = None, text: str | None = None, tensors: dict[str, Tensor] | None = None
) -> Path:
    """Weights of a small network, with other metadata (as JSON or as text) or with some tensors replaced."""
    model = LMFN.from_preset("lmfn", **SMALL)
    text = json.dumps({"config": SMALL} if metadata is None else metadata) if text is None else text
    file = path / "model.safetensors"
    safetensors.torch.save_file(model.state_dict() | (tensors or {}), file, {"lmfn": text})
    return file


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metadata": 5}, "is a int, not an object"),
        ({"metadata": []}, "is a list, not an object"),
        ({"text": "null"}, "is a NoneType"),
        ({"text": "{"}, "is not JSON"),
        ({"text": ""}, "is not JSON"),
        ({"text": "[" * 20_000 + "]" * 20_000}, "is not JSON"),
        ({"text": '{"config": ' + '{"a": ' * 20_000 + "1" + "}" * 20_001}, "is not JSON"),
        ({"text": '{"config": {"channels": 1' + "0" * 5000 + "}}"}, "is not JSON"),
        ({"metadata": {}}, "contains no weights of a network; its metadata has nothing"),
        ({"metadata": {"config": 5}}, "is a int, not an object of fields"),
        ({"metadata": {"config": None}}, "is a NoneType"),
        ({"metadata": {"config": [["channels", 8]]}}, "is a list"),
        ({"metadata": {"config": SMALL | {"channels": "8"}}}, "channels is '8'; it must be a whole number"),
        ({"metadata": {"config": SMALL | {"channels": 8.0}}}, "channels is 8.0; it must be a whole number"),
        ({"metadata": {"config": SMALL | {"rfdbs": True}}}, "rfdbs is True; it must be a whole number"),
        ({"metadata": {"config": SMALL | {"channels": None}}}, "channels is None"),
        ({"metadata": {"config": SMALL | {"channels": {"a": [1]}}}}, "channels is {"),
        ({"metadata": {"config": SMALL | {"channels": 10**9}}}, "channels is 1000000000; it must be from 1 to 1024"),
        ({"metadata": {"config": SMALL | {"head": ["bilinear"]}}}, r"head is \['bilinear'\]; it must be one of"),
        ({"metadata": {"config": SMALL | {"skip": "x" * 10**6}}}, "skip is 'xxx"),
        ({"metadata": {"config": SMALL | {"name": "lmfn"}}}, "name"),
        ({"metadata": {"config": SMALL | {"depth": 3}}}, "unknown field of LMFNConfig: depth"),
        ({"metadata": {"config": SMALL | {"rfdbs": 2}}}, "does not fit its own config: it has no rfdbs.1.* more"),
        ({"tensors": {"other": torch.ones(1)}}, "it has other, which the network lacks"),
        ({"tensors": {"alfm.theta": torch.ones(2)}}, r"alfm.theta has shape \(2,\) instead of \(1,\)"),
        ({"tensors": {"alfm.theta": torch.ones(())}}, r"alfm.theta has shape \(\) instead of \(1,\)"),
        ({"tensors": {"alfm.theta": torch.ones(1, dtype=torch.int64)}}, "alfm.theta is stored as I64"),
        ({"tensors": {"alfm.theta": torch.ones(1, dtype=torch.bool)}}, "alfm.theta is stored as BOOL"),
        ({"tensors": {"alfm.theta": torch.ones(1).to(torch.float8_e4m3fn)}}, "alfm.theta is stored as F8"),
        ({"tensors": {"alfm.theta": torch.tensor([torch.nan])}}, "not finite, in alfm.theta"),
    ],
)
def test_each_is_one_error(
    given: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = file_of(tmp_path, **given)
    with pytest.raises(ValueError, match=message) as raised:
        LMFN.from_pretrained(file)
    assert str(file) in str(raised.value)
    assert len(str(raised.value)) < 1000 + len(str(file))
    assert cli.main(["evaluate", "--data", str(tmp_path), "--weights", str(file)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 8, b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}", b"\x10\0\0\0\0\0\0\0[[[[[[[["]
)
def test_what_is_no_safetensors_file(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"model\.safetensors (is not a readable safetensors file|has no LMFN metadata)"
    ):
        LMFN.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        LMFN.from_pretrained(tmp_path / "gone.safetensors")


def test_a_large_network_is_refused_from_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = {"channels": 1024, "features": 1024, "distilled": 1024, "esa": 1024, "rfdbs": 8}
    file = file_of(tmp_path, metadata={"config": largest})
    made: list[torch.device] = []
    real = torch.nn.Conv2d.__init__

    def record(self: torch.nn.Conv2d, *args: Any, **options: Any) -> None:
        real(self, *args, **options)
        made.append(self.weight.device)

    monkeypatch.setattr(torch.nn.Conv2d, "__init__", record)
    monkeypatch.setattr(checkpoint, "read", lambda _: pytest.fail("the tensors were read"))
    with pytest.raises(
        ValueError, match=r"does not fit.*conv0.weight has shape \(8, 3, 3, 3\) instead of \(1024, 3, 3, 3\)"
    ):
        LMFN.from_pretrained(file)
    assert {device.type for device in made} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_types_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    model = LMFN.from_preset("lmfn", **SMALL)
    file = tmp_path / "model.safetensors"
    given = {key: tensor.to(dtype) for key, tensor in model.state_dict().items()}
    safetensors.torch.save_file(given, file, {"lmfn": json.dumps({"config": SMALL})})
    loaded = LMFN.from_pretrained(file).state_dict()
    assert all(torch.equal(loaded[key], tensor.float()) for key, tensor in given.items())
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}


@pytest.mark.parametrize("materialise", ["to_empty", "assign"])
def test_a_network_that_was_made_on_the_meta_device_is_whole_once_it_is_loaded(materialise: str) -> None:
    model = LMFN.from_preset("lmfn", skip="none", **SMALL).eval()
    with torch.device("meta"):
        again = LMFN(model.config).eval()
    if materialise == "to_empty":
        again.to_empty(device="cpu")
    again.load_state_dict(model.state_dict(), strict=True, assign=materialise == "assign")
    assert dict(again.named_buffers()) == {}
    x = torch.rand(1, 3, 64, 70)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def unreachable(*_: object, **__: object) -> None:
    raise ConnectionError("Name or service not known")


def refused(*_: object, **__: object) -> None:
    response = type("Response", (), {"headers": {}, "request": None, "status_code": 404})()
    raise huggingface_hub.errors.HfHubHTTPError("404 Not Found", response=response)  # type: ignore[arg-type]


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits to try again"))
    with pytest.raises(
        FileNotFoundError, match=r"no/body is not a folder here, and http://127.0.0.1:9/.* cannot be reached"
    ):
        LMFN.from_pretrained("no/body", endpoint="http://127.0.0.1:9", cache_dir=tmp_path)


def test_a_cache_alone_is_not_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: pytest.fail("it asks the Hub"))
    with pytest.raises(FileNotFoundError, match="and the cache of the Hugging Face Hub has no such model"):
        LMFN.from_pretrained("no/body", local_files_only=True, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("metadata", "download", "message"),
    [
        (unreachable, None, "cannot be reached"),
        (refused, refused, "has no such model"),
        (lambda *_, **__: None, None, ""),
    ],
)
def test_what_the_hub_says(
    metadata: Callable[..., None],
    download: Callable[..., None] | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    file = file_of(tmp_path)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download or (lambda *_, **__: str(file)))
    if message:
        with pytest.raises(FileNotFoundError, match=f"no/body is not a folder here, and .*{message}"):
            LMFN.from_pretrained("no/body", cache_dir=tmp_path)
    else:
        assert LMFN.from_pretrained("no/body", cache_dir=tmp_path).config.channels == 8
