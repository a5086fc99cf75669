"""Numbers to predict, in every lesson."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from grpo_lib.course.exercises.base import Mistake, Verdict, never_raises, with_reading
from grpo_lib.course.exercises.comparing import NOTHING, as_number, short

HALF = math.log(2)


@dataclass(frozen=True)
class Question:
    """A number to predict, within ``tolerance``; ``wrong``: numbers that tell a mistake."""

    name: str
    lesson: str
    read: str
    task: str
    answer: float
    tolerance: float
    wrong: Sequence[tuple[float, Mistake]]

    @property
    def mistakes(self) -> tuple[Mistake, ...]:
        return with_reading((mistake for _, mistake in self.wrong), self.read)

    @property
    def solution(self) -> str:
        return f"{self.name} = {self.answer:.6g}"

    @never_raises
    def check(self, guess: object) -> Verdict:
        """Say whether a number is right."""
        if any(guess is nothing for nothing in NOTHING):
            return Verdict("not attempted", f"{self.name}: not attempted yet.")
        given, guess = guess, as_number(guess)
        if guess is None:
            return Verdict("error", f"{self.name}: got {short(given)}, allowed is a number. "
                                    f"{self.task}")
        if abs(guess - self.answer) <= self.tolerance:
            return Verdict("right", f"{self.name}: right ({self.answer:.4g}).")
        for (number, _), mistake in zip(self.wrong, self.mistakes):
            if abs(guess - number) <= self.tolerance:
                return Verdict("wrong", f"{self.name}: not yet. It looks like this: {mistake.says} "
                                        f"Read {mistake.read}.", mistake.name)
        return Verdict("wrong", f"{self.name}: not yet; {guess:.4g} is too "
                                f"{'large' if guess > self.answer else 'small'}.")


EXERCISES = (
    Question(
        "advantage_of_one", "00", "lesson 00, section 4",
        "Of four answers one is right: rewards 1, 0, 0, 0. What is the right one's advantage, with "
        "torch's std?", 0.75 / (0.5 + 1e-4), 0.01, (
            (0.75, Mistake("no std", "this is Dr. GRPO's, without the std; here it is divided by "
                           "it.")),
            (math.sqrt(3), Mistake("biased std", "your std divides by G; torch's divides by G - 1, "
                                   "which gives 0.5.")),
            (2.0, Mistake("no mean", "the mean, 0.25, is to be subtracted before the std "
                          "divides.")),
            (3.0, Mistake("variance", "you divide by the variance, not by its root.")),
            (-0.5, Mistake("of a wrong one", "this is the advantage of a wrong answer.")),
            (1.0, Mistake("the reward", "this is its reward; an advantage is relative to the "
                          "group.")))),
    Question(
        "entropy_of_four", "01", "lesson 01, section 6",
        "What is the entropy, in nats, of four equally likely words?", math.log(4), 0.01, (
            (2.0, Mistake("bits", "2 is in bits; with natural logarithms it is log 4.")),
            (4.0, Mistake("the number of words", "4 is the number of words, exp of the entropy.")),
            (-math.log(4), Mistake("sign", "entropy is never below 0.")),
            (0.25, Mistake("the probability", "0.25 is the probability of a word.")))),
    Question(
        "pass_at_two", "02", "lesson 02, section 4",
        "One of 4 samples is right. What is the unbiased estimate of pass@2?", 0.5, 0.005, (
            (0.4375, Mistake("with replacement", "1 - (3/4)^2 draws with replacement, from a share "
                             "taken for the truth.")),
            (0.25, Mistake("pass@1", "this is pass@1.")),
            (0.0, Mistake("both right", "this is the chance that both are right.")))),
    Question(
        "teaching_share", "03", "lesson 03, section 4",
        "A problem is solved with probability 1/4. What share of groups of 4 answers teaches "
        "anything?",
        1 - 0.25**4 - 0.75**4, 0.001, (
            (0.25**4 + 0.75**4, Mistake("the silent ones", "this is the share of groups that teach "
                                        "nothing.")),
            (1 - 0.75**4, Mistake("all right teaches", "a group that is all right teaches nothing "
                                  "either.")),
            (0.75**4, Mistake("all wrong alone", "this is the share that is all wrong.")))),
    Question(
        "way_back", "04", "lesson 04, section 2",
        "A = -1, r = 1.5, epsilon = 0.2. What is the slope of the clipped surrogate with respect "
        "to r?", -1.0,
        0.01, (
            (0.0, Mistake("blocked", "r has moved the wrong way, up with A < 0: the way back is "
                          "open. Blocked are A < 0 with r below 0.8.")),
            (1.0, Mistake("sign", "the slope is A, which is negative.")),
            (-1.5, Mistake("the value", "-1.5 is the value r A; its slope by r is A.")),
            (-1.2, Mistake("the clipped value", "-1.2 is the clipped branch, which is larger than "
                           "-1.5 and so is not the minimum.")))),
    Question(
        "gradient_steps", "04", "lesson 04, section 4",
        "num_iterations=4 and minibatches=2: how many gradient steps does a batch of completions "
        "get?", 8, 0.1, (
            (4, Mistake("passes alone", "each of the four passes takes a step for each of two "
                        "minibatches.")),
            (2, Mistake("minibatches alone", "the batch is passed over four times.")),
            (1, Mistake("one", "it is one step only with num_iterations=1 and minibatches=1.")))),
    Question(
        "k3_of_a_half", "05", "lesson 05, section 2",
        "A sampled token has probability 0.5 under the policy and 0.25 under the reference. What "
        "is k3 there, in nats?", 0.5 + HALF - 1, 0.004, (
            (HALF, Mistake("k1", "this is k1, the difference of the logs.")),
            (HALF**2 / 2, Mistake("k2", "this is k2, half the square.")),
            (1 - HALF, Mistake("other direction", "d is log 0.25 - log 0.5, below 0; you have it "
                               "above.")),
            (0.25, Mistake("difference of probabilities", "this is the difference of the "
                           "probabilities.")))),
    Question(
        "weight_of_a_token", "06", "lesson 06, section 2",
        "Two completions have 2 and 8 tokens. How much does one token of the longer one count in "
        "the sequence mean?", 1 / 16, 0.001, (
            (1 / 10, Mistake("token mean", "this is its weight in the token mean.")),
            (1 / 8, Mistake("rows not counted", "there are two rows, each of weight 1/2.")),
            (1 / 4, Mistake("of the shorter", "this is a token of the shorter completion.")))),
    Question(
        "share_of_the_gradient", "08", "lesson 08, section 2",
        "With a mean baseline, no std, groups of 4 and a sum over tokens, Dr. GRPO's gradient is "
        "on average a multiple of the true gradient. Which multiple?", 0.75, 0.005, (
            (1.0, Mistake("unbiased", "a reward is part of its own group's mean, which takes away "
                          "1/G.")),
            (4 / 3, Mistake("leave one out", "that is the factor which turns it into RLOO.",
                            read="lesson 03, section 2")),
            (0.25, Mistake("what is lost", "this is the part that is lost.")))),
    Question(
        "loss_of_two_parts", "09", "lesson 09, section 5",
        "A gradient step in two parts: 30 tokens with a mean loss of 1, and 10 tokens with a mean "
        "loss of 2. What is the token mean of the whole?", 1.25, 0.005, (
            (1.5, Mistake("mean of means", "the mean of the parts' means counts 10 tokens as much "
                          "as 30.")),
            (3.0, Mistake("sum of means", "a part counts by its share, and the shares add up to "
                          "1.")),
            (1.75, Mistake("the other's share", "each part has the other's share of the tokens.")),
            (50.0, Mistake("not divided", "this is the sum over the 40 tokens, not their mean.")))),
    Question(
        "passes_on_a_gpu", "09", "lesson 09, section 5",
        "32 prompts with 16 completions each, minibatches=2, four processes, micro_batch_size=8: "
        "how many parts does each process add up for one step of the optimizer?", 8, 0.1, (
            (32, Mistake("processes not counted", "the 256 completions of the step are dealt out "
                         "to four processes.")),
            (16, Mistake("minibatches not counted", "a step of the optimizer is taken on one of "
                         "two minibatches.")),
            (64, Mistake("the whole batch on one", "512 / 8: neither minibatches nor processes are "
                         "counted.")),
            (1, Mistake("prompts for completions", "parts are of completions: 256 in a step, 64 on "
                        "each process.")))),
)
