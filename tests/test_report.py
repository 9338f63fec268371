"""The page of a restoration: what is embedded in it, and what it does in a browser where there is one."""

import io
import json
import re
import shutil
from base64 import b64decode
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from bayesq import metrics
from bayesq.cli import main
from bayesq.errors import ImageError
from bayesq.inference import Info
from bayesq.io import read_image, to_tensor
from bayesq.report import FEWEST, render
from bayesq.resources import data_dir
from bayesq.restore import Restoration

HEIGHT, WIDTH, DRAWS = 30, 44, 12
PATIENCE = 120_000
"""Milliseconds; a busy machine is not a failure."""
IN_COLOUR = pytest.mark.parametrize("case", [3], indirect=True, ids=["colour"])
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def restoration_of(samples):
    info = Info(-1.0, -1.0, 1.0)
    return Restoration(samples.mean(0), samples.std(0), samples, [], (info,), 80.0, 1.5)


@pytest.fixture(scope="module", params=[3, 1], ids=["colour", "grey"])
def case(request):
    """A truth, a measurement of half its size, and samples that spread as they should."""
    generator = torch.Generator().manual_seed(0)
    with Image.open(data_dir() / "chelsea.png") as image:
        x = to_tensor(image.crop((100, 20, 100 + WIDTH, 20 + HEIGHT)))[:, : request.param]
    shared = x + 0.05 * torch.randn(x.shape, generator=generator)
    samples = shared + 0.05 * torch.randn((DRAWS, *x.shape), generator=generator)
    return x, x[..., ::2, ::2], restoration_of(samples.clamp(0, 1))


def embedded(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def picture(address):
    kind, _, text = address.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(b64decode(text))))


def levels_of(x):
    """The 8-bit values of a picture, (H, W, 3) or (H, W)."""
    return (255 * x[0]).round().permute(1, 2, 0).squeeze(2).numpy().astype(np.uint8)


def test_pictures_are_those_of_the_restoration(case):
    x, y, restoration = case
    data = embedded(render(restoration, y, x))
    assert (data["width"], data["height"], len(data["channels"])) == (WIDTH, HEIGHT, x.shape[1])
    for name, expected in (("mean", restoration.mean), ("measurement", y), ("truth", x)):
        assert np.array_equal(picture(data[name]), levels_of(expected))
    for address, sample in zip(data["samples"], restoration.samples, strict=True):
        assert np.array_equal(picture(address), levels_of(sample))


def test_deviations_are_kept_to_some_percent(case):
    restoration = case[2]
    data = embedded(render(restoration))
    std = data["top"] * (picture(data["std"]) / 255.0) ** 2
    exact = 255 * restoration.std[0].permute(1, 2, 0).squeeze(2).numpy()
    assert np.abs(std - exact).max() < 0.01 * data["top"]
    low, high = restoration.interval(0.9)
    inside = (low > 0) & (high < 1)
    reach = ((high - low) / (2 * restoration.std))[inside]
    assert torch.allclose(reach, torch.tensor(data["reach"]), rtol=1e-3)


def test_truth_is_compared(case):
    x, y, restoration = case
    data = embedded(render(restoration, y, x))
    assert data["psnr"] == {"mean": pytest.approx(metrics.psnr(restoration.mean, x).item())}
    told = data["coverage"]
    assert torch.allclose(torch.tensor(told["found"]), metrics.coverage(restoration.samples, x, told["levels"]))
    assert {0.5, 0.8, 0.9, 0.95} <= set(told["levels"]) and told["found"] == sorted(told["found"])
    assert embedded(render(restoration, x, x))["psnr"]["measured"] == 99
    bare = embedded(render(restoration))
    assert bare["psnr"] == {} and bare["coverage"] is bare["truth"] is bare["measurement"] is None


@pytest.mark.parametrize("measurement", [torch.rand(1, 100), torch.rand(1, 2, 8, 8)])
def test_measurement_that_is_no_picture_is_left_out(measurement, case):
    assert embedded(render(case[2], measurement))["measurement"] is None


def test_page_is_complete_in_itself(case):
    """Nothing is loaded from elsewhere, and the browser is told not to; text cannot break out of its place."""
    evil = '</script><img src="http://example.org/a.png"> {{data}} {{title}}'
    page = render(case[2], case[1], case[0], title=evil, facts={"Model": evil})
    assert embedded(page)["title"] == embedded(page)["facts"]["Model"] == evil
    found = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            found.append((tag, dict(attributes)))

    Reader().feed(page)
    assert all(value is None or not name.endswith(("src", "href")) for _, them in found for name, value in them.items())
    assert [tag for tag, _ in found].count("img") == page.split("<body>")[1].split('<script type="app')[0].count("<img")
    policy = next(them["content"] for tag, them in found if tag == "meta" and "http-equiv" in them)
    assert "default-src 'none'" in policy
    names = [them["id"] for _, them in found if "id" in them]
    assert len(names) == len(set(names))
    assert set(re.findall(r'\$\("([\w-]+)"\)', page)) <= set(names)


