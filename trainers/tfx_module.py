"""The module that a TFX pipeline names: `Trainer(run_fn="trainers.tfx_module.run_fn", …)`.

See `trainers.tfx.training` for `run_fn`.
"""

from trainers.tfx.training import FnArgs, requested_config, run_beside, run_fn

__all__ = ["FnArgs", "requested_config", "run_beside", "run_fn"]
