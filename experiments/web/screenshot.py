"""Write docs/web.jpg: the page of `lmfn web` in Chromium, with a photograph blurred by a path of 9 pixels.

    python experiments/web/screenshot.py docs/web.jpg

The photograph is scikit-image's `chelsea` (Stéfan van der Walt, CC0). Needs Chromium and playwright.
"""

import shutil
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright
from skimage import data

from lmfn import images, web


def main() -> None:
    photograph: np.ndarray = data.chelsea()  # type: ignore[no-untyped-call]
    sharp = photograph.astype(np.float32) / 255
    blurred = np.stack([np.roll(sharp, (i // 2, i), (0, 1)) for i in range(-4, 5)]).mean(axis=0)[8:-8, 8:-8]
    with web.server(web.page_files("lmfn")) as server, tempfile.TemporaryDirectory() as folder:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        images.write(Path(folder, "cat.png"), images.Photo(blurred))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 720, "height": 680}, device_scale_factor=1.5)
            page.goto(f"http://{web.ADDRESS}:{server.server_port}/")
            page.set_input_files("#file", Path(folder, "cat.png"))
            page.locator("#save").wait_for(timeout=300_000)
            page.screenshot(path=sys.argv[1], type="jpeg", quality=88)
            browser.close()
        server.shutdown()


if __name__ == "__main__":
    main()
