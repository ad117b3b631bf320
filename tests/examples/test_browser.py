"""The page in a browser: it draws what TensorFlow draws, and says what is missing.

What runs in Chromium needs that and its driver, and the npm package onnxruntime-web in this
repository's node_modules; what runs in Node needs Node alone.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import pathlib
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
import tensorflow as tf

from export.manifest import Manifest
from export.onnx_files import check_installed, write_onnx
from export.seed_noise import noise_of_seed
from nvae_tf import ExperimentConfig
from nvae_tf.runs.load import TrainedModel
from nvae_tf.sampling import latents
from nvae_tf.sampling.sampler import row_noise
from tests.examples import chromium
from tests.export.exported import small_model

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "examples/browser"
RUNTIME = ROOT / "node_modules/onnxruntime-web/dist"
SHAPES = [(4, 4, 5), (3, 1, 1), (8, 8, 20)]

needs_node = pytest.mark.skipif(not shutil.which("node"), reason="needs Node")
MODELS = {
    "small": small_model,  # in colour
    "fashion_mnist": functools.cache(lambda: TrainedModel.of_preset("fashion_mnist").load()),
}


def in_node(script, *arguments):
    """What a script prints, which has `noise`, the module with the noise, and `arguments`."""
    code = f"const noise = await import({(PAGE / 'seed_noise.mjs').as_uri()!r});"
    code += f"const arguments_ = {json.dumps(arguments)}; {script}"
    command = ["node", "--input-type=module", f"--eval={code}"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@needs_node
@pytest.mark.parametrize("seed", [0, 7, 2**32 + 5, 2**63 - 1])
def test_the_noise_of_a_seed_is_that_of_python(seed):
    script = "const [seed, shapes] = arguments_;"
    script += "console.log(JSON.stringify(noise.noiseOfSeed(seed, shapes).map((a) => [...a])));"
    received = in_node(script, str(seed), SHAPES)
    for values, expected in zip(received, noise_of_seed(seed, SHAPES), strict=True):
        np.testing.assert_allclose(values, expected.ravel(), rtol=0, atol=1e-6)


@needs_node
def test_seeds_that_are_not_allowed():
    script = """
      const faults = arguments_.map((seed) => {
        try { noise.noiseOfSeed(seed, [[1]]); } catch (error) { return error.name; }
        return "none";
      });
      console.log(JSON.stringify(faults));
    """
    wrong = ["-1", "x", "", "1.5", str(2**63), 2**60, 0.5]
    assert in_node(script, *wrong, "0") == [*["RangeError"] * len(wrong), "none"]


@needs_node
@pytest.mark.parametrize("weight", [0, 0.3, 1])
def test_the_way_is_that_of_nvae_latents(weight):
    script = """
      const [a, b, shapes, weight] = arguments_;
      const ends = [a, b].map((seed) => noise.noiseOfSeed(seed, shapes));
      console.log(JSON.stringify(noise.greatCircle(...ends, weight).map((a) => [...a])));
    """
    start, end = ([group[None] for group in noise_of_seed(seed, SHAPES)] for seed in (7, 9))
    expected = latents.interpolate_noise(start, end, tf.constant([weight], tf.float32))
    for values, group in zip(in_node(script, 7, 9, SHAPES, weight), expected, strict=True):
        np.testing.assert_allclose(values, group.numpy().ravel(), rtol=0, atol=1e-5)


@contextlib.contextmanager
def served(*arguments):
    """The address of the example's server."""
    command = [sys.executable, str(PAGE / "serve.py"), "--port=0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().split()[0]
        finally:
            process.terminate()


@contextlib.contextmanager
def files_of(directory):
    """The address of a server of a directory."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def end_headers(self):
            self.send_header("Cache-Control", "no-store")  # the files change
            super().end_headers()

        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=directory)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def some_files(tmp_path):
    """A model and a runtime in which a server only looks for files."""
    (tmp_path / "runtime").mkdir()
    for name in ("x.onnx", "runtime/ort.wasm.min.mjs", "runtime/a.wasm", "runtime/a.map"):
        (tmp_path / name).write_text(name)
    return [f"--model={tmp_path}/x.onnx", f"--runtime={tmp_path}/runtime"]


def test_what_the_server_sends(some_files):
    with served(*some_files) as address:
        for path, kind in {
            "": "text/html; charset=utf-8",
            "index.html?x=1": "text/html; charset=utf-8",
            "seed_noise.mjs": "text/javascript; charset=utf-8",
            "sample_tensors.onnx": "application/octet-stream",
            "runtime/a.wasm": "application/wasm",
        }.items():
            with urllib.request.urlopen(address + path, timeout=30) as answer:
                assert answer.headers["Content-Type"] == kind
                assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
                assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        for path in ("serve.py", "runtime/a.map", "runtime/", "runtime/../../x.onnx", "BUILD"):
            with pytest.raises(urllib.error.HTTPError, match="404") as caught:
                urllib.request.urlopen(address + path, timeout=30)
            caught.value.close()


@pytest.mark.parametrize("which, said", [(0, "nvae-export writes one"), (1, "npm install")])
def test_what_the_server_misses_is_said_at_once(some_files, which, said):
    some_files[which] += "x"
    command = [sys.executable, str(PAGE / "serve.py"), "--port=0", *some_files]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert said in ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def browser():
    if lacking := chromium.missing():
        pytest.skip(f"needs {lacking}")
    if not RUNTIME.is_dir():
        pytest.skip(
            "needs npm install --no-save --ignore-scripts --prefix=. onnxruntime-web@1.30.0"
        )
    with chromium.chromium() as window:
        yield window


@pytest.fixture(scope="module")
def exported(tmp_path_factory, browser):
    """The directory of a model's ONNX files, by the model's name."""
    del browser  # without one, nothing has to be exported
    try:
        check_installed()
    except ImportError:
        pytest.skip("needs the extra onnx")

    @functools.cache
    def export(name):
        directory = tmp_path_factory.mktemp(name)
        config = ExperimentConfig(model=MODELS[name]().config)
        write_onnx(MODELS[name](), directory, Manifest.of(config, step=0))
        return directory

    return export


@pytest.fixture
def page(browser, exported, request):
    """The page, with everything drawn, of a model that the test names."""
    name = getattr(request, "param", "small")
    model = f"--model={exported(name)}/sample_tensors.onnx"
    with served(model, f"--runtime={RUNTIME}") as address:
        browser.open(address)
        wait(browser)
        yield browser


def wait(browser, state="drawn"):
    script = "while (!['drawn', 'failed'].includes(document.body.dataset.state))"
    script += " await new Promise((resolve) => setTimeout(resolve, 20));"
    script += "return [document.body.dataset.state, document.body.innerText]"
    reached, text = browser.run(script)
    assert reached == state, text
    return text


def set_value(browser, name, value):
    """Types into a field or moves a slider, and waits."""
    script = "const field = document.getElementById(arguments[0]); field.value = arguments[1];"
    browser.run(f"{script} field.dispatchEvent(new Event('input'));", name, str(value))
    wait(browser)


def pixels(browser, selector):
    """What a canvas shows, (height, width, 4) uint8."""
    script = """
      const canvas = document.querySelector(SELECTOR);
      const { width, height } = canvas;
      return [height, width, [...canvas.getContext("2d").getImageData(0, 0, width, height).data]];
    """.replace("SELECTOR", json.dumps(selector))
    height, width, values = browser.run(script)
    return np.reshape(np.uint8(values), [height, width, 4])


def images(model, noise, temperature):
    """TensorFlow's image of noise, (height, width, 4) uint8."""
    logits = model.generate(1, temperature, noise)
    image = np.round(255 * model.crop_padding(model.likelihood(logits).mean())[0].numpy())
    colours = np.broadcast_to(image, [*image.shape[:2], 3])
    return np.concatenate([colours, np.full_like(colours[..., :1], 255)], axis=-1)


def noise_of(model, seed):
    return row_noise(model, tf.constant([[seed, 0]], tf.int64))


def assert_same(received, expected):
    assert received.shape == expected.shape
    assert np.abs(received - np.float32(expected)).max() <= 1
    assert received[..., :3].std() > 5  # and no blank


@pytest.mark.slow
@pytest.mark.parametrize("page, name", [(name, name) for name in MODELS], indirect=["page"])
def test_images_are_those_of_tensorflow(page, name):
    model = MODELS[name]()
    seven, nine = noise_of(model, 7), noise_of(model, 9)
    assert_same(pixels(page, "#sample"), images(model, seven, 0.8))
    middle = latents.interpolate_noise(seven, nine, tf.constant([0.5]))
    assert_same(pixels(page, "#walk"), images(model, middle, 0.8))
    set_value(page, "temperature", 0.3)
    assert_same(pixels(page, "#sample"), images(model, seven, 0.3))
    set_value(page, "seed", 2**63 - 1)
    assert_same(pixels(page, "#sample"), images(model, noise_of(model, 2**63 - 1), 0.3))
    assert "ms per image" in wait(page)


@pytest.mark.slow
def test_slider_and_seed_change_the_picture(page):
    first = pixels(page, "#sample")
    set_value(page, "temperature", 0.2)
    cooler = pixels(page, "#sample")
    set_value(page, "seed", 8)
    other = pixels(page, "#sample")
    assert (first != cooler).any() and (cooler != other).any()
    set_value(page, "seed", 7)
    set_value(page, "temperature", 0.8)
    np.testing.assert_array_equal(pixels(page, "#sample"), first)
    page.run("document.querySelector('#sheet button:nth-of-type(2)').click()")  # seed 9
    wait(page)
    set_value(page, "position", 1)
    np.testing.assert_array_equal(pixels(page, "#sample"), pixels(page, "#walk"))


@pytest.mark.slow
def test_a_walk_leads_from_one_seed_to_the_other(page):
    start = pixels(page, "#sample")
    set_value(page, "seed", 9)
    end = pixels(page, "#sample")
    for position, image in ((0, start), (1, end)):
        set_value(page, "position", position)
        assert_same(pixels(page, "#walk"), image)
    assert_same(pixels(page, "#strip button:first-of-type canvas"), start)
    assert_same(pixels(page, "#strip button:last-of-type canvas"), end)
    set_value(page, "position", 0.5)
    between = pixels(page, "#walk")
    assert (between != start).any() and (between != end).any()


@pytest.mark.slow
def test_a_walk_goes_on_by_itself_until_it_is_stopped(page):
    positions = """
      const button = document.getElementById("play");
      const slider = document.getElementById("position");
      const seen = [];
      button.click();
      for (let i = 0; i < 400 && new Set(seen).size <= 5; i++) {
        await new Promise((resolve) => setTimeout(resolve, 50));
        seen.push(slider.value);
      }
      button.click();
      const stopped = slider.value;
      await new Promise((resolve) => setTimeout(resolve, 300));
      return [seen, stopped === slider.value, button.textContent];
    """
    seen, stopped, text = page.run(positions)
    assert len(set(seen)) > 5 and stopped and text == "Play"


@pytest.mark.slow
def test_the_keyboard_is_enough(page):
    before = pixels(page, "#sample")
    reached = []
    while "position" not in reached:
        page.press("Tab")
        reached.append(page.run("return document.activeElement.id"))
        if reached[-1] == "temperature":
            page.press("ArrowLeft")
        if reached[-1] == "next":
            page.press("Space")
        assert len(reached) < 40
    order = [name for name in reached if name]
    controls = ["temperature", "seed", "previous", "next", "any", "from", "to", "play", "position"]
    assert order == controls
    wait(page)
    assert page.run("return document.getElementById('temperature').value") == "0.75"
    assert page.run("return document.getElementById('seed').value") == "8"
    assert (pixels(page, "#sample") != before).any()


@pytest.mark.slow
def test_a_text_that_is_no_seed_changes_nothing(page):
    before = pixels(page, "#sample")
    set_value(page, "seed", "7 or so")
    assert "A seed is a whole number" in wait(page)
    np.testing.assert_array_equal(pixels(page, "#sample"), before)
    set_value(page, "seed", 7)
    assert "A seed is a whole number" not in wait(page)
    set_value(page, "from", "x")
    set_value(page, "to", 10)  # which does not make the other one right
    assert "A seed is a whole number" in wait(page)
    set_value(page, "from", 9)
    assert "A seed is a whole number" not in wait(page)


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1100])
def test_nothing_is_wider_than_the_window(page, width):
    page.resize(width, 800)
    assert page.run("return document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_what_is_missing_is_said(browser, exported, tmp_path):
    with files_of(PAGE) as address:
        browser.open(address)
        assert "ONNX Runtime Web is missing." in wait(browser, "failed")
    shutil.copytree(PAGE, tmp_path / "page")
    (tmp_path / "page/runtime").symlink_to(RUNTIME)
    with files_of(tmp_path / "page") as address:
        browser.open(address)
        assert "There is no model." in wait(browser, "failed")
        (tmp_path / "page/sample_tensors.onnx").write_bytes(b"no model")
        browser.open(address)
        assert "The model cannot be run." in wait(browser, "failed")
        shutil.copy(exported("small") / "sample_tensors.onnx", tmp_path / "page")
        browser.open(address)  # and without the headers for threads
        assert "1 thread\n" in wait(browser)
    model = f"--model={exported('small')}/decode_tensors.onnx"
    with served(model, f"--runtime={RUNTIME}") as address:
        browser.open(address)
        assert "The model is another one." in wait(browser, "failed")
    browser.open((PAGE / "index.html").as_uri())
    assert "has to come from a web server" in browser.run("return document.body.innerText")
