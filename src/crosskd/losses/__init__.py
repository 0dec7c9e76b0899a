"""Every distillation loss, one file a method: answer logits and teacher targets in, named sums out.

Importing this package imports every module in its folder, so a file that ends in a registered class is a method that
configuration and command line know by name.
"""

from importlib import import_module
from pkgutil import iter_modules

from crosskd.losses.base import DistillationMethod, StudentAnswers
from crosskd.losses.multilevel_ot import MultiLevelOTTerms, multilevel_ot_loss
from crosskd.losses.registry import METHODS, create_method, register
from crosskd.losses.targets import TargetRequest, TeacherTargets, targets_from_logits
from crosskd.losses.uld import uld_loss

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "METHODS",
    "DistillationMethod",
    "MultiLevelOTTerms",
    "StudentAnswers",
    "TargetRequest",
    "TeacherTargets",
    "create_method",
    "multilevel_ot_loss",
    "register",
    "targets_from_logits",
    "uld_loss",
]
