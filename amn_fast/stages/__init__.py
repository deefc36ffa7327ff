"""Old import path: `amn_fast.stages.make_mask.run(config)` is `amn_fast.pipeline.run_stage(config, "make-mask")`."""

import sys
from functools import partial
from types import ModuleType

from amn_fast.pipeline import STAGES, run_stage

for _stage in STAGES:
    _name = _stage.name.replace("-", "_")
    _module = ModuleType(f"{__name__}.{_name}", _stage.help)
    _module.stage, _module.run = _stage, partial(run_stage, name=_stage.name)  # type: ignore[attr-defined]
    sys.modules[_module.__name__] = _module
    globals()[_name] = _module
