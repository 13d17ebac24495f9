"""The initializers of a served graph that learns, by name; behind another graph's prefix too."""

SPEC = "learner/spec"
"""String: the JSON of a :class:`drivetrain.core.online.Spec`."""
USER = "learner/user"
"""Live, float32 ``[rows or 1, factors + 1]``: who asks; NaN: as trained."""
HAD = "learner/had"
"""Live, int64 ``[rows or 1, recent]``: places of what they had since; beyond them, ``beyond``."""
ITEMS = "learner/items"
"""Live, float32 ``[places, factors + 1]``: items, ``capacity`` free places, spare ones. The last
number is how often an item was had, which is its score for whoever is not known."""
FOUND = "learner/found"
"""Live, int64 ``[rows or 1, k]``: places of the best items for who asks, where they were found
before the run; ``beyond`` where no item is left for a place. -1: the graph finds them. Graphs that
leave out what users had in training and since, and nothing else, have it."""
FOUND_SCORES = "learner/found/scores"
"""Live, float32 ``[rows or 1, k]``: their scores; minus infinity where no item is left."""
CATALOGUE = "learner/catalogue"
"""int64 or string ``[items]``: what stands at each place that training filled."""
NEW = "learner/new"
"""Live, int64 or string ``[places - items]``: what stands at the others, missing where one is free.
ONNX Runtime copies text in every run, so what stays lies in the graph."""
USERS = "learner/users"
"""int64 or string ``[users]``: who each trained row is, missing where it is nobody."""
USER_FACTORS = "learner/user_factors"
"""Float32 ``[users, factors + 1]``; the last number is 1 for who is not known, else 0."""
USER_COUNTS = "learner/user_counts"
"""int64 ``[users]``: how many items each had in training."""
ITEM_COUNTS = "learner/item_counts"
"""int64 ``[items]``: how many known users had each in training."""
STARTS = "learner/known/starts"
"""int64 ``[users + 1]``: where each user's part of :data:`KNOWN` begins."""
KNOWN = "learner/known/items"
"""int32: places of what users had in training, ascending for each, and one more behind all."""

LIVE = (USER, HAD, ITEMS, NEW)
FINDINGS = (FOUND, FOUND_SCORES)
"""Live as well, where they are."""
TENSORS = (SPEC, *LIVE, CATALOGUE, USERS, USER_FACTORS, USER_COUNTS, ITEM_COUNTS, STARTS, KNOWN)
