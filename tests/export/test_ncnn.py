"""Networks for ncnn against PyTorch, run in ncnn."""

import ncnn
import numpy as np
import pytest
import torch
from small_networks import deblurred, image, network

from lmfn import LMFN
from lmfn.cli import main


def in_ncnn(path, x):
    net = ncnn.Net()
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, option, False)
    net.opt.num_threads = 1
    assert net.load_param(str(path)) == 0
    assert net.load_model(str(path.with_suffix(".bin"))) == 0
    with net.create_extractor() as extractor:
        extractor.input("in0", ncnn.Mat(x[0].numpy()).clone())
        status, sharp = extractor.extract("out0")
    assert status == 0
    return torch.from_numpy(np.array(sharp))[None]


@pytest.mark.parametrize(
    "options",
    [
        {"similarity": "cosine", "alfm_window": 128, "esa_grid": "fixed"},
        {"name": "lmfn-released", "similarity": "cosine"},
    ],
)
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-4), ("float16", 5e-3)])
def test_a_tile_gives_what_the_deblurrer_does(options, dtype, bound, tmp_path):
    model = network(**options)
    LMFN.save_pretrained(model, tmp_path / "own")
    arguments = ["--weights", str(tmp_path / "own"), "--dtype", dtype, "--tile-size", "96"]
    assert main(["export", str(tmp_path / "lmfn.param"), *arguments]) == 0
    assert {file.name for file in tmp_path.iterdir()} == {"own", "lmfn.param", "lmfn.bin"}
    x = image(96, 96)
    torch.testing.assert_close(in_ncnn(tmp_path / "lmfn.param", x), deblurred(model, x), rtol=0, atol=bound)


def test_what_ncnn_cannot_have_is_said(tmp_path, capsys):
    assert main(["export", str(tmp_path / "m.param"), "--tile-size", "368"]) == 1
    assert "tile_size is 368; for ncnn it must be 352 or less, within one window" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "m.param"), "--opset", "17"]) == 1
    assert "--opset is not an option for ncnn" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
