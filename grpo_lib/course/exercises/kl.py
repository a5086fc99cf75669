"""Lesson 05: the k3 estimate, and the KL term of the loss."""

from __future__ import annotations

from grpo_lib.course.exercises.base import Exercise, Mistake
from grpo_lib.course.exercises.comparing import as_tensor
from grpo_lib.course.exercises.policy import numbers, table
from grpo_lib.course.exercises.repairs import Repair


def kl_cases():
    yield "equal policies", (table([[-1.0]]), table([[-1.0]]))
    yield "less likely than the reference", (table([[-2.0]]), table([[-1.0]]))
    yield "likelier", (table([[-1.0]]), table([[-2.5]]))
    yield "two rows", (-numbers(10, 2, 3).abs(), -numbers(11, 2, 3).abs())


K3 = Exercise(
    "k3", "05", "lesson 05, section 2",
    "Write k3(log_probs (B, T), ref_log_probs (B, T)) -> (B, T): the estimate exp(d) - d - 1 of "
    "KL(policy || reference) at each token, d = ref_log_probs - log_probs. Its gradient counts.",
    '''def k3(log_probs, ref_log_probs):
    d = ref_log_probs - log_probs
    return d.exp() - d - 1''',
    kl_cases, (
        Mistake("other direction", "d is the wrong way round: this estimates KL(reference || "
                "policy) under the policy's samples, and not well.",
                ("ref_log_probs - log_probs", "log_probs - ref_log_probs")),
        Mistake("no minus 1", "the - 1 is missing: equal policies must have distance 0.",
                (" - 1", "")),
        Mistake("plus d", "d is added where it is subtracted.", ("- d", "+ d")),
        Mistake("sign", "a distance is never below 0.",
                (("return ", "return -("), ("- 1", "- 1)"))),
        Mistake("policy detached", "the value is right, but no gradient reaches the policy.",
                ("- log_probs", "- log_probs.detach()"), read="lesson 05, section 3"),
        Mistake("k1", "this is k1, the plain difference of logs.", ("d.exp() - d - 1", "-d"),
                legitimate=True),
        Mistake("k2", "this is k2, half the square.", ("d.exp() - d - 1", "d**2 / 2"),
                legitimate=True),
        Mistake("times the ratio", "this is the ratio-corrected k3 of DeepSeek-V3.2, TRL's "
                "default.",
                (("return ", "return (log_probs - log_probs.detach()).exp() * ("), ("- 1", "- 1)")),
                read="lesson 05, section 3", legitimate=True)),
    gradient_of=0, gradient_asked=True)


def divergence_cases():
    yield "equal", (table([0.0, 0.0]), table([0.0, 0.0]))
    yield "two words", (table([1.0, 0.0]), table([0.0, 0.0]))
    yield "three places", (numbers(12, 3, 4), numbers(13, 3, 4))


KL_DIVERGENCE = Exercise(
    "kl_divergence", "05", "lesson 05, section 2",
    "Write kl_divergence(logits (..., V), ref_logits (..., V)) -> (...): KL(policy || reference) "
    "of the next token, exactly, in nats.",
    '''def kl_divergence(logits, ref_logits):
    log_probs = logits.log_softmax(-1)
    return (log_probs.exp() * (log_probs - ref_logits.log_softmax(-1))).sum(-1)''',
    divergence_cases, (
        Mistake("other direction", "this is KL(reference || policy).",
                ("(logits, ref_logits)", "(ref_logits, logits)")),
        Mistake("weights of the reference", "the weights are the policy's probabilities, since it "
                "is the policy that samples.", ("log_probs.exp()", "ref_logits.softmax(-1)")),
        Mistake("no weights", "all words count alike; each counts as often as it is drawn.",
                ("log_probs.exp() * ", "")),
        Mistake("mean for sum", "you take the mean over the vocabulary; the probabilities are the "
                "weights already.", (".sum(", ".mean(")),
        Mistake("logits for log-probs", "logits are not normalised: their difference is not that "
                "of the log-probs.",
                (("= logits.log_softmax(-1)", "= logits"),
                 ("log_probs.exp()", "logits.softmax(-1)"),
                 ("ref_logits.log_softmax(-1)", "ref_logits")), read="lesson 01, section 1"),
        Mistake("difference of entropies", "this is a difference of entropies; both logs are to be "
                "weighed by the same probabilities.",
                (("(log_probs - ", "log_probs - ref_logits.softmax(-1) * "), ("(-1)))", "(-1))"))),
        Mistake("sign", "a KL distance is never below 0.", ("return ", "return -"))))


