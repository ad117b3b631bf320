"""Everything that TensorBoard shows."""

from trainers.summaries.gallery import EXAMPLES
from trainers.summaries.layout import group_name
from trainers.summaries.writer import Speed, Summaries

__all__ = ["EXAMPLES", "Speed", "Summaries", "group_name"]
