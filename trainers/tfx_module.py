"""The module whose `run_fn` a pipeline names: `Trainer(run_fn="trainers.tfx_module.run_fn", …)`.

What it does stands in `trainers.tfx.training`.
"""

from trainers.tfx.training import FnArgs, requested_config, run_beside, run_fn

__all__ = ["FnArgs", "requested_config", "run_beside", "run_fn"]
