"""The page in a real browser: Chromium, with WebAssembly and the shipped weights (make test-web). The network's results
are compared with `Deblurrer`; everything else is done as by a user, with keyboard and files."""

import base64
import io
import json
import shutil
import struct
import threading
import urllib.request
import zlib
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from lmfn import Deblurrer, web

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 120_000  # milliseconds, on a busy computer
FINISHED = "#save:visible, #message:not(:empty)"


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    with web.server(web.page_files("lmfn")) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    assert CHROMIUM, "these tests need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def opened(browser, server):
    """One page for all tests, so that the network is loaded once; records the addresses requested."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.asked, page.problems = [], []
    context.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(address(server))
    yield page
    context.close()


@pytest.fixture
def page(opened):
    yield opened
    assert opened.problems == []


def address(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}/"


@pytest.fixture(scope="module")
def deblur() -> Deblurrer:
    return Deblurrer("lmfn", device="cpu", guard="off")


def photograph(height: int, width: int) -> np.ndarray:
    """Streaks of a blurred pattern, uint8."""
    rng = np.random.default_rng(height * width)
    x = rng.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3)).repeat(6, 0).repeat(6, 1).astype(np.float32)
    return (sum(x[i : i + height, i : i + width] for i in range(6)) / 6).astype(np.uint8)


def encoded(pixels: np.ndarray, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def choose(page, data: bytes, name: str = "photo.png") -> str:
    """Choose a file and wait; returns the error shown by the page, if any."""
    page.set_input_files("#file", files=[{"name": name, "mimeType": "", "buffer": data}])
    page.locator(FINISHED).first.wait_for()
    return page.inner_text("#message")


def saved(page) -> tuple[str, Image.Image]:
    with page.expect_download() as download:
        page.click("#save")
    data = Path(download.value.path()).read_bytes()
    return download.value.suggested_filename, Image.open(io.BytesIO(data))


def levels(image: Image.Image, expected: np.ndarray) -> float:
    """The largest difference in levels of 255."""
    return float(np.abs(np.asarray(image.convert("RGB")) - 255 * expected).max())


def test_it_makes_of_a_photograph_what_python_does(page, deblur, server) -> None:
    pixels = photograph(150, 220)
    blurred = pixels.astype(np.float32) / 255
    sharp = deblur(blurred)
    assert np.abs(sharp - blurred).max() > 0.1
    assert choose(page, encoded(pixels)) == ""
    name, image = saved(page)
    assert name == "photo_deblurred.png"
    assert levels(image, sharp) <= 1
    page.locator("#strength").fill("50")
    assert levels(saved(page)[1], (blurred + sharp) / 2) <= 1
    places = {url.split("/")[2] for url in page.asked if not url.startswith(("blob:", "data:"))}
    assert places == {address(server).split("/")[2]}


def test_a_large_photograph_is_sharpened_in_tiles(page, deblur) -> None:
    pixels = photograph(64, 1400)
    blurred = pixels.astype(np.float32) / 255
    first, second = deblur(blurred[:, :1152]), deblur(blurred[:, 768:])
    share = ((np.arange(384) + 0.5 - 160) / 64).clip(0, 1)[None, :, None]
    middle = (1 - share) * first[:, 768:] + share * second[:, :384]
    assert choose(page, encoded(pixels)) == ""
    assert levels(saved(page)[1], np.concatenate([first[:, :768], middle, second[:, 384:]], 1)) <= 1


def test_a_jpeg_keeps_exif_and_profile(page, deblur) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"  # to be rotated clockwise
    exif.get_ifd(0x8769).update({0x9003: "2026:01:02 03:04:05", 0x927C: b"maker's note", 0xA002: 120, 0xA003: 80})
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 30.0, 1.5)})
    profile = swapped_profile()
    pixels = (photograph(80, 120)[:, :, :1] * np.array([1, 0.8, 0.6])).astype(np.uint8)
    data = encoded(pixels, "JPEG", quality=95, exif=exif, icc_profile=profile)
    assert choose(page, data, "holiday.JPG") == ""
    assert page.inner_text("#kept") == "The saved file keeps EXIF and the colour information."
    name, image = saved(page)
    assert (name, image.format, image.size) == ("holiday_deblurred.jpg", "JPEG", (80, 120))
    assert image.info["icc_profile"] == profile
    kept = image.getexif()
    assert (kept[0x0112], kept[0x010F]) == (1, "Maker")
    photo = kept.get_ifd(0x8769)
    assert (photo[0x9003], photo[0x927C]) == ("2026:01:02 03:04:05", b"maker's note")
    assert (photo[0xA002], photo[0xA003]) == (80, 120)
    assert kept.get_ifd(0x8825)[2] == (52.0, 30.0, 1.5)
    upright = np.asarray(Image.open(io.BytesIO(data)).transpose(Image.Transpose.ROTATE_270)).astype(np.float32) / 255
    error = np.asarray(image) / 255 - deblur(upright)
    assert -10 * np.log10(np.mean(error**2)) > 33  # JPEG's own loss, whose colours are at half the size


def swapped_profile() -> bytes:
    """sRGB with red and blue swapped: a browser that applied the profile would swap them in the pixels."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = data.index(b"rXYZ"), data.index(b"bXYZ")
    data[red : red + 4], data[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(data)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WebP"])
def test_every_orientation_comes_out_upright(page, form: str) -> None:
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :24], pixels[16:, 24:] = 255, (255, 0, 0)
    for orientation in range(1, 9) if form == "JPEG" else (1, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(pixels, form, exif=exif, **({"lossless": True} if form == "WebP" else {}))
        assert choose(page, data) == ""
        page.locator("#strength").fill("0")
        image = saved(page)[1]
        assert image.getexif()[0x0112] == 1
        assert "icc_profile" not in image.info  # the photograph has none
        expected = Image.open(io.BytesIO(data))
        turn = {
            2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180],
            4: [Image.Transpose.FLIP_TOP_BOTTOM], 5: [Image.Transpose.TRANSPOSE], 6: [Image.Transpose.ROTATE_270],
            7: [Image.Transpose.TRANSVERSE], 8: [Image.Transpose.ROTATE_90],
        }.get(orientation, [])  # fmt: skip
        for step in turn:
            expected = expected.transpose(step)
        assert image.size == expected.size
        difference = np.abs(np.asarray(image.convert("RGB"), int) - np.asarray(expected.convert("RGB"), int))
        assert difference.mean() < 8, (form, orientation)  # JPEG's, at the edge of red


