"""Lesson 03: group advantages, leave-one-out, informative groups."""

from __future__ import annotations

from grpo_lib.course.exercises.base import Exercise, Mistake
from grpo_lib.course.exercises.policy import numbers, table

EPS = 1e-4


def reward_cases():
    for name, rewards in (("two completions", [[0.0, 1.0]]),
                          ("one right of four", [[0.0, 0.0, 1.0, 0.0]]),
                          ("all alike", [[1.0, 1.0, 1.0]]),
                          ("two prompts", [[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]),
                          ("hardly any spread", [[0.0, 0.0001]])):
        yield name, (table(rewards),)
    yield "graded rewards", (numbers(5, 3, 4),)


GROUP_ADVANTAGES = Exercise(
    "group_advantages", "03", "lesson 03, section 5",
    "Write group_advantages(rewards (N, G)) -> (N, G): (r - mean of its group) / (std of its group "
    "+ 1e-4), with the std that divides by G - 1.",
    '''def group_advantages(rewards):
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True) + 1e-4)''',
    reward_cases, (
        Mistake("mean of the batch", "you subtract the mean of the whole batch; every prompt has "
                "its own.", (".mean(1, keepdim=True)", ".mean()"), read="lesson 03, section 3"),
        Mistake("mean and std of the batch", "you take mean and std over the whole batch; every "
                "prompt is a group with its own.",
                ((".mean(1, keepdim=True)", ".mean()"), (".std(1, keepdim=True)", ".std()")),
                read="lesson 03, section 3"),
        Mistake("mean over prompts", "the mean runs over prompts (dim 0); a group is a row.",
                ("mean(1,", "mean(0,"), read="lesson 03, section 3",
                ways=((("mean(1,", "mean(0,"), ("std(1,", "std(0,")),)),
        Mistake("groups interleaved", "your groups hold completions of different prompts: row n * "
                "G + g is completion g of prompt n.",
                (("rewards):", "rewards):\n    asked = rewards\n"
                               "    rewards = rewards.reshape(rewards.shape[::-1]).T"),
                 ("return ", "advantages = "),
                 ("1e-4)", "1e-4)\n    return advantages.T.view_as(asked)")),
                read="lesson 03, section 3"),
        Mistake("no mean", "nothing is subtracted, so that every right answer of an easy prompt "
                "counts as much as that of a hard one.", (" - rewards.mean(1, keepdim=True)", ""),
                read="lesson 03, section 1"),
        Mistake("sign", "the sign is wrong: better than the group must be above 0.",
                ("return ", "return -"), read="lesson 03, section 1"),
        Mistake("median", "you subtract the median, not the mean.",
                (".mean(1, keepdim=True)", ".median(1, keepdim=True).values"),
                read="lesson 03, section 1"),
        Mistake("biased std", "your std divides by G; the unbiased one, as in TRL and torch's "
                "default, divides by G - 1.", ("std(1,", "std(1, correction=0,")),
        Mistake("no guard", "a group without spread gives 0 / 0: 1e-4 is added to the std.",
                (" + 1e-4", "")),
        Mistake("variance", "you divide by the variance, not by its root.", (".std(", ".var(")),
        Mistake("no std", "this is Dr. GRPO's advantage, without the std.",
                (" / (rewards.std(1, keepdim=True) + 1e-4)", ""), legitimate=True),
        Mistake("smaller epsilon", "less than 1e-4 is added to your std, or nothing (verl adds "
                "1e-6, the code of Dr. GRPO's authors 1e-8); TRL and this course add 1e-4.",
                ("1e-4", "1e-6"), legitimate=True,
                ways=((("return ", "return ("), (" + 1e-4)", ")).nan_to_num()")),
                      *(("1e-4", f"1e-{power}") for power in (5, 7, 8, 9, 10, 12)))),
        Mistake("epsilon elsewhere", "your std is kept away from 0 in another way; TRL and this "
                "course add 1e-4 to it.", (" + 1e-4)", ").clamp(min=1e-4)"), legitimate=True,
                ways=(((".std(", ".var("), ("1e-4)", "1e-8).sqrt()")),
                      ((".std(", ".var("), ("1e-4)", "1e-4).sqrt()")))),
        Mistake("std of the batch", "this is Lite-PPO's, with the std of the whole batch.",
                (".std(1, keepdim=True)", ".std()"), read="lesson 08, section 1", legitimate=True)))


LEAVE_ONE_OUT = Exercise(
    "leave_one_out", "03", "lesson 03, section 2",
    "Write leave_one_out(rewards (N, G)) -> (N, G): each reward less the mean of the *other* "
    "rewards of its group (RLOO).",
    '''def leave_one_out(rewards):
    others = rewards.shape[1] - 1
    return rewards - (rewards.sum(1, keepdim=True) - rewards) / others''',
    reward_cases, (
        Mistake("itself included", "the reward itself is in its baseline: this is the group's "
                "mean, (G - 1) / G times what is asked.",
                ("(rewards.sum(1, keepdim=True) - rewards) / others",
                 "rewards.mean(1, keepdim=True)")),
        Mistake("divided by G", "there are G - 1 others, and you divide their sum by G.",
                (" - 1", "")),
        Mistake("sum of the others", "this subtracts the sum of the others; their mean is wanted.",
                (" / others", "")),
        Mistake("others of the batch", "the others are those of the same group, not of the batch.",
                (("rewards.shape[1]", "rewards.numel()"), ("sum(1, keepdim=True)", "sum()"))),
        Mistake("sign", "the sign is wrong: better than the others must be above 0.",
                ("return rewards - ", "return -rewards + "), read="lesson 03, section 1")))


def share_cases():
    for p, size in ((0.5, 2), (0.25, 2), (0.1, 4), (0.9, 8), (0.0, 4), (1.0, 3), (0.12, 16)):
        yield f"p = {p}, G = {size}", (p, size)


INFORMATIVE_SHARE = Exercise(
    "informative_share", "03", "lesson 03, section 4",
    "Write informative_share(p, group_size) -> float: the chance that a group of group_size "
    "answers, each right with probability p, is neither all right nor all wrong.",
    '''def informative_share(p, group_size):
    return 1 - p**group_size - (1 - p) ** group_size''',
    share_cases, (
        Mistake("only all wrong", "a group that is all right teaches nothing either.",
                (" - p**group_size", "")),
        Mistake("only all right", "a group that is all wrong teaches nothing either.",
                (" - (1 - p) ** group_size", "")),
        Mistake("the silent ones", "this is the share of groups that teach nothing.",
                ("1 - p**group_size - ", "p**group_size + ")),
        Mistake("one less", "there are G answers in a group, not G - 1.",
                ("group_size):", "group_size):\n    group_size = group_size - 1"))))

EXERCISES = (GROUP_ADVANTAGES, LEAVE_ONE_OUT, INFORMATIVE_SHARE)
