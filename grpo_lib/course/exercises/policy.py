"""Lesson 01: log-probs, the mask, entropy, temperature."""

from __future__ import annotations

import math

import torch

from grpo_lib.course.exercises.base import Exercise, Faults, Mistake

GUARD = 1e-5  # relative: 1e-6 added to a divisor against 0 / 0 is no mistake


def numbers(seed: int, *shape: int) -> torch.Tensor:
    """Normal numbers in float64, the same every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def write_log_probs(faults: Faults):
    def shifted_log_probs(logits, tokens):
        if "no softmax" in faults:
            scores = logits
        elif "softmax over time" in faults:
            scores = logits.log_softmax(1)
        else:
            scores = logits.log_softmax(-1)
        if "base 2" in faults:
            scores = scores / math.log(2)
        if "not shifted" in faults:
            scores, chosen = scores[:, 1:], tokens[:, 1:]
        elif "not shifted, all of them" in faults:
            chosen = tokens
        elif "not shifted, all but the last" in faults:
            scores, chosen = scores[:, :-1], tokens[:, :-1]
        elif "shifted backwards" in faults:
            scores, chosen = scores[:, 1:], tokens[:, :-1]
        else:
            scores, chosen = scores[:, :-1], tokens[:, 1:]
        picked = scores.gather(-1, chosen[..., None]).squeeze(-1)
        if "first token too" in faults:
            picked = torch.cat((torch.zeros_like(picked[:, :1]), picked), 1)
        if "sign" in faults:
            picked = -picked
        return picked.exp() if "probabilities" in faults else picked

    return shifted_log_probs


def log_prob_cases():
    for name, seed, batch, length, words in (("one step, two words", 0, 1, 2, 2),
                                             ("one row", 1, 1, 4, 3), ("three rows", 2, 3, 5, 4)):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(words, (batch, length), generator=generator)
        yield name, (2 * numbers(seed, batch, length, words), tokens)


SHIFTED_LOG_PROBS = Exercise(
    "shifted_log_probs", "01",
    "Write shifted_log_probs(logits (B, T, V), tokens (B, T)) -> (B, T - 1): the log-prob of each "
    "token but the first.",
    write_log_probs, log_prob_cases, (
        Mistake("not shifted", "you score token t with the logits at t, which have already seen "
                "it; they speak of token t + 1.", "lesson 01, section 3",
                ways=("not shifted, all of them", "not shifted, all but the last")),
        Mistake("sign", "these are minus the log-probs, as cross-entropy gives them: a log-prob is "
                "never above 0.", "lesson 01, section 1"),
        Mistake("shifted backwards", "you score token t - 1 with the logits at t: the shift goes "
                "the other way.", "lesson 01, section 3"),
        Mistake("no softmax", "these are logits, not log-probs: a log_softmax over the vocabulary "
                "is missing.", "lesson 01, section 1"),
        Mistake("probabilities", "these are probabilities; their logarithm is wanted.",
                "lesson 01, section 1"),
        Mistake("softmax over time", "you normalise over the places of the text, not over the "
                "words of the vocabulary.", "lesson 01, section 1"),
        Mistake("first token too", "there is one column too many: the first token has no logits "
                "before it, so it has no log-prob.", "lesson 01, section 3"),
        Mistake("base 2", "these are bits: the logarithm is of base 2, where nats (base e) are "
                "the unit.", "lesson 01, section 1", legitimate=True)),
    '''def shifted_log_probs(logits, tokens):
    log_probs = logits[:, :-1].log_softmax(-1)
    return log_probs.gather(-1, tokens[:, 1:, None]).squeeze(-1)''')


def write_mask(faults: Faults):
    def completion_mask(tokens, prompt_length, eos_id):
        completion = tokens if "prompt in the mask" in faults else tokens[:, prompt_length:]
        is_eos = completion == eos_id
        if "prompt in the mask" in faults:  # ends in the prompt do not count
            is_eos = is_eos & (torch.arange(tokens.shape[1]) >= prompt_length)
        steps = torch.arange(completion.shape[1])
        if "everything counts" in faults:
            counts = torch.ones_like(is_eos)
        elif "padding by its value" in faults:
            counts = completion != 0
        elif "first of none" in faults:
            counts = steps <= is_eos.long().argmax(1, keepdim=True)
        elif "less than the first of none" in faults:
            counts = steps < is_eos.long().argmax(1, keepdim=True)
        elif "up to the last end" in faults:
            last = torch.where(is_eos, steps, -1).amax(1, keepdim=True)
            counts = (steps <= last) | (last < 0)
        else:
            counts = is_eos.cumsum(1) - is_eos.long() == 0
        if "only ends are left out" in faults:
            counts = ~is_eos
        if "end left out" in faults:
            counts = counts & ~is_eos
        return (~counts if "upside down" in faults else counts).long()

    return completion_mask


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
    "completion_mask", "01",
    "Write completion_mask(tokens (B, P + T), prompt_length, eos_id) -> (B, T): 1 on completion "
    "tokens up to and including the first end-of-sequence.",
    write_mask, mask_cases, (
        Mistake("prompt in the mask", "the prompt's columns are in it; nothing there was chosen by "
                "the policy.", "lesson 01, section 4"),
        Mistake("end left out", "end-of-sequence itself is masked out. Then nothing teaches the "
                "policy to stop.", "lesson 01, section 4"),
        Mistake("everything counts", "every column counts; what follows end-of-sequence is "
                "padding.",
                "lesson 01, section 4"),
        Mistake("up to the last end", "you count up to the last end-of-sequence; the completion "
                "ended at the first.", "lesson 01, section 4"),
        Mistake("padding by its value", "you look for padding by its value, 0; what counts is "
                "decided by where the first end-of-sequence is.", "lesson 01, section 4"),
        Mistake("first of none", "where nothing ends, argmax gives 0, and a single token counts or "
                "none; there all of them count.", "lesson 01, section 4",
                ways=("less than the first of none",)),
        Mistake("only ends are left out", "you leave out end-of-sequence tokens and nothing else: "
                "padding counts, and the end does not.", "lesson 01, section 4"),
        Mistake("upside down", "0 and 1 are the wrong way round: 1 is for what counts.",
                "lesson 01, section 4")),
    '''def completion_mask(tokens, prompt_length, eos_id):
    ends = (tokens[:, prompt_length:] == eos_id).long()
    return (ends.cumsum(1) - ends == 0).long()''')


def write_entropy(faults: Faults):
    def entropy(logits):
        log_probs = logits if "of the logits" in faults else logits.log_softmax(-1)
        probs = logits.softmax(-1)
        terms = (log_probs if "mean of the log-probs" in faults else probs * log_probs)
        value = terms.mean(-1) if {"mean for sum", "mean of the log-probs"} & faults else (
            terms.sum(-1))
        value = value if "sign" in faults else -value
        return value / math.log(2) if "bits" in faults else value

    return entropy


def logit_cases():
    yield "two words, even", (torch.zeros(2, dtype=torch.float64),)
    yield "two words, uneven", (torch.tensor([1.0, -1.0], dtype=torch.float64),)
    yield "three places of four words", (2 * numbers(3, 3, 4),)


ENTROPY = Exercise(
    "entropy", "01",
    "Write entropy(logits (..., V)) -> (...): the entropy of the next-token distribution, in nats.",
    write_entropy, logit_cases, (
        Mistake("sign", "entropy is minus the sum of p log p, so never below 0.",
                "lesson 01, section 6"),
        Mistake("mean for sum", "you take the mean over the vocabulary; the sum is wanted, since "
                "the p are the weights.", "lesson 01, section 6"),
        Mistake("mean of the log-probs", "this weighs all words alike; a word counts as often as "
                "it is drawn, p times.", "lesson 01, section 6"),
        Mistake("of the logits", "logits stand where log-probs belong.", "lesson 01, section 1"),
        Mistake("bits", "these are bits; nats are asked for.", "lesson 01, section 6",
                legitimate=True)),
    '''def entropy(logits):
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)''')


def write_temperature(faults: Faults):
    def distribution(logits, temperature):
        if "times the temperature" in faults:
            logits = logits * temperature
        elif not {"no temperature", "after the softmax"} & faults:
            logits = logits / temperature
        probs = logits.exp() if "not normalised" in faults else logits.softmax(-1)
        return probs / temperature if "after the softmax" in faults else probs

    return distribution


def temperature_cases():
    for name, temperature in (("temperature 2", 2.0), ("temperature 0.5", 0.5),
                              ("temperature 1", 1.0)):
        yield name, (torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64), temperature)
    yield "two rows", (numbers(4, 2, 5), 0.7)


DISTRIBUTION = Exercise(
    "distribution", "01",
    "Write distribution(logits (..., V), temperature) -> (..., V): the probabilities that are "
    "sampled from.",
    write_temperature, temperature_cases, (
        Mistake("times the temperature", "you multiply by the temperature: a high one then "
                "sharpens, where it should flatten.", "lesson 01, section 6"),
        Mistake("no temperature", "temperature has no effect: it divides the logits (and if it "
                "divides the probabilities, normalising undoes it).", "lesson 01, section 6"),
        Mistake("after the softmax", "you divide the probabilities, which then do not sum to 1: "
                "temperature divides the logits.", "lesson 01, section 6"),
        Mistake("not normalised", "these do not sum to 1.", "lesson 01, section 1")),
    '''def distribution(logits, temperature):
    return (logits / temperature).softmax(-1)''')

EXERCISES = (SHIFTED_LOG_PROBS, COMPLETION_MASK, ENTROPY, DISTRIBUTION)
