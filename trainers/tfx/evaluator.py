"""The gate of `trainers.tfx.gate` as a TFX component. This module needs TFX."""

# TFX reads the annotations as objects, so this module does not import them from __future__.
import os

os.environ["TF_USE_LEGACY_KERAS"] = "0"  # see trainers/tfx/training.py

from tfx import v1 as tfx
from tfx.components.evaluator import constants
from tfx.utils import path_utils

from nvae_tf.files import write_atomically
from trainers.tfx.gate import compare_with_baseline

_Model = tfx.types.standard_artifacts.Model
_ModelRun = tfx.types.standard_artifacts.ModelRun
_ModelBlessing = tfx.types.standard_artifacts.ModelBlessing


@tfx.dsl.components.component
def BitsPerDimensionEvaluator(
    model: tfx.dsl.components.InputArtifact[_Model],
    model_run: tfx.dsl.components.InputArtifact[_ModelRun],
    blessing: tfx.dsl.components.OutputArtifact[_ModelBlessing],
    baseline: tfx.dsl.components.InputArtifact[_Model] = None,
) -> None:
    """Blesses a model if it has no more bits per dimension than the baseline.

    The component replaces TFX's own Evaluator: Pusher and `LatestBlessedModelStrategy` read its
    blessing. The measurements are in `verdict.json` in the blessing's directory.

    Args:
      model: The model that `trainers.tfx_module.run_fn` trained.
      model_run: The workdir of the training, whose held-out images are used.
      blessing: The blessing to write.
      baseline: The last blessed model. Without one, a finite number of bits per dimension suffices.
    """
    candidate = path_utils.serving_model_path(model.uri)
    served = path_utils.serving_model_path(baseline.uri) if baseline else None
    verdict = compare_with_baseline(candidate, model_run.uri, served)
    os.makedirs(blessing.uri, exist_ok=True)
    write_atomically(os.path.join(blessing.uri, "verdict.json"), verdict.to_json())
    blessed = verdict.blessed
    name = constants.BLESSED_FILE_NAME if blessed else constants.NOT_BLESSED_FILE_NAME
    write_atomically(os.path.join(blessing.uri, name), "")
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
