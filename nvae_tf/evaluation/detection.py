"""How well scores tell novel images from those of a known set, by scikit-learn's metrics.

The library is the extra `detect`, which is imported only where it is used.
"""

from __future__ import annotations

import dataclasses
import importlib.util

import numpy as np

TRUE_POSITIVE_RATE = 0.8  # at which `Separation` has the false positive rate


def check_installed() -> None:
    """Raises an ImportError if the extra `detect` is not installed."""
    if importlib.util.find_spec("sklearn") is None:
        raise ImportError(
            "Comparing two sets of images needs scikit-learn: pip install 'nvae-tf[detect]'."
        )


@dataclasses.dataclass(frozen=True)
class Separation:
    """Metrics of a score by which novel images, the positives, are to be found.

    Attributes:
      auroc: The share of pairs of a known and a novel image in which the novel one's score is
        larger: 0.5 for a score that says nothing.
      auprc: Average precision. For a score that says nothing it is the share of novel images.
      fpr_at_80_tpr: The share of known images that are taken for novel where 80 % of the novel
        ones are found, or the least possible number above 80 %.
    """

    auroc: float
    auprc: float
    fpr_at_80_tpr: float

    @classmethod
    def of(cls, known: np.ndarray, novel: np.ndarray) -> Separation:
        """Computes the metrics of scores, the larger, the more novel.

        Args:
          known: (N,), at least one.
          novel: (M,), at least one.

        Raises:
          ImportError: The extra `detect` is not installed.
        """
        check_installed()
        from sklearn import metrics

        labels = np.repeat([0, 1], [len(known), len(novel)])
        scores = np.concatenate([known, novel])
        false, true, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
        return cls(
            auroc=float(metrics.roc_auc_score(labels, scores)),
            auprc=float(metrics.average_precision_score(labels, scores)),
            fpr_at_80_tpr=float(false[np.argmax(true >= TRUE_POSITIVE_RATE)]),
        )


@dataclasses.dataclass(frozen=True)
class ScoreSeparation:
    """`Separation` of every score that an image's bounds give.

    Attributes:
      bound: That of -L: what is less likely counts as novel.
      llr: Those of LLR^{>k} for k = 1, … L.
    """

    bound: Separation
    llr: list[Separation]

    @classmethod
    def of(cls, known: np.ndarray, novel: np.ndarray) -> ScoreSeparation:
        """Computes the metrics of every column of scores.

        Args:
          known: (N, L + 1): -L and LLR^{>1}, … LLR^{>L} of each image.
          novel: (M, L + 1).

        Raises:
          ImportError: The extra `detect` is not installed.
        """
        bound, *llr = [Separation.of(*columns) for columns in zip(known.T, novel.T)]
        return cls(bound, llr)

    @property
    def best_k(self) -> int:
        """The k whose LLR^{>k} has the largest AUROC; the least one of several."""
        return 1 + int(np.argmax([separation.auroc for separation in self.llr]))
