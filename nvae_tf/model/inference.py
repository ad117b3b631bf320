"""A model that only answers, with weights that are prepared for it."""

from __future__ import annotations

import contextlib
import copy
import functools
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

# One tensor, or variable where a SavedModel is to hold it, for each shape.
PreparedWeights: TypeAlias = list[Any]


class _Weights(NamedTuple):
    """Prepared weights."""

    folded: FoldedLayers
    others: dict[str, tf.Tensor]  # what neither convolutions nor normalisations have, by path


class InferenceModel:
    """A model that answers, with weights that are prepared for it.

    Kernels are normalised once, and batch normalisation is part of the convolutions beside it
    (docs/architecture.md). So what calls a model many times with the same weights calls it by way
    of this class: it prepares them (`weights`), and passes them to functions that are traced once
    (`function`). The class answers like `NVAE`, without training; an answer outside of such a
    function, and of a `scope` of the same thread, prepares the weights for itself.

    Args:
      model: The model, or its structure.
      values: The values of the model's variables by path, with which it always answers; None: their
        own of the moment. A structure has none, so `weights` needs them.

    Attributes:
      model: The argument of that name.
      config: The model's configuration.

    Example:
    ```python
    model = InferenceModel(nvae_tf.load_model(workdir))
    sample = model.function(lambda seed: model.generate(16, 0.7, model.draw_noise(16, seed)))
    logits = sample(model.weights(), tf.constant([0, 1], tf.int64))
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
        self._packing: Packing | None = None  # of prepared weights
        self._fixed = None if values is None else self._prepare(values)

    @classmethod
    def of(cls, model: NVAE | InferenceModel) -> InferenceModel:
        """Returns a model in this form, unless it has it already."""
        return model if isinstance(model, InferenceModel) else cls(model)

    def weights(self, values: Values | None = None) -> PreparedWeights:
        """Prepares weights, those of this moment unless others are given.

        Args:
          values: The values of the model's variables by path; None: those that this object was made
            with, else the variables' own.

        Raises:
          RuntimeError: The model is a structure, whose variables have no values.
        """
        if values is not None:
            return self._prepare(values)
        if self._fixed is not None:
            return self._fixed
        if not self.model.has_own_values:
            raise RuntimeError(
                "This model is a structure: `weights` needs the values of its variables."
            )
        with tf.init_scope():  # they must not belong to a graph that is being traced
            return self._prepare(read_values(self.model.variables))

    def _prepare(self, values: Values) -> PreparedWeights:
        kernels = self._bank.split(self._bank.compute(stack_values(values)))
        others = {path: values[path] for path in self._others}
        weights = _Weights(fold(*self._layers, values, kernels), others)
        self._packing = self._packing or Packing(weights)
        return self._packing.join(weights)

    def in_variables(self) -> InferenceModel:
        """Returns a copy whose weights are `tf.Variable`s, which a SavedModel can hold.

        It always answers with the weights of this moment. As constants, they would not fit into the
        graph of a large model.
        """
        variables = [tf.Variable(w, trainable=False, name="weights") for w in self.weights()]
        twin = copy.copy(self)
        twin._fixed = variables
        return twin

    @contextlib.contextmanager
    def scope(self, weights: PreparedWeights | None = None) -> Iterator[None]:
        """Makes the model itself compute with prepared weights inside of the scope.

        Args:
          weights: What `weights` returned; None: what it returns now, or, inside of an answer of
            this object, the weights of that.
        """
        outer = current_call(self.model)
        if weights is None and outer and outer.owner is self:
            yield  # one answer is part of another
            return
        stacks = [tf.convert_to_tensor(w) for w in (self.weights() if weights is None else weights)]
        assert self._packing
        folded, others = self._packing.split(stacks)
        with functional_call(self.model, others, folded=folded, owner=self):
            yield

    def function(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """Returns a traced function, whose first argument is the weights to answer with.

        Other weights need no new trace.

        Args:
          function: A function of tensors that uses this object. What is returned takes what
            `weights` returns, and then the same arguments.
          **options: The arguments of `tf.function`.
        """
        # TensorFlow counts traces by a function's code, and would take those of many functions that
        # are all one line of this file for one that is traced again and again.
        return tf.function(functools.partial(self._answer, function), autograph=False, **options)

    def _answer(self, function: Callable[..., Any], weights: PreparedWeights, *args: Any) -> Any:
        with self.scope(weights):
            return function(*args)

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

    def posterior(
        self, group: int, bottom_up: tf.Tensor, top_down: tf.Tensor | None
    ) -> ResidualNormal:
        """Does what `NVAE.posterior` does."""
        with self.scope():
            return self.model.posterior(group, bottom_up, top_down)

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
