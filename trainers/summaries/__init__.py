"""Everything that TensorBoard shows."""

from trainers.summaries.summaries import Speed, Summaries

__all__ = ["Speed", "Summaries"]
