"""TensorBoard itself on a finished run: what it serves to the browser."""

import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.slow

_WAIT = 120  # seconds, for the server and for its reading of the files


class Server:
    """A running TensorBoard."""

    def __init__(self, logdir, log):
        command = [sys.executable, "-m", "tensorboard.main", f"--logdir={logdir}", "--port=0"]
        command += ["--host=127.0.0.1", "--reload_interval=1"]
        self._log = log
        with open(log, "w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        self._address = self._wait_for(self._find_address)

    def _find_address(self):
        match = re.search(r"http://127.0.0.1:\d+/", self._log.read_text())
        return match and match[0]

    def _wait_for(self, what):
        end = time.monotonic() + _WAIT
        while not (found := what()):
            assert self.process.poll() is None and time.monotonic() < end, self._log.read_text()
            time.sleep(0.2)
        return found

    def get(self, path, post=None, **query):
        url = f"{self._address}data/{path}?{urllib.parse.urlencode(query)}"
        body = None if post is None else json.dumps(post).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=_WAIT) as response:
            content = response.read()
        return json.loads(content) if "json" in response.headers["Content-Type"] else content

    def wait_for_runs(self, count):
        """Until all runs are read, with their last images."""
        self._wait_for(lambda: len(self.get("runs")) == count)
        self._wait_for(
            lambda: any("samples/temperature_1.0" in t for t in self.tags("images").values())
        )

    def tags(self, plugin):
        return self.get(f"plugin/{plugin}/tags")


@pytest.fixture(scope="module")
def server(finished, tmp_path_factory):
    server = Server(finished.path, tmp_path_factory.mktemp("tensorboard") / "log")
    try:
        server.wait_for_runs(2)
        yield server
    finally:
        server.process.terminate()
        server.process.wait()


def test_scalars_are_those_of_the_event_files(server, finished):
    tags = server.tags("scalars")
    assert set(tags) == {"tensorboard/train", "tensorboard/validation"}
    logs = EventAccumulator(f"{finished.tensorboard}/train", size_guidance={"tensors": 0}).Reload()
    for tag, description in tags["tensorboard/train"].items():
        served = server.get("plugin/scalars/scalars", run="tensorboard/train", tag=tag)
        events = logs.Tensors(tag)
        assert [point[1] for point in served] == [event.step for event in events]
        values = [float(np.squeeze(tf.make_ndarray(event.tensor_proto))) for event in events]
        np.testing.assert_array_equal([point[2] for point in served], values, err_msg=tag)
        if "/group_" in tag:
            assert re.match(r"<p>Scale [01], \dx\d\.", description["description"])


def test_custom_scalars(server):
    layout = server.get("plugin/custom_scalars/layout")
    charts = [chart for category in layout["category"] for chart in category["chart"]]
    assert len(charts) > 10
    for chart in charts:
        for pattern in chart.get("multiline", {}).get("tag", []):
            found = server.get(
                "plugin/custom_scalars/scalars", run="tensorboard/train", tag=pattern
            )
            assert found["regex_valid"] and found["tag_to_events"], pattern
    (everything,) = charts[0]["multiline"]["tag"]
    found = server.get(
        "plugin/custom_scalars/scalars", run="tensorboard/validation", tag=everything
    )
    assert set(found["tag_to_events"]) == {f"kl/group_0{group}" for group in range(3)}


def test_images_can_be_fetched(server):
    shown = {(run, tag) for run, tags in server.tags("images").items() for tag in tags}
    assert shown == {
        *(("tensorboard/train", f"kl/{n}") for n in ("over_time", "by_channel", "rate_curve")),
        *(("tensorboard/validation", f"reconstructions/{n}") for n in ("pairs", "first_groups")),
        *(("tensorboard/validation", f"samples/temperature_{t}") for t in (0.6, 0.8, 1.0)),
    }
    for run, tag in shown:
        images = server.get("plugin/images/images", run=run, tag=tag, sample=0)
        assert [image["step"] for image in images] == [2, 4]
        query = dict(urllib.parse.parse_qsl(images[-1]["query"]))
        picture = tf.io.decode_png(server.get("plugin/images/individualImage", **query))
        assert picture.shape[1] == 700 or tag.startswith(("reconstructions/", "samples/"))
        assert len(np.unique(picture)) > 2


def test_the_table_of_runs(server, finished):
    (group,) = server.get(
        "plugin/hparams/session_groups",
        post={
            "experimentName": "",
            "allowedStatuses": ["STATUS_SUCCESS"],
            "colParams": [],
            "startIndex": 0,
            "sliceSize": 100,
        },
    )["sessionGroups"]
    assert group["name"].startswith("finished ")
    assert group["hparams"]["train.global_batch_size"] == 4
    assert group["hparams"]["model.arch_instance"] == "res_mbconv"
    with open(finished.evaluation) as file:
        result = json.load(file)
    metrics = {metric["name"]["tag"]: metric["value"] for metric in group["metricValues"]}
    assert metrics["loss/negative_elbo"] == pytest.approx(result["negative_elbo"], rel=1e-6)
    bits = result["negative_elbo_bits_per_dim"]
    assert metrics["loss/bits_per_dim"] == pytest.approx(bits, rel=1e-6)


def test_texts_are_tables(server):
    tags = {(run, tag) for run, tags in server.tags("text").items() for tag in tags}
    described = {("tensorboard/validation", t) for t in ("configuration", "model", "surroundings")}
    assert tags == described | {("tensorboard/train", "spectral_norm")}
    for run, tag in tags:
        (*_, last) = server.get("plugin/text/text", run=run, tag=tag)
        assert "<table>" in last["text"] and "<td>" in last["text"]
