"""What obp 0.4.1 estimates on the Open Bandit logs that ship inside of it; printed as JSON.

Run by the Python of an environment that has obp, with this package's own packages behind it.
"""

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ACTIONS, PLACES = 80, 3
SWITCH = 2.0


def log(policy: str) -> dict[str, Any]:
    """The small log of a policy, campaign ``all``."""
    import obp

    folder = Path(obp.__file__).parent / "dataset" / "obd" / policy / "all"
    table = pd.read_csv(folder / "all.csv", index_col=0).sort_values("timestamp", kind="stable")
    columns = ("item_id", "position", "click", "propensity_score", "user_feature_0")
    return {name: table[name].to_list() for name in columns}


def estimates(rows: dict[str, Any], policy: Any, expected: Any) -> dict[str, float]:
    """Of the policy ``[actions, places]`` with a reward model ``[actions, places]``."""
    from obp import ope

    count = len(rows["item_id"])
    given = {
        "reward": np.array(rows["click"]),
        "action": np.array(rows["item_id"]),
        "pscore": np.array(rows["propensity_score"]),
        "position": np.array(rows["position"]) - 1,
        "action_dist": np.broadcast_to(policy, (count, ACTIONS, PLACES)),
    }
    modelled = {
        "estimated_rewards_by_reg_model": np.broadcast_to(expected, (count, *expected.shape))
    }
    return {
        "ips": ope.InverseProbabilityWeighting().estimate_policy_value(**given),
        "snips": ope.SelfNormalizedInverseProbabilityWeighting().estimate_policy_value(**given),
        "dr": ope.DoublyRobust().estimate_policy_value(**given, **modelled),
        "switch_dr": ope.SwitchDoublyRobust(tau=SWITCH).estimate_policy_value(**given, **modelled),
    }


def main() -> None:
    """Both logs, the production policy of Bernoulli Thompson sampling, and what obp says of it."""
    for name in ("matplotlib", "matplotlib.pyplot", "seaborn"):  # for pictures, which nobody wants
        sys.modules[name] = types.ModuleType(name)
    from obp.policy import BernoulliTS

    thompson = BernoulliTS(
        n_actions=ACTIONS,
        len_list=PLACES,
        is_zozotown_prior=True,
        campaign="all",
        random_state=12345,
    )
    policy = thompson.compute_batch_action_dist(n_rounds=1, n_sim=20_000)[0]
    expected = np.random.default_rng(0).random((ACTIONS, PLACES)) / 50
    logs = {name: log(name) for name in ("random", "bts")}
    found = {
        "logs": logs,
        "policy": policy.tolist(),
        "expected": expected.tolist(),
        "switch": SWITCH,
        "obp": {name: estimates(rows, policy, expected) for name, rows in logs.items()},
    }
    print(json.dumps(found))


main()
