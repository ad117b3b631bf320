"""How good a model is."""

from nvae_tf.evaluation.likelihood import LikelihoodEvaluator, LikelihoodResult

__all__ = ["LikelihoodEvaluator", "LikelihoodResult"]