@pytest.mark.parametrize(("room", "kept"), [(8, 8), (100, DRAWS), (0.5, FEWEST)])
def test_large_pictures_hold_fewer_samples(room, kept, case, monkeypatch):
    monkeypatch.setattr("bayesq.report.BUDGET", int(room * WIDTH * HEIGHT))
    data = embedded(render(case[2]))
    assert (data["draws"], len(data["samples"])) == (DRAWS, kept)


def test_truth_of_another_shape_is_refused(case):
    with pytest.raises(ImageError, match="the truth has shape"):
        render(case[2], truth=case[0][..., 1:])


def test_restoration_writes_its_page(case, tmp_path):
    x, y, restoration = case
    restoration.report(tmp_path / "photo.html", y, x)
    assert (tmp_path / "photo.html").read_text(encoding="utf-8") == render(restoration, y, x, title="photo")


@pytest.fixture
def spoilt(tmp_path):
    with Image.open(data_dir() / "chelsea.png") as image:
        image.crop((100, 20, 164, 68)).save(tmp_path / "x.png")
    argv = ["superres", str(tmp_path / "x.png"), str(tmp_path / "y.png"), "--noise", "0.02", "--quiet"]
    assert main(["degrade", *argv]) == 0
    return tmp_path / "y.png"


def report(codec, *argv):
    return main(["report", *map(str, argv), "-m", codec, "--steps", "2", "--samples", "4", "--noise", "0.02"])


def test_command_writes_what_restore_finds(spoilt, small_codec_path, capsys):
    page, truth = spoilt.with_suffix(".html"), spoilt.with_name("x.png")
    assert report(small_codec_path, "superres", spoilt, page, "--truth", truth, "--json") == 0
    captured = capsys.readouterr()
    told, data = json.loads(captured.out), embedded(page.read_text(encoding="utf-8"))
    assert (told["width"], told["height"], told["bytes"]) == (64, 48, page.stat().st_size)
    assert told["psnr"] == pytest.approx(data["psnr"]["mean"])
    assert told["coverage"] == pytest.approx(data["coverage"]["found"][data["coverage"]["levels"].index(0.9)])
    assert "the 90 % intervals hold" in captured.err
    assert data["title"] == "y.png" and data["facts"]["Task"] == "superres"
    assert picture(data["measurement"]).shape == (24, 32, 3)
    restored = spoilt.with_name("restored.png")
    argv = ["superres", str(spoilt), str(restored), "-m", small_codec_path, "--steps", "2", "--samples", "4"]
    assert main(["restore", *argv, "--noise", "0.02", "--quiet"]) == 0
    assert np.array_equal(np.asarray(read_image(restored)), picture(data["mean"]))


