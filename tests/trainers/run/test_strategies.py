"""Where a run computes: devices and workers, as options and environment name them."""

import re
import types

import pytest
import tensorflow as tf

from trainers.run.strategies import is_chief, make_strategy


def test_unknown_strategy():
    with pytest.raises(ValueError, match="'tpu'"):
        make_strategy("tpu")


def test_several_workers_need_their_addresses(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ValueError, match="needs the environment variable TF_CONFIG"):
        make_strategy("multi_worker")


@pytest.mark.parametrize(
    "text, fault",
    [
        ("workers", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not an object"),
        ("{}", "has no object 'cluster'"),
        ('{"cluster": {}}', "has no object 'cluster'"),
        ('{"cluster": {"worker": []}, "task": {}}', "has no list of HOST:PORT for 'worker'"),
        ('{"cluster": {"worker": "a:1"}}', "has no list of HOST:PORT"),
        ('{"cluster": {"worker": ["a"]}}', "has no list of HOST:PORT"),
        ('{"cluster": {"ps": ["a:1"]}}', "has the job 'ps'"),
        ('{"cluster": {"worker": ["a:1"]}}', "has no object 'task'"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": 1}}', "a task of the type 1"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief"}}', "of the type 'chief'"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "index 1"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": "0"}}', "index '0'"),
        (
            '{"cluster": {"evaluator": ["a:1"]}, "task": {"type": "evaluator", "index": 0}}',
            "a task of the type 'evaluator'",
        ),
    ],
)
def test_workers_that_are_listed_wrong(monkeypatch, text, fault):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match=f"TF_CONFIG.*{re.escape(fault)}"):
        make_strategy("auto")


def test_slurm_lists_the_workers(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    slurm = {
        "PROCID": 1,
        "STEP_NUM_TASKS": 4,
        "STEP_NODELIST": "n[1-2]",
        "STEP_TASKS_PER_NODE": "2(x2)",
    }
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    resolvers = []
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", resolvers.append)
    make_strategy("auto")
    workers = ["n1:8888", "n1:8889", "n2:8888", "n2:8889"]
    assert resolvers[0].cluster_spec().as_dict() == {"worker": workers}
    assert (resolvers[0].task_type, resolvers[0].task_id) == ("worker", 1)


@pytest.mark.parametrize(
    ("jobs", "task", "expected"),
    [
        (["worker"], ("worker", 0), True),
        (["worker"], ("worker", 1), False),
        (["chief", "worker"], ("chief", 0), True),
        (["chief", "worker"], ("worker", 0), False),
    ],
)
def test_one_worker_is_the_chief(jobs, task, expected):
    resolver = types.SimpleNamespace(
        task_type=task[0],
        task_id=task[1],
        cluster_spec=lambda: types.SimpleNamespace(jobs=jobs),
    )
    assert is_chief(types.SimpleNamespace(cluster_resolver=resolver)) == expected
