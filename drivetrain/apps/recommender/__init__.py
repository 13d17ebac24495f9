"""A recommender: recall, ranking and re-ranking in one served graph."""

from drivetrain.apps.recommender.ranker import Ranker
from drivetrain.apps.recommender.recommender import Recommender
from drivetrain.train.rerank.steps import Allowed, Blocked, Diverse, Explore

__all__ = ["Allowed", "Blocked", "Diverse", "Explore", "Ranker", "Recommender"]
