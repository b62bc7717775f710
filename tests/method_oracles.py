"""The methods of darling_plugin/methods in plain Python, from their equations alone; shares no code with the package.

Each takes one group: quality (of an advantage the reward) and labels of n responses, n lists of n similarities.
One whose label is -1 has similarity 0 with the others, and what a method gives for it means nothing.
"""

import math
import statistics


def others(i, n):
    return [j for j in range(n) if j != i]


def inverse_class_size(reward, similarity, labels):
    mean = statistics.fmean(reward)
    return [(r - mean) / labels.count(label) for r, label in zip(reward, labels, strict=True)]


def redundancy(quality, similarity, labels):
    n = len(quality)
    return [q / (1 + sum(similarity[i][j] for j in others(i, n))) for i, q in enumerate(quality)]


def marginal_relevance(quality, similarity, labels):
    trade_off = 1 / (1 + math.exp(-statistics.pstdev(quality)))
    result, chosen = {}, []
    while len(chosen) < len(quality):
        scores = {}
        for i in range(len(quality)):
            if i not in chosen:
                nearest = max([similarity[i][j] for j in chosen], default=0.0)
                scores[i] = trade_off * quality[i] - (1 - trade_off) * nearest if chosen else quality[i]
        best = max(scores, key=lambda i: scores[i])  # the first of equals
        result[best] = scores[best]
        chosen.append(best)
    return [result[i] for i in range(len(quality))]


def nearest_neighbour(quality, similarity, labels):
    n = len(quality)
    return [q + min([1 - similarity[i][j] for j in others(i, n)], default=1.0) for i, q in enumerate(quality)]


def reasoning_novelty(quality, similarity, labels):
    n = len(quality)
    result = [0.0] * n
    for correct in (True, False):
        those = [i for i in range(n) if (quality[i] > 0) == correct and labels[i] >= 0]
        novelty = {}
        for i in those:
            of_these = [similarity[i][j] for j in those if j != i]
            mean = statistics.fmean(of_these) if of_these else 0.0
            novelty[i] = 1 - (mean + max([similarity[i][j] for j in others(i, n)], default=0.0)) / 2
        for i in those:
            lowest, highest = min(novelty.values()), max(novelty.values())
            equal = math.isclose(lowest, highest, abs_tol=1e-6)
            share = 1.0 if len(those) == 1 else 0.5 if equal else (novelty[i] - lowest) / (highest - lowest)
            result[i] = (0.5 if correct else -1.0) + share / 2
    return result


def leave_one_out(reward, similarity, labels):
    def diversity(members):
        masses = [statistics.fmean([similarity[i][j] for j in members if j != i]) for i in members]
        return statistics.fmean([-math.log(1 + mass) for mass in masses])

    mean, everybody = statistics.fmean(reward), [i for i, label in enumerate(labels) if label >= 0]
    result = [r - mean for r in reward]
    for i in everybody if len(everybody) >= 3 else []:
        result[i] += diversity(everybody) - diversity([j for j in everybody if j != i])
    return result


ORACLES = {
    "inverse_class_size": inverse_class_size,
    "leave_one_out": leave_one_out,
    "marginal_relevance": marginal_relevance,
    "nearest_neighbour": nearest_neighbour,
    "reasoning_novelty": reasoning_novelty,
    "redundancy": redundancy,
}
