"""What `nvae-detect` measures: scores of sets of images, compared, as CSV, JSON and page."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from nvae_tf.config import ModelConfig
from nvae_tf.data import ImageSet, evaluation_batches
from nvae_tf.evaluation import figures
from nvae_tf.evaluation.detection import ScoreSeparation, Separation
from nvae_tf.evaluation.novelty import ImageNovelty, NoveltyEvaluator
from nvae_tf.evaluation.report import html_report
from nvae_tf.files import to_csv
from nvae_tf.sampling.images import PNG_CHANNELS, sheet

_SHOWN = 12  # images in each row of the page's sheets


@dataclasses.dataclass(frozen=True)
class Selection:
    """Images of a set that are to be scored.

    Attributes:
      images: (N, h, w, C) uint8, in the set's order.
      numbers: [N], their numbers in the set, from 0.
      validation: [N], whether an image is among those on which k is chosen.
      files: [N], the images' files; None: they have none.
    """

    images: np.ndarray
    numbers: np.ndarray
    validation: np.ndarray
    files: Sequence[str] | None = None

    @classmethod
    def draw(
        cls, whole: ImageSet, num_images: int | None, validation_fraction: float, seed: int
    ) -> Selection:
        """Chooses images of a set at random, and those of them that are for validation.

        Args:
          whole: The set, of M images.
          num_images: N; None, or more than there are: all.
          validation_fraction: Share of the N images, in [0, 1). If it is not 0, both parts have at
            least one image.
          seed: A number from which the choice is made.

        Raises:
          ValueError: There is one image only, and it should be two parts.
        """
        generator = np.random.default_rng(seed)
        numbers = np.sort(generator.permutation(len(whole))[:num_images])
        count = len(numbers)
        validation = np.zeros(count, bool)
        if validation_fraction:
            if count < 2:
                raise ValueError(
                    "A set of one image cannot be divided into one part to choose k on and another "
                    "to report."
                )
            held_out = min(max(round(count * validation_fraction), 1), count - 1)
            validation[generator.permutation(count)[:held_out]] = True
        images, files = whole.images, whole.files
        if count < len(whole):  # else nothing is copied: a set may be a mapped file
            images = images[numbers]
            files = files and [files[number] for number in numbers]
        return cls(images, numbers, validation, files)


@dataclasses.dataclass(frozen=True)
class ScoredSet:
    """A selection and its bounds.

    Attributes:
      name: `"known"` or `"novel"`.
      selection: The images.
      novelty: Their bounds, in the same order.
    """

    name: str
    selection: Selection
    novelty: ImageNovelty

    @classmethod
    def score(
        cls,
        name: str,
        selection: Selection,
        evaluator: NoveltyEvaluator,
        model: ModelConfig,
        num_iw_samples: int,
        batch_size: int,
        seed: int,
    ) -> ScoredSet:
        """Computes the bounds, with a bar of progress."""
        batches = evaluation_batches(selection.images, model, batch_size, seed)
        with tqdm(total=len(selection.images), desc=name, unit="image", disable=None) as bar:
            novelty = evaluator.per_image(batches, num_iw_samples, seed, bar.update)
        return cls(name, selection, novelty)

    def part(self, validation: bool) -> np.ndarray:
        """The scores (N', L + 1) of the images that are, or are not, for validation."""
        return self.novelty.scores[self.selection.validation == validation]

    def rows(self, with_files: bool) -> Iterator[list[str]]:
        """Yields the cells of each image for `NoveltyStudy.to_csv`."""
        selection, novelty = self.selection, self.novelty
        values = np.column_stack([novelty.bound, novelty.bounds[:, 1:], novelty.llr])
        files = selection.files if selection.files is not None else itertools.repeat("")
        images = zip(selection.validation, selection.numbers, files, values)
        for validation, number, file, bounds in images:
            cells = [self.name, "validation" if validation else "test", str(number)]
            yield [*cells, *([file] if with_files else []), *(f"{value:.6f}" for value in bounds)]

    def summary(self) -> dict[str, Any]:
        """Means and standard deviations of the scores, as values that JSON can hold."""
        novelty = self.novelty
        return {
            "num_images": len(self.selection.images),
            "num_validation_images": int(self.selection.validation.sum()),
            "bound": float(novelty.bound.mean()),
            "bound_deviation": float(novelty.bound.std()),
            "llr": novelty.llr.mean(axis=0).tolist(),
            "llr_deviation": novelty.llr.std(axis=0).tolist(),
        }


class NoveltyStudy:
    """The known set alone, or beside a novel one, with the k that validation images choose.

    Args:
      known: Images as the model knows them, or whatever is to be scored.
      novel: Images that the scores should tell from those; None: there are none.

    Attributes:
      chosen_k: The k of the largest AUROC on the validation images; None without a novel set.
    """

    def __init__(self, known: ScoredSet, novel: ScoredSet | None = None):
        self._sets = [known] if novel is None else [known, novel]
        self._separations: dict[str, ScoreSeparation] = {}
        self.chosen_k: int | None = None
        if novel is not None:
            self._separations = {
                name: ScoreSeparation.of(known.part(validation), novel.part(validation))
                for name, validation in (("validation", True), ("test", False))
            }
            self.chosen_k = self._separations["validation"].best_k

    @property
    def _groups(self) -> int:
        return self._sets[0].novelty.bounds.shape[1] - 1

    def to_csv(self) -> str:
        """Returns a table with a line for each image of each set.

        There is a column of the images' files if either set has them.
        """
        ks = range(1, self._groups + 1)
        with_files = any(scored.selection.files is not None for scored in self._sets)
        names = ["set", "part", "image", *(["file"] if with_files else []), "bound"]
        names += [f"bound_{k:02d}" for k in ks] + [f"llr_{k:02d}" for k in ks]
        return to_csv(names, (row for scored in self._sets for row in scored.rows(with_files)))

    def result(self) -> dict[str, Any]:
        """Returns all numbers but those of single images, as values that JSON can hold.

        Lists by k begin with k = 1.
        """
        fields: dict[str, Any] = {
            "num_groups": self._groups,
            "num_iw_samples": self._sets[0].novelty.num_iw_samples,
        }
        fields |= {scored.name: scored.summary() for scored in self._sets}
        if self.chosen_k is not None:
            separations = {n: dataclasses.asdict(s) for n, s in self._separations.items()}
            fields |= {"chosen_k": self.chosen_k} | separations
        return fields

    def histograms(self) -> np.ndarray:
        """Draws the histograms of all scores, (H, W, 3) uint8."""
        notes = None
        if self._separations:
            test = self._separations["test"]
            notes = [f"AUROC {separation.auroc:.3f}" for separation in (test.bound, *test.llr)]
            assert self.chosen_k is not None
            notes[self.chosen_k] += ", chosen"
        return figures.score_histograms(
            self._score_names(), {scored.name: scored.part(False) for scored in self._sets}, notes
        )

    def _score_names(self) -> list[str]:
        return ["−L", *(f"LLR, k = {k}" for k in range(1, self._groups + 1))]

    def page(self, title: str) -> str:
        """Returns an HTML page of the metrics, the histograms, and the images at both ends."""
        sections: dict[str, dict[str, Any]] = {
            f"Nats per image, {scored.name}": {
                "images": len(scored.selection.images),
                "bound L": float(scored.novelty.bound.mean()),
                "LLR for k = 1, 2, …": scored.novelty.llr.mean(axis=0).tolist(),
            }
            for scored in self._sets
        }
        for part, separations in self._separations.items():
            rows = [separations.bound, *separations.llr]
            sections[f"AUROC, AUPRC, FPR at 80 % TPR: {part} images"] = {
                name: _cells(row) for name, row in zip(self._score_names(), rows)
            }
        if self.chosen_k is not None:
            sections["Chosen on the validation images"] = {"k": self.chosen_k}
        images = [("Histograms of the test images by score.", self.histograms())]
        if self._sets[0].selection.images.shape[-1] in PNG_CHANNELS:
            for scored in self._sets:
                images += _ends(scored)
        return html_report(title, sections, images)


def _cells(separation: Separation) -> list[str]:
    return [f"{value:.4f}" for value in dataclasses.astuple(separation)]


def _ends(scored: ScoredSet) -> list[tuple[str, np.ndarray]]:
    """Returns sheets of the least and the most novel images, with a row for each score."""
    orders = [np.argsort(scores) for scores in scored.novelty.scores.T]

    def rows(chosen: list[np.ndarray]) -> np.ndarray:
        return sheet(scored.selection.images[np.concatenate(chosen)], columns=len(chosen[0]))

    text = "From the top: by −L, by LLR with k = 1, 2, …"
    return [
        (
            f"{scored.name}: the least novel images, beginning with the least. {text}",
            rows([order[:_SHOWN] for order in orders]),
        ),
        (
            f"{scored.name}: the most novel images, beginning with the most. {text}",
            rows([order[::-1][:_SHOWN] for order in orders]),
        ),
    ]
