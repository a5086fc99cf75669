"""pass@k, majority@k and guessing on measured answers, for k from 1 to all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grpo_lib.course.explorers.base import Explorer
from grpo_lib.course.explorers.controls import choice, stops
from grpo_lib.course.plots import BLUE, GREEN, GREY, lines
from grpo_lib.evaluation import pass_at_k
from grpo_lib.lab.statistics import independent_guesses, majority_at_k


def curves_at(counts: Sequence[Sequence[int]], ks: Sequence[int]) -> dict[str, list[float]]:
    """Name -> value at each k; counts[problem] = (right answers, and how often each wrong one)."""
    samples = sum(counts[0])
    if any(sum(row) != samples for row in counts):
        raise ValueError("counts: got problems with unequal numbers of samples, allowed is one "
                         "number for all")
    share = sum(row[0] for row in counts) / (samples * len(counts))
    return {"pass@k": [sum(pass_at_k(samples, row[0], k) for row in counts) / len(counts)
                       for k in ks],
            "guessing at the same rate": [independent_guesses(share, k) for k in ks],
            "majority@k": [sum(majority_at_k(row, 0, k) for row in counts) / len(counts)
                           for k in ks]}


def pass_at_k_explorer(measured: Mapping[str, Sequence[Sequence[int]]], k: int = 8) -> Explorer:
    """A slider for k (or the group size G) and a menu of policies.

    measured[policy][problem] = (number of right answers, number of each wrong one, ...).
    """
    samples = {sum(row) for counts in measured.values() for row in counts}
    if len(samples) != 1:
        raise ValueError(f"measured: got {sorted(samples)} samples a problem, allowed is one "
                         f"number for all")
    ks = [2**i for i in range(samples.pop().bit_length())]
    known = {name: curves_at(counts, ks) for name, counts in measured.items()}

    def draw(k: int, policy: str):
        at = {name: curve[ks.index(k)] for name, curve in known[policy].items()}
        figure = lines(ks, known[policy], f"{policy}: k = {k}", "k, or group size G",
                       "share of problems", percent=True, log_x=True, marks={f"k = {k}": k},
                       colors=(BLUE, GREY, GREEN), legend="below")
        text = (f"{policy}, k = {k}: pass@k {at['pass@k']:.1%}, majority@k "
                f"{at['majority@k']:.1%}, guessing at the same rate "
                f"{at['guessing at the same rate']:.1%}; of groups of G = {k}, "
                f"{1 - at['pass@k']:.1%} hold no right answer")
        return figure, text

    return Explorer(draw, k=stops("k, or group size G", k, ks),
                    policy=choice("policy", next(iter(known)), list(known)))
