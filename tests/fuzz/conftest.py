"""The run whose files are damaged."""

from tests.trainers.conftest import finished, finished_and_printed

__all__ = ["finished", "finished_and_printed"]
