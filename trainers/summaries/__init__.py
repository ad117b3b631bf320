"""Everything that TensorBoard shows."""

from trainers.summaries.gallery import EXAMPLES
from trainers.summaries.layout import group_name
from trainers.summaries.summaries import Speed, Summaries

__all__ = ["EXAMPLES", "Speed", "Summaries", "group_name"]
