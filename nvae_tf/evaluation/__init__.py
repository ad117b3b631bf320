"""Evaluation of a model: likelihood, use of the latent groups, novelty, samples' quality."""

from nvae_tf.evaluation.features import FeatureExtractor, InceptionFeatures, SavedModelFeatures
from nvae_tf.evaluation.hierarchy import (
    ACTIVE_CHANNEL_NATS,
    COLLAPSED_NATS,
    HierarchyEvaluator,
    HierarchyResult,
    collapsed_groups,
)
from nvae_tf.evaluation.likelihood import ImageLikelihoods, LikelihoodEvaluator, LikelihoodResult
from nvae_tf.evaluation.novelty import ImageNovelty, NoveltyEvaluator
from nvae_tf.evaluation.reference import ReferenceFeatures, reference_features
from nvae_tf.evaluation.report import html_report
from nvae_tf.evaluation.sample_quality import SampleQualityResult, sample_quality

__all__ = [
    "ACTIVE_CHANNEL_NATS",
    "COLLAPSED_NATS",
    "FeatureExtractor",
    "HierarchyEvaluator",
    "HierarchyResult",
    "ImageLikelihoods",
    "ImageNovelty",
    "InceptionFeatures",
    "LikelihoodEvaluator",
    "LikelihoodResult",
    "NoveltyEvaluator",
    "ReferenceFeatures",
    "SampleQualityResult",
    "SavedModelFeatures",
    "collapsed_groups",
    "html_report",
    "reference_features",
    "sample_quality",
]
