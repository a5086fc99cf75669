"""Lesson 05: the k3 estimate, and the KL term of the loss."""

from __future__ import annotations

import torch

from grpo_lib.course.exercises.base import Exercise, Faults, Mistake
from grpo_lib.course.exercises.policy import numbers


def write_k3(faults: Faults):
    def k3(log_probs, ref_log_probs):
        if "policy detached" in faults:
            log_probs = log_probs.detach()
        d = ref_log_probs - log_probs
        if "other direction" in faults:
            d = -d
        if "k1" in faults:
            value = -d
        elif "k2" in faults:
            value = d**2 / 2
        elif "no minus 1" in faults:
            value = d.exp() - d
        elif "plus d" in faults:
            value = d.exp() + d - 1
        else:
            value = d.exp() - d - 1
        if "times the ratio" in faults:
            value = (log_probs - log_probs.detach()).exp() * value
        return -value if "sign" in faults else value

    return k3


def kl_cases():
    def column(*values):
        return torch.tensor([values], dtype=torch.float64)

    yield "equal policies", (column(-1.0), column(-1.0))
    yield "less likely than the reference", (column(-2.0), column(-1.0))
    yield "likelier", (column(-1.0), column(-2.5))
    yield "two rows", (-numbers(10, 2, 3).abs(), -numbers(11, 2, 3).abs())


K3 = Exercise(
    "k3", "05",
    "Write k3(log_probs (B, T), ref_log_probs (B, T)) -> (B, T): the estimate exp(d) - d - 1 of "
    "KL(policy || reference) at each token, d = ref_log_probs - log_probs. Its gradient counts.",
    write_k3, kl_cases, (
        Mistake("other direction", "d is the wrong way round: this estimates KL(reference || "
                "policy) under the policy's samples, and not well.", "lesson 05, section 2"),
        Mistake("no minus 1", "the - 1 is missing: equal policies must have distance 0.",
                "lesson 05, section 2"),
        Mistake("plus d", "d is added where it is subtracted.", "lesson 05, section 2"),
        Mistake("sign", "a distance is never below 0.", "lesson 05, section 2"),
        Mistake("policy detached", "the value is right, but no gradient reaches the policy.",
                "lesson 05, section 3"),
        Mistake("k1", "this is k1, the plain difference of logs.", "lesson 05, section 2",
                legitimate=True),
        Mistake("k2", "this is k2, half the square.", "lesson 05, section 2", legitimate=True),
        Mistake("times the ratio", "this is the ratio-corrected k3 of DeepSeek-V3.2, TRL's "
                "default.",
                "lesson 05, section 3", legitimate=True)),
    '''def k3(log_probs, ref_log_probs):
    d = ref_log_probs - log_probs
    return d.exp() - d - 1''', gradient_of=0, gradient_asked=True)


def write_divergence(faults: Faults):
    def kl_divergence(logits, ref_logits):
        if "logits for log-probs" in faults:
            p, q = logits, ref_logits
        else:
            p, q = logits.log_softmax(-1), ref_logits.log_softmax(-1)
        weights = ref_logits.softmax(-1) if "weights of the reference" in faults else (
            logits.softmax(-1))
        if "other direction" in faults:
            weights, p, q = ref_logits.softmax(-1), q, p
        terms = (p - q) if "no weights" in faults else weights * (p - q)
        if "difference of entropies" in faults:
            terms = p.exp() * p - q.exp() * q
        value = terms.mean(-1) if "mean for sum" in faults else terms.sum(-1)
        return -value if "sign" in faults else value

    return kl_divergence


def divergence_cases():
    def row(*values):
        return torch.tensor(values, dtype=torch.float64)

    yield "equal", (row(0.0, 0.0), row(0.0, 0.0))
    yield "two words", (row(1.0, 0.0), row(0.0, 0.0))
    yield "three places", (numbers(12, 3, 4), numbers(13, 3, 4))


KL_DIVERGENCE = Exercise(
    "kl_divergence", "05",
    "Write kl_divergence(logits (..., V), ref_logits (..., V)) -> (...): KL(policy || reference) "
    "of the next token, exactly, in nats.",
    write_divergence, divergence_cases, (
        Mistake("other direction", "this is KL(reference || policy).", "lesson 05, section 2"),
        Mistake("weights of the reference", "the weights are the policy's probabilities, since it "
                "is the policy that samples.", "lesson 05, section 2"),
        Mistake("no weights", "all words count alike; each counts as often as it is drawn.",
                "lesson 05, section 2"),
        Mistake("mean for sum", "you take the mean over the vocabulary; the probabilities are the "
                "weights already.", "lesson 05, section 2"),
        Mistake("logits for log-probs", "logits are not normalised: their difference is not that "
                "of the log-probs.", "lesson 01, section 1"),
        Mistake("difference of entropies", "this is a difference of entropies; both logs are to be "
                "weighed by the same probabilities.", "lesson 05, section 2"),
        Mistake("sign", "a KL distance is never below 0.", "lesson 05, section 2")),
    '''def kl_divergence(logits, ref_logits):
    log_probs = logits.log_softmax(-1)
    return (log_probs.exp() * (log_probs - ref_logits.log_softmax(-1))).sum(-1)''')

EXERCISES = (K3, KL_DIVERGENCE)
