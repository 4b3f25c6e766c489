"""Weights pushed to a local stand-in for the Hugging Face Hub, and downloaded from it with its protocol."""

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.hub_mixin
import pytest
import torch
from huggingface_hub import ModelCard
from small_networks import SMALL

from lmfn import LMFN
from lmfn.weights import sha256

COMMIT = 40 * "a"


class Hub(SimpleHTTPRequestHandler):
    """Serves /OWNER/MODEL/resolve/REVISION/FILE from the folder OWNER/MODEL."""

    def translate_path(self, path):
        owner, model, _, _, file = path.partition("?")[0].strip("/").split("/")
        return super().translate_path(f"/{owner}/{model}/{file}")

    def end_headers(self):
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"stand-in"')
        super().end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=tmp_path / "hub"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_is_pushed_is_fetched(hub, tmp_path, monkeypatch):
    class Api:
        def __init__(self, token=None, **_):
            assert token == "secret"

        def create_repo(self, repo_id, **_):
            return type("Repository", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id, folder_path, **_):
            shutil.copytree(folder_path, tmp_path / "hub" / repo_id)

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    model = LMFN.from_preset("lmfn-released", **SMALL, similarity="cosine")
    model.push_to_hub("owner/mine", token="secret")
    pushed = tmp_path / "hub" / "owner" / "mine"
    assert {file.name for file in pushed.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    card = ModelCard.load(pushed / "README.md")
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "lmfn")
    assert "image-deblurring" in card.data.tags

    fetched = LMFN.from_pretrained("owner/mine", endpoint=hub, cache_dir=tmp_path / "cache", token=False)
    assert fetched.config == model.config
    for key, tensor in model.state_dict().items():
        assert torch.equal(fetched.state_dict()[key], tensor)
    (blob,) = (tmp_path / "cache").rglob("snapshots/*/model.safetensors")
    assert sha256(blob) == sha256(pushed / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="the Hugging Face Hub has no such model"):
        LMFN.from_pretrained("owner/other", endpoint=hub, cache_dir=tmp_path / "cache", token=False)