def test_transparency_comes_back(page) -> None:
    pixels = np.dstack([photograph(40, 60), np.full((40, 60), 255, np.uint8)])
    pixels[:, 30:, 3] = 0
    assert choose(page, encoded(pixels)) == ""
    assert (np.asarray(saved(page)[1])[:, :, 3] == pixels[:, :, 3]).all()


def test_gray_stays_gray(page, deblur) -> None:
    pixels = photograph(90, 130)[:, :, 0]
    for data in (encoded(pixels), encoded(pixels, "JPEG", quality=95)):
        assert choose(page, data) == ""
        image = saved(page)[1].convert("RGB")
        assert np.ptp(np.asarray(image), axis=2).max() == 0
        if data.startswith(b"\x89PNG"):
            assert levels(image, deblur(pixels[:, :, None].astype(np.float32) / 255)) <= 1


def test_a_density_is_kept_and_is_not_called_a_colour(page) -> None:
    assert choose(page, encoded(photograph(40, 60), dpi=(300, 300))) == ""
    assert page.inner_text("#kept") == ""
    assert saved(page)[1].info["dpi"] == pytest.approx((300, 300), abs=0.01)


def header(width: int, height: int) -> bytes:
    """A PNG that ends after its header."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("notes.jpg", b"a text, whatever its name", "is not a picture that this page can read"),
        ("nothing.png", b"", "is empty"),
        ("IMG_1.HEIC", b"\0\0\0\x18ftypheic" + bytes(60), "HEIC picture, which this browser cannot read"),
        ("scan.tif", b"II*\0" + bytes(60), "lmfn deblur takes TIFF"),
        ("cut.png", encoded(photograph(40, 40))[:-2000], "is damaged"),
        ("cut.jpg", encoded(photograph(40, 40), "JPEG")[:200], "is damaged"),
        ("long.png", header(40_000, 100), "100 pixels; browsers take 32,767"),
        ("large.png", header(30_000, 20_000), "600 megapixels; the memory that a page may count on here is enough for"),
    ],
)
def test_what_cannot_be_done_is_said(page, name: str, data: bytes, words: str) -> None:
    page.reload()
    message = choose(page, data, name)
    assert message.startswith(name)
    assert words in message
    assert page.locator("#start").is_visible()


def test_what_is_sharpened_stays_when_another_file_cannot_be_opened(page) -> None:
    assert choose(page, encoded(photograph(40, 60)), "first.png") == ""
    page.locator("#strength").fill("50")
    expected = saved(page)[1]
    assert choose(page, b"a text", "notes.jpg").startswith("notes.jpg is not a picture")
    page.locator("#save").wait_for()
    name, image = saved(page)
    assert name == "first_deblurred.png"
    assert image.tobytes() == expected.tobytes()


def test_it_can_be_cancelled_and_begun_again(page) -> None:
    data = encoded(photograph(700, 700))
    page.set_input_files("#file", files=[{"name": "photo.png", "mimeType": "", "buffer": data}])
    page.locator("#cancel").wait_for()
    page.set_input_files("#file", files=[{"name": "another.png", "mimeType": "", "buffer": data}])
    page.locator("#cancel:focus").wait_for()
    page.keyboard.press("Escape")
    page.locator("#again").wait_for()
    assert page.inner_text("#status") == "Cancelled."
    assert not page.locator("#save").is_visible()
    assert choose(page, encoded(photograph(40, 40))) == ""


def test_of_two_that_are_opened_at_once_the_later_one_counts(page) -> None:
    """The first of them is decoded only when the second one has been sharpened."""
    page.reload()
    page.evaluate("""() => {
      const decode = createImageBitmap;
      window.createImageBitmap = async (...given) => {
        const bitmap = await decode(...given);
        if (bitmap.width === 50) await new Promise((done) => { window.release = done; });
        return bitmap;
      };
    }""")
    first = {"name": "first.png", "mimeType": "", "buffer": encoded(photograph(50, 50))}
    page.set_input_files("#file", files=[first])
    while not page.evaluate("() => window.release !== undefined"):
        page.wait_for_timeout(20)
    assert choose(page, encoded(photograph(40, 60)), "second.png") == ""
    page.evaluate("async () => { release(); await new Promise((done) => setTimeout(done, 100)); }")
    page.locator("#strength").fill("50")
    name, image = saved(page)
    assert (name, image.size) == ("second_deblurred.png", (60, 40))
    assert page.evaluate("[before.width, before.height]") == [60, 40]
    page.reload()


def test_what_failed_is_forgotten_when_it_is_tried_again(page) -> None:
    page.reload()
    page.route("**/network.onnx", lambda route: route.abort())
    try:
        assert "Is lmfn web still running?" in choose(page, encoded(photograph(40, 40)))
    finally:
        page.unroute("**/network.onnx")
    page.click("#again")
    page.locator("#save").wait_for()
    assert page.inner_text("#message") == ""


def dialog_opened_by(key, page):
    """A key that Chromium drops is pressed again, as people do."""
    from playwright.sync_api import TimeoutError as NotOpened  # where there is no browser, it is not installed

    for _ in range(5):
        try:
            with page.expect_file_chooser(timeout=6000) as chooser:
                page.keyboard.press(key)
        except NotOpened:
            continue
        return chooser.value
    raise AssertionError(f"{key} opens no dialog")


def test_the_keyboard_is_enough(page) -> None:
    photo = encoded(photograph(60, 80))
    page.reload()
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    # Chromium drops keys that come before the first picture of a page, now and then also right after it.
    while not page.locator("#choose").evaluate("it => it === document.activeElement"):
        page.keyboard.press("Tab")
        page.wait_for_timeout(50)
    dialog_opened_by("Enter", page).set_files([])
    dialog_opened_by("Space", page).set_files([{"name": "photo.png", "mimeType": "", "buffer": photo}])
    page.locator("#save").wait_for()
    split = page.locator("#split")
    assert split.evaluate("it => it === document.activeElement")
    before = page.locator("#divider").bounding_box()["x"]
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert split.input_value() == "60"
    assert page.locator("#divider").bounding_box()["x"] > before
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#percent") == "95 %"
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer").get_attribute("class") == "full"
    page.keyboard.press("Tab")  # to the picture, which now scrolls, or past it
    while not page.locator("#save").evaluate("it => it === document.activeElement"):
        page.keyboard.press("Tab")
    with page.expect_download():
        page.keyboard.press("Enter")
    assert page.inner_text("#status") == "Saved as photo_deblurred.png."


def test_a_phone_is_wide_enough(page) -> None:
    page.set_viewport_size({"width": 320, "height": 640})
    try:
        width = "document.documentElement.scrollWidth"
        assert page.evaluate(width) <= 320
        assert choose(page, encoded(photograph(60, 700)), "a-name-without-spaces-" * 5 + ".png") == ""
        assert page.evaluate(width) <= 320
        page.click("text='Actual size'")
        assert page.evaluate(width) <= 320
        small = page.locator("button:visible, .zoom span:visible").evaluate_all(
            "all => all.filter(it => it.getBoundingClientRect().height < 44).length"
        )
        assert small == 0
    finally:
        page.set_viewport_size({"width": 1280, "height": 800})


def test_wrong_results_are_refused(page, server) -> None:
    """As those of a graphics card whose driver is at fault: here the expected ones are."""
    page.reload()
    page.route("**/self-test.json", lambda route: route.fulfill(json=wrong_self_test(server)))
    try:
        message = choose(page, encoded(photograph(40, 40)))
    finally:
        page.unroute("**/self-test.json")
    assert "wasm gives wrong results" in message
    assert not page.locator("#save").is_visible()


def wrong_self_test(server: ThreadingHTTPServer) -> dict:
    test = json.loads(urllib.request.urlopen(address(server) + "self-test.json").read())
    wrong = base64.b64encode(np.full(3, 2, np.float32)).decode()
    return {**test, "sharp": test["sharp"][: -len(wrong)] + wrong}
