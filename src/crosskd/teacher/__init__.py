"""The teacher, asked once: its targets captured, written, read and verified."""

from crosskd.teacher.cache import TargetCache
from crosskd.teacher.capture import capture_targets

__all__ = ["TargetCache", "capture_targets"]
