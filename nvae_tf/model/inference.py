"""A model's weights of a moment, prepared to answer only."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import keras
import tensorflow as tf

from nvae_tf.config import ModelConfig
from nvae_tf.model.distributions import ImageDistribution, ResidualNormal
from nvae_tf.model.layers.context import current_call, functional_call
from nvae_tf.model.layers.folding import FoldedLayers, fold
from nvae_tf.model.layers.kernels import KernelBank
from nvae_tf.model.nvae import NVAE, InferenceOutput, InferredGroup
from nvae_tf.model.stacks import Packing, Values, read_values, stack_values


class _Weights(NamedTuple):
    """Prepared weights."""

    folded: FoldedLayers
    others: dict[str, tf.Tensor]  # what neither convolutions nor normalisations have, by path


class InferenceModel:
    """A model that answers, with weights that were prepared for it once.

    Kernels are normalised once, and batch normalisation is part of the convolutions beside it
    (docs/architecture.md). So what calls a model many times with the same weights calls it by way
    of this class. It answers like `NVAE`, without training. Its weights are those of the newest
    `take` or `update`; else a model's own are read when it first answers.

    Args:
      model: The model, or its structure, which answers after a `take` only.
      values: The values of the model's variables by path; None: their own.

    Attributes:
      model: The argument of that name.
      config: The model's configuration.

    Example:
    ```python
    model = InferenceModel(nvae_tf.load_model(workdir))
    sample = model.function(lambda seed: model.generate(16, 0.7, model.draw_noise(16, seed)))
    logits = sample(tf.constant([0, 1], tf.int64))
    ```
    """

    def __init__(self, model: NVAE, values: Values | None = None):
        self.model = model
        self.config: ModelConfig = model.config
        # What `fold` needs of the model; each walks along all its layers.
        self._layers = (model.convolutions(), model.batch_normalizations(), model.folds())
        self._bank = KernelBank(self._layers[0])
        inside: list[keras.layers.Layer] = [*self._layers[0], *self._layers[1]]
        used = {variable.path for layer in inside for variable in layer.variables}
        self._others = [v.path for v in model.variables if v.path not in used]
        self._packing: Packing | None = None  # of the prepared weights
        self._follows = values is None and model.has_own_values
        # One tensor, or variable where a SavedModel is to hold it, for each shape.
        self._weights: list[Any] | None = None if values is None else self._prepare(values)

    @classmethod
    def of(cls, model: NVAE | InferenceModel) -> InferenceModel:
        """Prepares a model, unless it is prepared already."""
        return model if isinstance(model, InferenceModel) else cls(model)

    def _prepare(self, values: Values | None) -> list[tf.Tensor]:
        if values is None:
            values = read_values(self.model.variables)
        kernels = self._bank.split(self._bank.compute(stack_values(values)))
        others = {path: values[path] for path in self._others}
        weights = _Weights(fold(*self._layers, values, kernels), others)
        self._packing = self._packing or Packing(weights)
        return self._packing.join(weights)

    def take(self, values: Values | None = None) -> None:
        """Prepares the weights of this moment; functions that were traced go on with them.

        Args:
          values: The values of the model's variables by path; None: their own.

        Raises:
          RuntimeError: The model is a structure, which has no values of its own.
        """
        if values is None and not self.model.has_own_values:
            raise RuntimeError(
                "This model is a structure: `take` needs the values of its variables."
            )
        self._follows = values is None
        self._weights = self._prepare(values)

    def update(self) -> None:
        """Prepares the model's own weights of this moment, if they are what it was made from.

        What lets a caller's model change between two of its answers begins each of them so.
        """
        if self._follows:
            self.take()

    def release(self) -> None:
        """Frees the prepared weights.

        Before the next answer the model's own are prepared anew; others must be given to `take`.
        """
        self._weights = None

    def _ready(self) -> list[Any]:
        if self._weights is None:
            if not self._follows:
                raise RuntimeError("This model has no weights: `take` gives it some.")
            with tf.init_scope():  # a graph that is being traced must not own them
                self.take()
        assert self._weights
        return self._weights

    def in_variables(self) -> InferenceModel:
        """Returns a copy whose weights are `tf.Variable`s, which a SavedModel can hold.

        Constants would not fit into the graph of a large model.
        """
        variables = [tf.Variable(w, trainable=False, name="weights") for w in self._ready()]
        twin = copy.copy(self)
        twin._weights = variables
        twin._follows = False  # it answers as the model does now
        return twin

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Makes the model itself compute with the prepared weights inside of the scope."""
        with self._using(self._ready()):
            yield

    @contextlib.contextmanager
    def _using(self, weights: list[Any]) -> Iterator[None]:
        outer = current_call()
        if outer and outer.owner is self:
            yield  # one answer is part of another
            return
        assert self._packing
        folded, others = self._packing.split([tf.convert_to_tensor(stack) for stack in weights])
        with functional_call(self.model, others, folded=folded, owner=self):
            yield

    def function(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """Returns a traced function, in which this object answers with the weights of each call.

        The weights are arguments of the graph, so a `take` needs no new trace.

        Args:
          function: A function of tensors that uses this object.
          **options: The arguments of `tf.function`.
        """

        def with_weights(weights: list[Any], *args: Any) -> Any:
            with self._using(weights):
                return function(*args)

        traced = tf.function(with_weights, autograph=False, **options)
        return lambda *args: traced(self._ready(), *args)

    # Answers, as `NVAE` gives them.

    def bottom_up(self, images: tf.Tensor) -> list[tf.Tensor]:
        """Does what `NVAE.bottom_up` does."""
        with self.scope():
            return self.model.bottom_up(images)

    def infer(self, images: tf.Tensor, noise: Sequence[tf.Tensor] | None = None) -> InferenceOutput:
        """Does what `NVAE.infer` does."""
        with self.scope():
            return self.model.infer(images, noise)

    def infer_from_features(
        self, features: Sequence[tf.Tensor], noise: Sequence[tf.Tensor] | None = None
    ) -> InferenceOutput:
        """Does what `NVAE.infer_from_features` does."""
        with self.scope():
            return self.model.infer_from_features(features, noise)

    def infer_group(
        self, group: int, bottom_up: tf.Tensor, top_down: tf.Tensor | None, noise: tf.Tensor
    ) -> InferredGroup:
        """Does what `NVAE.infer_group` does."""
        with self.scope():
            return self.model.infer_group(group, bottom_up, top_down, noise)

    def prior(
        self,
        group: int,
        top_down: tf.Tensor | None,
        shape: tf.Tensor,
        temperature: float | Sequence[float] | tf.Tensor = 1.0,
    ) -> ResidualNormal:
        """Does what `NVAE.prior` does."""
        with self.scope():
            return self.model.prior(group, top_down, shape, temperature)

    def top_down(
        self,
        num_samples: int | tf.Tensor,
        draw: Callable[[int, tf.Tensor | None], tf.Tensor],
    ) -> tf.Tensor:
        """Does what `NVAE.top_down` does."""
        with self.scope():
            return self.model.top_down(num_samples, draw)

    def generate(
        self,
        num_samples: int | tf.Tensor,
        temperature: float | Sequence[float] | tf.Tensor = 1.0,
        noise: Sequence[tf.Tensor] | None = None,
    ) -> tf.Tensor:
        """Does what `NVAE.generate` does."""
        with self.scope():
            return self.model.generate(num_samples, temperature, noise)

    def likelihood(self, logits: tf.Tensor) -> ImageDistribution:
        """Does what `NVAE.likelihood` does."""
        return self.model.likelihood(logits)

    def crop_padding(self, images: tf.Tensor) -> tf.Tensor:
        """Does what `NVAE.crop_padding` does."""
        return self.model.crop_padding(images)

    def draw_noise(
        self,
        num_samples: int | tf.Tensor,
        seed: Sequence[int] | tf.Tensor,
        first: int | tf.Tensor = 0,
    ) -> list[tf.Tensor]:
        """Does what `NVAE.draw_noise` does."""
        return self.model.draw_noise(num_samples, seed, first)


AnyModel: TypeAlias = NVAE | InferenceModel  # what functions that only ask a model accept
