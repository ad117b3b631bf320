"""The documentation's blocks of Python run as they are written."""

import pathlib
import re
import shutil

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = {
    f"{page.stem}-{number}": block
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    )
}
# What a block needs that is not here, and what tests the same calls.
ELSEWHERE = {
    "client-0": "a server; tests/export/test_client.py",
    "detection-0": "a CSV file as argument; tests/trainers/test_detect.py",
    "importing-0": "a checkpoint of the released code; tests/test_nvlabs.py",
    "serving-0": "exported files; tests/export/test_onnx_files.py",
    "serving-1": "an exported model; tests/export/test_litert.py",
    "tfx-0": "TFX; tests/trainers/tfx/test_tfx_pipeline.py",
}
# The run of the pages is larger than the tests'.
SMALLER = {
    "(32, 32, 1)": "(8, 8, 1)",
    "batches(1000": "batches(10",
    '{"train.steps": 100}': '{"train.steps": 2, "model.num_channels_enc": 4,'
    ' "model.num_channels_dec": 4, "model.num_groups_per_scale": 1}',
}


def test_blocks_that_do_not_run_here_are_tested_elsewhere():
    assert set(ELSEWHERE) < set(BLOCKS)
    for reason in ELSEWHERE.values():
        assert (ROOT / reason.rpartition("; ")[2]).is_file(), reason


@pytest.mark.parametrize("name", sorted(set(BLOCKS) - set(ELSEWHERE)))
def test_block_runs(name, finished, tmp_path, monkeypatch):
    for run in ("quickstart", "a"):
        shutil.copytree(finished.path, tmp_path / "runs" / run)
    monkeypatch.chdir(tmp_path)
    block = BLOCKS[name]
    for written, smaller in SMALLER.items():
        block = block.replace(written, smaller)
    exec(compile(block, name, "exec"), {})