def test_grey_pictures_stay_grey(spoilt, small_codec_path, capsysbinary):
    read_image(spoilt).convert("L").save(spoilt)
    truth = spoilt.with_name("x.png")
    assert report(small_codec_path, "superres", spoilt, "-", "--truth", truth, "--quiet") == 0
    data = embedded(capsysbinary.readouterr().out.decode())
    assert data["channels"] == ["grey"] and picture(data["samples"][0]).shape == (48, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--algorithm", "map"], "a point estimate has no spread"),
        (["--truth", "{y}"], "a truth of 64 x 48 pixels is needed"),
        (["--truth", "{y}.none"], "No such file"),
    ],
)
def test_what_does_not_fit_is_one_line(options, message, spoilt, small_codec_path, capsys):
    page = spoilt.with_suffix(".html")
    assert report(small_codec_path, "superres", spoilt, page, *(option.format(y=spoilt) for option in options)) == 1
    error = capsys.readouterr().err
    assert error.startswith("bayesq: error: ") and error.count("\n") == 1 and message in error
    assert not page.exists()


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium that fails the test if it asks for anything but the page."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    if not BROWSER:
        pytest.skip("needs a browser: apt-get install chromium")
    with api.sync_playwright() as started:
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = started.chromium.launch(executable_path=BROWSER, args=flags, timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page in a window of a size; complaints of the browser are errors."""
    complaints, requests = [], []

    def visit(page, width=1200, height=800, scheme="light"):
        path = tmp_path / "page.html"
        path.write_text(page, encoding="utf-8")
        tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        tab.set_default_timeout(PATIENCE)
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(path.as_uri())
        tab.wait_for_selector("html[data-ready]")
        return tab

    yield visit
    assert not complaints
    assert all(url.startswith(("data:", "file:")) for url in requests)


def table(tab, selector):
    """Rows of cells, without the heads."""
    rows = tab.locator(f"{selector} tr").all()[1:]
    return [row.locator("th, td").all_inner_texts() for row in rows]


def test_browser_inspects_the_pixel_that_the_keys_choose(case, opened):
    x, y, restoration = case
    tab = opened(render(restoration, y, x))
    tab.focus("#stage")
    for key in ("Home", "Shift+ArrowLeft", "ArrowLeft", "ArrowDown"):
        tab.keyboard.press(key)
    column, line = (int(part) for part in re.findall(r"\d+", tab.inner_text("#where")))
    assert (column, line) == (int(0.67 * WIDTH) - 11, int(0.33 * HEIGHT) + 1)
    low, high = (255 * end[0, :, line, column] for end in restoration.interval(0.9))
    mean, std = (levels_of(v)[line, column] for v in (restoration.mean, restoration.std))
    rows = table(tab, "#values")
    assert len(rows) == x.shape[1]
    for c, (_, told_mean, told_std, interval, truth) in enumerate(rows):
        assert int(told_mean) == np.atleast_1d(mean)[c]
        assert float(told_std) == pytest.approx(np.atleast_1d(std)[c], abs=0.7)
        assert [float(end) for end in interval.split(" – ")] == pytest.approx([low[c].item(), high[c].item()], abs=2)
        assert truth.split()[0] == str(np.atleast_1d(levels_of(x)[line, column])[c])
    heights = tab.eval_on_selector_all(
        "#histogram rect[opacity='0.75']", "all => all.map(e => +e.getAttribute('height'))"
    )
    assert 1 < len(heights) <= DRAWS * len(rows)


@IN_COLOUR
def test_browser_follows_the_pointer_and_keeps_what_is_clicked(case, opened):
    tab = opened(render(case[2], case[1], case[0]))
    box = tab.locator("#stage").bounding_box()

    def at(x, y):
        return box["x"] + box["width"] * (x + 0.5) / WIDTH, box["y"] + box["height"] * (y + 0.5) / HEIGHT

    tab.mouse.click(*at(7, 9))
    tab.mouse.move(*at(40, 25))
    assert tab.inner_text("#where") == "Pixel 40, 25"
    tab.mouse.move(2, 2)
    assert tab.inner_text("#where") == "Pixel 7, 9"


@IN_COLOUR
def test_browser_divides_before_from_after(case, opened):
    tab = opened(render(case[2], case[1], case[0]))
    box = tab.locator("#stage").bounding_box()
    middle = box["y"] + box["height"] / 2
    tab.mouse.move(box["x"] + box["width"] / 2, middle)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] / 4, middle)
    tab.mouse.up()
    assert float(tab.input_value("#place")) == pytest.approx(25, abs=1)
    assert "75%" in tab.locator("#measured").evaluate("e => e.style.clipPath")
    tab.focus("#place")
    tab.keyboard.press("End")
    assert "inset(0px 0% 0px 0px)" in tab.locator("#measured").evaluate("e => e.style.clipPath")
    tab.get_by_text("Truth", exact=True).click()
    assert tab.is_visible("#true") and not tab.is_visible("#measured")


@IN_COLOUR
def test_browser_shows_deviations_in_the_colours_of_the_scale(case, opened):
    tab = opened(render(case[2], truth=case[0]))
    tab.check("input[value=map]", force=True)
    colours = "e => [...e.getContext('2d').getImageData(0, 0, e.width, e.height).data]"
    found = np.reshape(tab.locator("#map").evaluate(colours), (HEIGHT, WIDTH, 4))
    pooled = case[2].std[0].square().mean(0).sqrt().numpy()
    order = np.corrcoef(found[..., :3].sum(2).ravel(), pooled.ravel())[0, 1]  # magma brightens all the way
    assert order > 0.9 and (found[..., 3] == 255).all()
    tab.locator("#opacity").fill("30")
    assert tab.locator("#map").evaluate("e => e.style.opacity") == "0.3"


def test_browser_turns_over_the_samples(case, opened):
    tab = opened(render(case[2], case[1]))
    tab.check("input[value=samples]", force=True)
    colours = "e => [...e.getContext('2d').getImageData(0, 0, e.width, e.height).data]"
    tab.focus("#frame")
    for _ in range(2):
        tab.keyboard.press("ArrowRight")
    found = np.reshape(tab.locator("#flip").evaluate(colours), (HEIGHT, WIDTH, 4))[..., :3]
    expected = levels_of(case[2].samples[2])
    assert np.array_equal(found, expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, 2))
    tab.click("#play")
    tab.get_by_text(f"4 of {DRAWS}").wait_for()
    tab.click("#play")
    assert tab.inner_text("#play") == "Play"


@IN_COLOUR
@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (800, "light"), (1600, "dark")])
def test_browser_fits_the_page_to_the_window(width, scheme, case, opened):
    tab = opened(render(case[2], case[1], case[0]), width, 700, scheme)
    for mode in ("compare", "map", "samples"):
        tab.check(f"input[value={mode}]", force=True)
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    brightness = tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert (brightness < 128) == (scheme == "dark")


@IN_COLOUR
def test_browser_shows_less_where_less_is_known(case, opened):
    tab = opened(render(case[2]))
    assert not tab.is_visible("#calibration") and not tab.is_visible("text=Compare")
    assert tab.is_visible("#map") and not tab.is_visible("text=Actual error")
