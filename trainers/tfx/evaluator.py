"""The gate of `trainers.tfx.gate` as a TFX component. This module needs TFX."""

from __future__ import annotations

import os
from typing import Any, ClassVar

os.environ["TF_USE_LEGACY_KERAS"] = "0"  # see trainers/tfx/training.py

from tfx import types
from tfx.components.evaluator import constants
from tfx.components.evaluator.executor import Executor as TfxExecutor
from tfx.dsl.components.base.base_beam_component import BaseBeamComponent
from tfx.dsl.components.base.executor_spec import BeamExecutorSpec
from tfx.types.artifact_utils import get_single_instance
from tfx.types.component_spec import ChannelParameter, ComponentSpec
from tfx.types.standard_artifacts import Model, ModelBlessing, ModelRun
from tfx.utils import path_utils

from nvae_tf.files import write_atomically
from trainers.tfx.gate import compare_with_baseline
from trainers.tfx.places import local_directory

_Artifacts = dict[str, list[types.Artifact]]


class Executor(TfxExecutor):
    """Measures the models and writes the blessing.

    It overrides all of TFX's executor and derives from it for one reason: on Kubeflow Pipelines a
    blessing refers to models by name, and TFX writes these names only after its own Evaluator.
    Without them the next run would find no blessed model, and its gate would let all pass.
    """

    def Do(
        self, input_dict: _Artifacts, output_dict: _Artifacts, exec_properties: dict[str, Any]
    ) -> None:
        """Does what `BitsPerDimensionEvaluator` says."""
        del exec_properties
        blessing = get_single_instance(output_dict["blessing"])
        run = get_single_instance(input_dict["model_run"])
        model = get_single_instance(input_dict["model"])
        baselines = input_dict.get("baseline")
        baseline = get_single_instance(baselines) if baselines else None
        verdict = compare_with_baseline(
            _saved_model("model", model),
            local_directory("model_run", run.uri),
            _saved_model("baseline", baseline) if baseline else None,
        )
        directory = local_directory("blessing", blessing.uri)
        os.makedirs(directory, exist_ok=True)
        write_atomically(os.path.join(directory, "verdict.json"), verdict.to_json())
        blessed = verdict.blessed
        name = constants.BLESSED_FILE_NAME if blessed else constants.NOT_BLESSED_FILE_NAME
        write_atomically(os.path.join(directory, name), "")
        value = constants.BLESSED_VALUE if blessed else constants.NOT_BLESSED_VALUE
        blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY, value)
        for artifact, uri_key, id_key in (
            (
                model,
                constants.ARTIFACT_PROPERTY_CURRENT_MODEL_URI_KEY,
                constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY,
            ),
            (
                baseline,
                constants.ARTIFACT_PROPERTY_BASELINE_MODEL_URI_KEY,
                constants.ARTIFACT_PROPERTY_BASELINE_MODEL_ID_KEY,
            ),
        ):
            if artifact:
                blessing.set_string_custom_property(uri_key, artifact.uri)
                blessing.set_int_custom_property(id_key, artifact.id)
        print(f"{'Blessed' if blessed else 'Not blessed'}: {verdict}", flush=True)


def _saved_model(name: str, model: types.Artifact) -> str:
    return path_utils.serving_model_path(local_directory(name, model.uri))


class _Spec(ComponentSpec):
    """The component's inputs and outputs."""

    PARAMETERS: ClassVar[dict[str, Any]] = {}
    INPUTS: ClassVar = {
        "model": ChannelParameter(type=Model),
        "model_run": ChannelParameter(type=ModelRun),
        "baseline": ChannelParameter(type=Model, optional=True),
    }
    OUTPUTS: ClassVar = {"blessing": ChannelParameter(type=ModelBlessing)}


class BitsPerDimensionEvaluator(BaseBeamComponent):
    """Blesses a model if it has no more bits per dimension than the baseline.

    The component replaces TFX's own Evaluator: Pusher and `LatestBlessedModelStrategy` read its
    output `blessing`. The measurements are in `verdict.json` in the blessing's directory.

    Args:
      model: The model that `trainers.tfx_module.run_fn` trained.
      model_run: The workdir of the training, whose held-out images are used.
      baseline: The last blessed model. Without one, a finite number of bits per dimension suffices.
    """

    SPEC_CLASS = _Spec
    EXECUTOR_SPEC = BeamExecutorSpec(Executor)  # TFX's executor uses Beam

    def __init__(
        self,
        model: types.BaseChannel,
        model_run: types.BaseChannel,
        baseline: types.BaseChannel | None = None,
    ):
        blessing = types.Channel(type=ModelBlessing)
        spec = _Spec(model=model, model_run=model_run, baseline=baseline, blessing=blessing)
        super().__init__(spec=spec)
