"""Curves of runs, from event files and from a compiled step's log."""

import json

import tensorflow as tf

from tests.trainers.programs import Program, run


def write_log(directory, steps):
    directory.mkdir()
    rows = [
        {
            "step": s,
            "seconds": 2.0 * s,
            "negative_elbo": 200.0 / s,
            "gradient_norm": 90.0 / s,
            "skipped": s // 10,
        }
        for s in range(1, steps + 1)
    ]
    (directory / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_workdir(directory, steps):
    writer = tf.summary.create_file_writer(str(directory / "tensorboard" / "train"))
    with writer.as_default():
        tf.summary.text("configuration", "as all runs have it", 0)
        for step in range(1, steps + 1):
            tf.summary.scalar("loss/negative_elbo", 200.0 / step, step)
            tf.summary.scalar("training/gradient_norm", 90.0 / step, step)
            tf.summary.scalar("training/skipped_steps", 0, step)
    writer.close()


def test_both_kinds_of_runs_in_one_picture(tmp_path):
    write_log(tmp_path / "a", 30)
    write_workdir(tmp_path / "b", 10)
    output = tmp_path / "curves.png"
    runs = f"--runs=compiled={tmp_path / 'a'},trained={tmp_path / 'b'}"
    printed = run("benchmarks.curves", runs, "--against=steps", f"--output={output}")
    assert printed.splitlines() == [
        "compiled: 30 steps, 3 skipped; largest norm of the gradients 90 in the first tenth, "
        "22 later; median of the last half 4",
        "trained: 10 steps, 0 skipped; largest norm of the gradients 90 in the first tenth, "
        "45 later; median of the last half 11",
        str(output),
    ]
    assert tf.io.decode_png(output.read_bytes()).shape[:2] == [448, 1260]


def test_errors_name_what_is_wrong(tmp_path):
    output = f"--output={tmp_path / 'curves.png'}"
    (tmp_path / "empty").mkdir()
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "log.jsonl").touch()
    for runs, message in (
        (f"empty={tmp_path / 'empty'}", "has logged nothing"),
        (f"stopped={tmp_path / 'stopped'}", "has logged nothing"),
        (str(tmp_path), "--runs must be LABEL=DIRECTORY"),
    ):
        program = Program("benchmarks.curves", f"--runs={runs}", output)
        _, error = program.communicate()
        assert program.returncode == 1 and message in error
    assert not (tmp_path / "curves.png").exists()
