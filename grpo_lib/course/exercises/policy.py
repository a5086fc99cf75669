"""Lesson 01: log-probs, the mask, entropy, temperature."""

from __future__ import annotations

import torch

from grpo_lib.course.exercises.base import Exercise, Mistake

GUARD = 1e-5  # relative: 1e-6 added to a divisor against 0 / 0 is no mistake


def numbers(seed: int, *shape: int) -> torch.Tensor:
    """Normal numbers in float64, the same every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def table(values) -> torch.Tensor:
    """Numbers, or nested lists of them, in float64."""
    return torch.tensor(values, dtype=torch.float64)


def log_prob_cases():
    for name, seed, batch, length, words in (("one step, two words", 0, 1, 2, 2),
                                             ("one row", 1, 1, 4, 3), ("three rows", 2, 3, 5, 4)):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(words, (batch, length), generator=generator)
        yield name, (2 * numbers(seed, batch, length, words), tokens)


SHIFTED_LOG_PROBS = Exercise(
    "shifted_log_probs", "01", "lesson 01, section 1",
    "Write shifted_log_probs(logits (B, T, V), tokens (B, T)) -> (B, T - 1): the log-prob of each "
    "token but the first.",
    '''def shifted_log_probs(logits, tokens):
    log_probs = logits[:, :-1].log_softmax(-1)
    return log_probs.gather(-1, tokens[:, 1:, None]).squeeze(-1)''',
    log_prob_cases, (
        Mistake("not shifted", "you score token t with the logits at t, which have already seen "
                "it; they speak of token t + 1.", ("logits[:, :-1]", "logits[:, 1:]"),
                read="lesson 01, section 3",
                ways=((("[:, :-1]", ""), ("[:, 1:, None]", "[..., None]")),
                      ("tokens[:, 1:,", "tokens[:, :-1,"))),
        Mistake("sign", "these are minus the log-probs, as cross-entropy gives them: a log-prob is "
                "never above 0.", ("return log_probs", "return -log_probs")),
        Mistake("shifted backwards", "you score token t - 1 with the logits at t: the shift goes "
                "the other way.",
                (("logits[:, :-1]", "logits[:, 1:]"), ("tokens[:, 1:,", "tokens[:, :-1,")),
                read="lesson 01, section 3"),
        Mistake("no softmax", "these are logits, not log-probs: a log_softmax over the vocabulary "
                "is missing.", (".log_softmax(-1)", "")),
        Mistake("probabilities", "these are probabilities; their logarithm is wanted.",
                (".squeeze(-1)", ".squeeze(-1).exp()")),
        Mistake("softmax over time", "you normalise over the places of the text, not over the "
                "words of the vocabulary.",
                ("logits[:, :-1].log_softmax(-1)", "logits.log_softmax(1)[:, :-1]")),
        Mistake("first token too", "there is one column too many: the first token has no logits "
                "before it, so it has no log-prob.",
                (("return ", "return torch.nn.functional.pad("),
                 (".squeeze(-1)", ".squeeze(-1), (1, 0))")), read="lesson 01, section 3"),
        Mistake("base 2", "these are bits: the logarithm is of base 2, where nats (base e) are the "
                "unit.", ("softmax(-1)", "softmax(-1) / math.log(2)"), legitimate=True)))


def mask_cases():
    for name, prompt_length, eos_id, rows in (
            ("ends at once", 2, 1, [[3, 4, 1, 0, 0]]), ("ends later", 2, 1, [[3, 4, 5, 1, 0]]),
            ("never ends", 2, 1, [[3, 4, 5, 6, 7]]),
            ("three rows, one with a second end", 2, 1,
             [[3, 4, 5, 1, 6, 1], [3, 4, 1, 0, 0, 0], [3, 1, 2, 2, 2, 2]]),
            ("a shorter prompt, another end", 1, 7, [[3, 1, 4, 7, 7], [3, 7, 1, 1, 1]]),
            ("word 0 in the answers", 3, 2, [[4, 2, 5, 0, 6, 2, 0], [4, 5, 6, 0, 2, 4, 2]])):
        yield name, (torch.tensor(rows), prompt_length, eos_id)


COMPLETION_MASK = Exercise(
    "completion_mask", "01", "lesson 01, section 4",
    "Write completion_mask(tokens (B, P + T), prompt_length, eos_id) -> (B, T): 1 on completion "
    "tokens up to and including the first end-of-sequence.",
    '''def completion_mask(tokens, prompt_length, eos_id):
    ends = (tokens[:, prompt_length:] == eos_id).long()
    return (ends.cumsum(1) - ends == 0).long()''',
    mask_cases, (
        Mistake("prompt in the mask", "the prompt's columns are in it; nothing there was chosen by "
                "the policy.",
                ("(tokens[:, prompt_length:] == eos_id)",
                 "((tokens == eos_id) & (torch.arange(tokens.shape[1]) >= prompt_length))")),
        Mistake("end left out", "end-of-sequence itself is masked out. Then nothing teaches the "
                "policy to stop.", (" - ends", "")),
        Mistake("everything counts", "every column counts; what follows end-of-sequence is "
                "padding.", ("ends.cumsum(1) - ends == 0", "ends >= 0")),
        Mistake("up to the last end", "you count up to the last end-of-sequence; the completion "
                "ended at the first.",
                ("ends.cumsum(1) - ends == 0",
                 "(ends.flip(1).cumsum(1).flip(1) > 0) | (ends.sum(1, keepdim=True) == 0)")),
        Mistake("padding by its value", "you look for padding by its value, 0; what counts is "
                "decided by where the first end-of-sequence is.",
                ("ends.cumsum(1) - ends == 0", "tokens[:, prompt_length:] != 0")),
        Mistake("first of none", "where nothing ends, argmax gives 0, and a single token counts or "
                "none; there all of them count.",
                ("ends.cumsum(1) - ends == 0",
                 "torch.arange(ends.shape[1]) <= ends.argmax(1, keepdim=True)"),
                ways=(("ends.cumsum(1) - ends == 0",
                       "torch.arange(ends.shape[1]) < ends.argmax(1, keepdim=True)"),)),
        Mistake("only ends are left out", "you leave out end-of-sequence tokens and nothing else: "
                "padding counts, and the end does not.", ("ends.cumsum(1) - ends", "ends")),
        Mistake("upside down", "0 and 1 are the wrong way round: 1 is for what counts.",
                ("return ", "return 1 - "))))


def logit_cases():
    yield "two words, even", (table([0.0, 0.0]),)
    yield "two words, uneven", (table([1.0, -1.0]),)
    yield "three places of four words", (2 * numbers(3, 3, 4),)


ENTROPY = Exercise(
    "entropy", "01", "lesson 01, section 6",
    "Write entropy(logits (..., V)) -> (...): the entropy of the next-token distribution, in nats.",
    '''def entropy(logits):
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)''',
    logit_cases, (
        Mistake("sign", "entropy is minus the sum of p log p, so never below 0.",
                ("return -", "return ")),
        Mistake("mean for sum", "you take the mean over the vocabulary; the sum is wanted, since "
                "the p are the weights.", (".sum(", ".mean(")),
        Mistake("mean of the log-probs", "this weighs all words alike; a word counts as often as "
                "it is drawn, p times.", (("log_probs.exp() * ", ""), (".sum(", ".mean("))),
        Mistake("of the logits", "logits stand where log-probs belong.",
                (("logits.log_softmax(-1)", "logits"), ("log_probs.exp()", "logits.softmax(-1)")),
                read="lesson 01, section 1"),
        Mistake("bits", "these are bits; nats are asked for.",
                ("return -", "return -1 / math.log(2) * "), legitimate=True)))


def temperature_cases():
    for name, temperature in (("temperature 2", 2.0), ("temperature 0.5", 0.5),
                              ("temperature 1", 1.0)):
        yield name, (table([1.0, 0.0, -2.0]), temperature)
    yield "two rows", (numbers(4, 2, 5), 0.7)


DISTRIBUTION = Exercise(
    "distribution", "01", "lesson 01, section 6",
    "Write distribution(logits (..., V), temperature) -> (..., V): the probabilities that are "
    "sampled from.",
    '''def distribution(logits, temperature):
    return (logits / temperature).softmax(-1)''',
    temperature_cases, (
        Mistake("times the temperature", "you multiply by the temperature: a high one then "
                "sharpens, where it should flatten.", ("/", "*")),
        Mistake("no temperature", "temperature has no effect: it divides the logits (and if it "
                "divides the probabilities, normalising undoes it).", (" / temperature", "")),
        Mistake("after the softmax", "you divide the probabilities, which then do not sum to 1: "
                "temperature divides the logits.",
                (("(logits / temperature)", "logits"),
                 ("softmax(-1)", "softmax(-1) / temperature"))),
        Mistake("not normalised", "these do not sum to 1.", ("softmax(-1)", "exp()"),
                read="lesson 01, section 1")))

EXERCISES = (SHIFTED_LOG_PROBS, COMPLETION_MASK, ENTROPY, DISTRIBUTION)
