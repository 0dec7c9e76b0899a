"""The mathematics of optimal transport between answers: ranking, matching, Sinkhorn. Needs torch only."""

from crosskd.transport.matching import match_columns
from crosskd.transport.ranking import rank_columns
from crosskd.transport.sinkhorn import sinkhorn_plan

__all__ = ["match_columns", "rank_columns", "sinkhorn_plan"]
