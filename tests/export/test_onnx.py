"""Exported ONNX files against the network, run in ONNX Runtime and OpenVINO."""

import io
import json
from dataclasses import asdict

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from small_networks import deblurred, image, network

from lmfn import LMFN, Deblurrer
from lmfn.cli import main
from lmfn.export import export_onnx, onnx_model
from lmfn.weights import NAMES, checksums, shipped_weights

SIZES = [(1, 1), (100, 77), (1, 90), (16, 16), (17, 17), (16, 40), (31, 33), (130, 94), (64, 64), (5, 300), (96, 97)]
"""Around what the border reflects (more than 16), and the multiples of 16 and the 64 that are padded to."""
NETWORKS = {
    "lmfn": {},
    "windows": {"similarity": "cosine", "alfm_window": 64, "esa_grid": "fixed"},
    "windows of layers": {"name": "lmfn-released", "alfm_window": 64},
    "lmfn-released": {"name": "lmfn-released", "similarity": "cosine"},
    "released's parts joined otherwise": {"stem_padding": 0, "acfm": "none", "skip": "none", "rfdbs": 1},
    "no attention between layers": {"alfm": "none", "head": "pixelshuffle", "skip": "feature"},
    "concatenated layers": {"alfm": "concat", "acfm": "full3d"},
    "no attention": {"alfm": "none", "acfm": "none"},
}


def in_onnx_runtime(model, shape=None):
    """With a shape, the file's free sizes are fixed to it before the graph is optimised."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    for name, size in zip(("batch", "height", "width"), shape or (), strict=False):
        options.add_free_dimension_override_by_name(name, size)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"blurred": x.numpy()})[0])


def in_openvino(model, shape=None):
    openvino = pytest.importorskip("openvino")
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    core = openvino.Core()
    read = core.read_model(io.BytesIO(model.SerializeToString()))
    if shape:
        batch, height, width = shape
        read.reshape([batch, 3, height, width])
    compiled = core.compile_model(read, "CPU", options)
    return lambda x: torch.from_numpy(compiled(x.numpy())[0])


@pytest.mark.parametrize("run", [in_onnx_runtime, in_openvino])
@pytest.mark.parametrize("name", NETWORKS)
def test_any_size_gives_what_the_deblurrer_does(name, run):
    model = network(**NETWORKS[name])
    exported = run(onnx_model(model))
    for height, width in SIZES if "windows" in name or name in NAMES else SIZES[:2]:
        x = image(height, width, batch=1 + height % 2)
        torch.testing.assert_close(exported(x), deblurred(model, x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("run", [in_onnx_runtime, in_openvino])
@pytest.mark.parametrize("size", [(1, 1), (17, 3), (100, 77)])
def test_sizes_that_a_program_fixes_give_the_same(size, run):
    model = network(**NETWORKS["windows"])
    exported, x = onnx_model(model), image(*size)
    torch.testing.assert_close(run(exported, (1, *size))(x), deblurred(model, x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["windows", "lmfn-released"])
@pytest.mark.parametrize("size", [64, 176])
def test_a_tile_of_fixed_size_needs_no_computed_sizes(name, size):
    model = network(**NETWORKS[name])
    exported = onnx_model(model, tile_size=size)
    assert not {"Shape", "Range", "Where"} & {node.op_type for node in exported.graph.node}
    shapes = onnx.shape_inference.infer_shapes(exported).graph.value_info
    assert max(len(value.type.tensor_type.shape.dim) for value in shapes) <= 5  # the operators that Core ML supports
    x = image(size, size)
    torch.testing.assert_close(in_onnx_runtime(exported)(x), deblurred(model, x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["windows", "windows of layers"])
def test_float16_is_near_and_half_as_large(name):
    model = network(**NETWORKS[name])
    narrow, wide = onnx_model(model, dtype="float16"), onnx_model(model)
    assert sum(len(t.raw_data) for t in narrow.graph.initializer) < 0.6 * sum(
        len(t.raw_data) for t in wide.graph.initializer
    )
    x = image(100, 77)
    torch.testing.assert_close(in_onnx_runtime(narrow)(x), deblurred(model, x), rtol=0, atol=5e-3)


@pytest.mark.parametrize("opset", [13, 17, 20])
def test_older_and_newer_operators(opset):
    model = network(**NETWORKS["windows"])
    exported = onnx_model(model, opset=opset)
    assert exported.opset_import[0].version == opset
    x = image(70, 90)
    torch.testing.assert_close(in_onnx_runtime(exported)(x), deblurred(model, x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_weights_in_one_file(name, tmp_path):
    path = tmp_path / "model.onnx"
    assert main(["export", str(path), "--weights", name]) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    exported = onnx.load(path)
    found = {prop.key: prop.value for prop in exported.metadata_props}
    assert json.loads(found["config"]) == asdict(LMFN.from_pretrained(name).config)
    file = shipped_weights(name)
    assert found["weights_sha256"] == checksums(file.parent)[file.name]
    assert found["license"] == "apache-2.0"
    assert "GoPro (Nah, Kim and Lee, CVPR 2017), CC BY 4.0" in found["training_data"].splitlines()
    x = image(50, 90)
    sharp = in_onnx_runtime(exported)(x)[0].permute(1, 2, 0).numpy()
    expected = Deblurrer(name, device="cpu", guard="off")(x[0].permute(1, 2, 0).numpy())
    np.testing.assert_allclose(sharp.clip(0, 1), expected, rtol=0, atol=1e-4)


def test_weights_without_a_card_say_nothing_of_a_licence(tmp_path, caplog):
    network().save_pretrained(tmp_path / "own")
    (tmp_path / "own" / "README.md").unlink()
    export_onnx(tmp_path / "own", tmp_path / "own.onnx")
    assert "license" not in {prop.key for prop in onnx.load(tmp_path / "own.onnx").metadata_props}
    assert "no card" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m.onnx", "--tile-size", "72"], "tile_size is 72; it must be a multiple of 16, 64 or more"),
        (["m.onnx", "--tile-size", "48"], "tile_size is 48"),
        (["m.onnx", "--opset", "12"], "opset is 12; it must be from 13 to"),
        (["m.pt"], "m.pt names no known kind of file"),
    ],
)
def test_bad_arguments_are_one_line_and_no_file(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_network_with_parts_of_an_ablation_is_refused():
    with pytest.raises(ValueError, match=r'encoder "aspp" .* cannot be exported'):
        onnx_model(network(encoder="aspp"))
