"""No damaged input ends in a traceback, hangs, or takes memory without end."""

import contextlib
import multiprocessing
import os
import pathlib
import resource
import tempfile
import time
from typing import NamedTuple

import pytest

from nvae_tf.command_line import usage_errors
from tests.fuzz.mutations import Damage
from tests.fuzz.targets import TARGETS

INPUTS = int(os.environ.get("NVAE_FUZZ_INPUTS", "500"))  # for each target
LONGEST = 10.0  # seconds of computing for an input; others may use the machine as well
PATIENCE = 60.0  # seconds until it hangs
START = 120.0  # seconds for a process to start
MOST_MEMORY = 1_000_000_000  # bytes above the start
_processes = multiprocessing.get_context("forkserver")


class Result(NamedTuple):
    """What became of an input.

    Attributes:
      seed: Of the damage; None: there was none.
      fault: What is wrong with the outcome; empty if nothing is.
      refused: Whether the input was refused.
    """

    seed: int | None
    fault: str
    refused: bool = False


def outcome(read, seed):
    """Reads an input as a program does, which turns the errors that it expects into a line."""
    try:
        with usage_errors():
            read(Damage(seed))
    except SystemExit as ended:
        line = str(ended)
        if not line.startswith("Error: ") or len(line) > 2000 or not line.isprintable():
            return Result(seed, f"not a clear line: {line[:300]!r}")
        return Result(seed, "", refused=True)
    except BaseException as error:
        return Result(seed, f"{type(error).__name__}: {str(error)[:300]}")
    return Result(seed, "")


def work(target, sample, directory, seeds, connection):
    """Reads inputs one after the other, and sends what became of each."""
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stderr(nowhere),
        TARGETS[target](pathlib.Path(directory), sample) as read,
    ):
        connection.send(outcome(read, None))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for seed in seeds:
            start = time.process_time()
            result = outcome(read, seed)
            taken = time.process_time() - start
            grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
            if taken > LONGEST:
                result = result._replace(fault=f"{taken:.0f} s")
            if grown > MOST_MEMORY:
                result = result._replace(fault=f"{grown:,} bytes")
            connection.send(result)
            if grown > MOST_MEMORY:
                return


def read_all(target, sample, seeds):
    """Yields the result of every seed; a process that crashes or hangs is followed by another."""
    seeds = list(seeds)
    while seeds:
        ours, theirs = _processes.Pipe(duplex=False)
        with tempfile.TemporaryDirectory() as directory:
            process = _processes.Process(
                target=work, args=(target, sample, directory, seeds, theirs)
            )
            process.start()
            theirs.close()
            try:
                assert ours.poll(START), "the process did not start"
                assert ours.recv() == Result(None, ""), "without damage"
                while seeds:
                    if not ours.poll(PATIENCE):
                        yield Result(seeds.pop(0), "it hangs")
                        break
                    yield ours.recv()
                    seeds.pop(0)
            except EOFError:
                process.join()
                yield Result(seeds.pop(0), f"the process ended with {process.exitcode}")
            finally:
                process.kill()
                process.join()


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_damaged_inputs(target, finished):
    if target == "checkpoint_of_the_authors":
        pytest.importorskip("torch", reason="needs the extra nvlabs")
    results = list(read_all(target, finished.path, range(INPUTS)))
    assert [result.seed for result in results] == list(range(INPUTS))
    refused = sum(result.refused for result in results)
    print(f"{target}: {refused} of {INPUTS} refused")
    assert not [result for result in results if result.fault]
    assert refused > INPUTS / 10  # else the damage does not reach what it should
