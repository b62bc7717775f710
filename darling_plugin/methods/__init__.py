"""The field's ways to let a group's diversity into reward or advantage, one function a file; docs/methods.md has them.

inverse_class_size  advantage  2601.08763  uniqueness-aware RL
redundancy          reward     2505.09655  DRA-GRPO
marginal_relevance  reward     2601.09085  MMR-GRPO
nearest_neighbour   reward     2609.14896  MoDA
reasoning_novelty   reward     2509.15194  EVOL-RL
leave_one_out       advantage  2602.01062  SetPO

`multiply` and `additive` (2509.02534, DARLING) are in reward.py. All get float32 tensors: quality or reward (P, n);
similarity (P, n, n), symmetric, in [0, 1], 1 on the diagonal; labels (P, n). They see only what takes part: a response
that a quality gate left out is like nobody (similarity 0, label -1), and what a function gives for it is not used.
shaping.py says what such a response gets, and how --darling.weight enters.

Another one is a file here and in the lists above and below, a line in METHODS of evaluation/methods.py, a row in
docs/methods.md, and a word in the help of --darling.reward or --darling.advantage in config.py. A reward that scales
the quality stands in FOR_POSITIVE_QUALITY of reward.py too, an advantage that has diversity in it in HOLD_DIVERSITY
of config.py, and what is no sum of quality and diversity in AT_MOST_ALL there. One of your own needs none of that:
register_reward, register_advantage.
"""

from darling_plugin.methods import (
    inverse_class_size,
    leave_one_out,
    marginal_relevance,
    nearest_neighbour,
    reasoning_novelty,
    redundancy,
)

__all__ = [
    "inverse_class_size",
    "leave_one_out",
    "marginal_relevance",
    "nearest_neighbour",
    "reasoning_novelty",
    "redundancy",
]