# --- a leash that does not hold ------------------------------------------------------------------

def leash_cases():
    yield "two words, one step", (table([1.0, 0.0]), table([0.0, 0.0]), table([1.0, 0.0]), 2.0,
                                  0.5, 1)
    yield "three words, two steps", (numbers(61, 3), numbers(62, 3), table([0.0, 1.0, 1.0]), 0.5,
                                     0.5, 2)
    yield "five words, six steps", (numbers(63, 5), numbers(64, 5),
                                    table([1.0, 0.0, 0.0, 1.0, 0.0]), 1.5, 0.3, 6)


def lengths_of_leash(leash) -> str:
    """Where a run of 200 steps ends, at three betas."""
    logits, rewards = table([0.0] * 4), table([1.0, 0.0, 0.0, 0.0])
    ends = [as_tensor(leash(logits, logits, rewards, beta, 0.1, 200))[-1] for beta in (0, 0.1, 10)]
    return ("After 200 steps KL to the reference is "
            + ", ".join(f"{end:.3f} with beta = {beta}" for end, beta in zip(ends, (0, 0.1, 10)))
            + ".")


LEASH = Repair(
    "leash", "05", "lesson 05, section 3",
    "Repair leash(logits (V,), ref_logits (V,), rewards (V,), beta, learning_rate, steps) -> KL to "
    "the reference after each step. The policy is one choice among V words. Each word is "
    "weighted by its probability, so there is no noise. The run ends at the same distance with "
    "beta = 0 and beta = 10. It should use GRPO's penalty, k3.",
    '''import torch


def leash(logits, ref_logits, rewards, beta, learning_rate, steps):
    distances, ref_log_probs = [], ref_logits.log_softmax(-1)
    for _ in range(steps):
        logits = logits.detach().requires_grad_()
        log_probs = logits.log_softmax(-1)
        weights = log_probs.detach().exp()  # how often each word is sampled
        advantages = rewards - (weights * rewards).sum()
        ratio = (log_probs - log_probs.detach()).exp()
        d = ref_log_probs - log_probs
        penalty = d.exp() - d - 1
        loss = -(weights * (ratio * advantages - beta * penalty)).sum()
        logits = logits - learning_rate * torch.autograd.grad(loss, logits)[0]
        now = logits.log_softmax(-1)
        distances.append((now.exp() * (now - ref_log_probs)).sum())
    return torch.stack(distances)''',
    leash_cases, (
        Mistake("k1", "k1 is still in the loss: its value is right on average, but its gradient is "
                "0 on average.",
                ("d = ref_log_probs - log_probs\n        penalty = d.exp() - d - 1",
                 "penalty = log_probs - ref_log_probs")),
        Mistake("other direction", "d is the log-prob of the reference less the policy's.",
                ("d = ref_log_probs - log_probs", "d = log_probs - ref_log_probs"),
                read="lesson 05, section 2"),
        Mistake("sign", "the sign of the penalty is wrong: distance is rewarded.",
                ("- beta", "+ beta"), read="lesson 05, section 4"),
        Mistake("beta left out", "beta has no part in it.", ("beta * penalty", "penalty"),
                read="lesson 05, section 4"),
        Mistake("no weights", "all words count alike now; each counts as often as it is sampled.",
                (("(weights * (ratio", "((ratio"), ("penalty)).sum()", "penalty)).mean()")),
                read="lesson 05, section 2"),
        Mistake("k2", "this is the gradient of KL(policy || reference), which k2 has in the loss "
                "and k1 in the reward; k3's is that of KL(reference || policy).",
                ("d.exp() - d - 1", "d**2 / 2"), legitimate=True)),
    faults=("k1",), shows=lengths_of_leash)

EXERCISES = (K3, KL_DIVERGENCE, LEASH)
