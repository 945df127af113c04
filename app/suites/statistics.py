"""Whether one column of results is better than another, or only luckier: statistics of paired differences.

Rows differ far more from each other than agents do, so both are compared row by row; the repeats of a row are one pair, their mean, for
they are not independent. The interval is that of a paired bootstrap (Efron and Tibshirani, *An Introduction to the Bootstrap*,
chapter 13), or for many pairs the normal distribution that it tends to. The p-value is that of McNemar's exact test where every score
is 0 or 1 (McNemar 1947), else of Wilcoxon's signed-rank test with the correction for ties (Wilcoxon 1945; Pratt 1959 for zeros left out).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import NormalDist, fmean, stdev

from msgspec import Struct

RESAMPLES = 2000
BOOTSTRAPPED = 1000
"""Up to so many pairs the interval is bootstrapped; from there on it is what the bootstrap tends to, and takes no time."""
_normal = NormalDist()


class Comparison(Struct, frozen=True):
    """Two columns over the rows that both have: `difference` is what the second has more than the first, with its 95 % interval."""

    pairs: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    better: int
    worse: int
    p: float
    test: str


def compare(first: Mapping[int, float], second: Mapping[int, float]) -> Comparison | None:
    """Compare scores by row; None when no row has both."""
    keys = sorted(first.keys() & second.keys())
    if not keys:
        return None
    ones, others = [first[key] for key in keys], [second[key] for key in keys]
    differences = [other - one for one, other in zip(ones, others, strict=True)]
    low, high = interval(differences)
    better, worse = sum(each > 0 for each in differences), sum(each < 0 for each in differences)
    is_binary = all(score in (0, 1) for score in (*ones, *others))
    p = mcnemar(better, worse) if is_binary else wilcoxon(differences)
    test = "McNemar" if is_binary else "Wilcoxon"
    return Comparison(len(keys), fmean(ones), fmean(others), fmean(differences), low, high, better, worse, p, test)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the mean. The same values have the same interval each time."""
    if len(values) < 2:
        return min(values, default=0.0), max(values, default=0.0)
    if len(values) > BOOTSTRAPPED:
        half = _normal.inv_cdf(0.975) * stdev(values) / math.sqrt(len(values))
        return fmean(values) - half, fmean(values) + half
    chance = random.Random(0)  # noqa: S311 - to be repeated, not to be secret
    means = sorted(fmean(chance.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return means[int(RESAMPLES * 0.025)], means[int(RESAMPLES * 0.975) - 1]


def mcnemar(better: int, worse: int) -> float:
    """The two-sided p-value of so many rows being better and so many worse; exact, and for many by the normal distribution."""
    count = better + worse
    if count == 0:
        return 1.0
    if count > BOOTSTRAPPED:
        return 2 * _normal.cdf(-max(0.0, abs(better - worse) - 1) / math.sqrt(count))
    tail = sum(math.comb(count, k) for k in range(min(better, worse) + 1))
    return float(min(1.0, 2 * tail / 2**count))


def wilcoxon(differences: Sequence[float]) -> float:
    """The two-sided p-value of the signed ranks, by the normal distribution; from about ten pairs on it is good."""
    sizes = sorted((abs(each), each > 0) for each in differences if each)
    count = len(sizes)
    if count == 0:
        return 1.0
    ties = Counter(size for size, _ in sizes)
    ranks, before = {}, 0
    for size, many in sorted(ties.items()):
        ranks[size], before = before + (many + 1) / 2, before + many
    positive = sum(ranks[size] for size, is_positive in sizes if is_positive)
    mean = count * (count + 1) / 4
    variance = count * (count + 1) * (2 * count + 1) / 24 - sum(many**3 - many for many in ties.values()) / 48
    return min(1.0, 2 * _normal.cdf(-max(0.0, abs(positive - mean) - 0.5) / math.sqrt(variance)))
