"""Lesson 03: group advantages, leave-one-out, informative groups."""

from __future__ import annotations

import torch

from grpo_lib.course.exercises.base import Exercise, Faults, Mistake
from grpo_lib.course.exercises.policy import numbers

EPS = 1e-4


def write_advantages(faults: Faults):
    def group_advantages(rewards):
        groups = rewards
        if "groups interleaved" in faults:
            groups = rewards.flatten().view(rewards.shape[1], rewards.shape[0]).T
        if {"mean of the batch", "mean and std of the batch"} & faults:
            mean = groups.mean()
        elif {"mean over prompts", "mean and std over prompts"} & faults:
            mean = groups.mean(0, keepdim=True)
        elif "no mean" in faults:
            mean = 0.0
        elif "median" in faults:
            mean = groups.median(1, keepdim=True).values
        else:
            mean = groups.mean(1, keepdim=True)
        centred = mean - groups if "sign" in faults else groups - mean
        correction = 0 if "biased std" in faults else 1
        spread = groups.std(1, keepdim=True, correction=correction)
        if "variance" in faults:
            spread = spread**2
        if {"std of the batch", "mean and std of the batch"} & faults:
            spread = groups.std(correction=correction)
        if "mean and std over prompts" in faults:
            spread = groups.std(0, keepdim=True, correction=correction)
        if "no std" in faults:
            advantages = centred
        elif "no guard" in faults:
            advantages = centred / spread
        elif "no spread gives 0" in faults:
            advantages = (centred / spread).nan_to_num()
        elif "epsilon elsewhere" in faults:
            advantages = centred / spread.clamp(min=EPS)
        elif "under the root" in faults:
            advantages = centred / (spread**2 + EPS**2).sqrt()
        elif "1e-4 under the root" in faults:
            advantages = centred / (spread**2 + EPS).sqrt()
        else:
            smaller = {1e-6 if name == "smaller epsilon" else float(name.rpartition(" ")[2])
                       for name in faults if name.startswith("smaller epsilon")}
            advantages = centred / (spread + min(smaller, default=EPS))
        if "groups interleaved" in faults:
            advantages = advantages.T.reshape(rewards.shape)
        return advantages

    return group_advantages


def reward_cases():
    def table(*rows):
        return (torch.tensor(rows, dtype=torch.float64),)

    yield "two completions", table([0.0, 1.0])
    yield "one right of four", table([0.0, 0.0, 1.0, 0.0])
    yield "all alike", table([1.0, 1.0, 1.0])
    yield "two prompts", table([0.0, 1.0, 1.0], [0.0, 0.0, 1.0])
    yield "hardly any spread", table([0.0, 0.0001])
    yield "graded rewards", (numbers(5, 3, 4),)


GROUP_ADVANTAGES = Exercise(
    "group_advantages", "03",
    "Write group_advantages(rewards (N, G)) -> (N, G): (r - mean of its group) / (std of its group "
    "+ 1e-4), with the std that divides by G - 1.",
    write_advantages, reward_cases, (
        Mistake("mean of the batch", "you subtract the mean of the whole batch; every prompt has "
                "its own.", "lesson 03, section 2"),
        Mistake("mean and std of the batch", "you take mean and std over the whole batch; every "
                "prompt is a group with its own.", "lesson 03, section 2"),
        Mistake("mean over prompts", "the mean runs over prompts (dim 0); a group is a row.",
                "lesson 03, section 2", ways=("mean and std over prompts",)),
        Mistake("groups interleaved", "your groups hold completions of different prompts: row n * "
                "G + g is completion g of prompt n.", "lesson 03, section 2"),
        Mistake("no mean", "nothing is subtracted, so that every right answer of an easy prompt "
                "counts as much as that of a hard one.", "lesson 03, section 1"),
        Mistake("sign", "the sign is wrong: better than the group must be above 0.",
                "lesson 03, section 1"),
        Mistake("median", "you subtract the median, not the mean.", "lesson 03, section 1"),
        Mistake("biased std", "your std divides by G; the unbiased one, as in TRL and torch's "
                "default, divides by G - 1.", "lesson 03, section 4"),
        Mistake("no guard", "a group without spread gives 0 / 0: 1e-4 is added to the std.",
                "lesson 03, section 4"),
        Mistake("variance", "you divide by the variance, not by its root.", "lesson 03, section 4"),
        Mistake("no std", "this is Dr. GRPO's advantage, without the std.", "lesson 03, section 4",
                legitimate=True),
        Mistake("smaller epsilon", "less than 1e-4 is added to your std, or nothing (verl adds "
                "1e-6, the code of Dr. GRPO's authors 1e-8); TRL and this course add 1e-4.",
                "lesson 03, section 4", legitimate=True,
                ways=("no spread gives 0", *(f"smaller epsilon {eps}" for eps in (
                    "1e-5", "1e-7", "1e-8", "1e-9", "1e-10", "1e-12")))),
        Mistake("epsilon elsewhere", "your std is kept away from 0 in another way; TRL and this "
                "course add 1e-4 to it.", "lesson 03, section 4", legitimate=True,
                ways=("under the root", "1e-4 under the root")),
        Mistake("std of the batch", "this is Lite-PPO's, with the std of the whole batch.",
                "lesson 08, section 1", legitimate=True)),
    '''def group_advantages(rewards):
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True) + 1e-4)''')


def write_leave_one_out(faults: Faults):
    def leave_one_out(rewards):
        size = rewards.shape[1]
        total = rewards.sum(1, keepdim=True)
        if "itself included" in faults:
            baseline = total / size
        elif "divided by G" in faults:
            baseline = (total - rewards) / size
        elif "sum of the others" in faults:
            baseline = total - rewards
        elif "others of the batch" in faults:
            baseline = (rewards.sum() - rewards) / (rewards.numel() - 1)
        else:
            baseline = (total - rewards) / (size - 1)
        return baseline - rewards if "sign" in faults else rewards - baseline

    return leave_one_out


LEAVE_ONE_OUT = Exercise(
    "leave_one_out", "03",
    "Write leave_one_out(rewards (N, G)) -> (N, G): each reward less the mean of the *other* "
    "rewards of its group (RLOO).",
    write_leave_one_out, reward_cases, (
        Mistake("itself included", "the reward itself is in its baseline: this is the group's "
                "mean, (G - 1) / G times what is asked.", "lesson 03, section 5"),
        Mistake("divided by G", "there are G - 1 others, and you divide their sum by G.",
                "lesson 03, section 5"),
        Mistake("sum of the others", "this subtracts the sum of the others; their mean is wanted.",
                "lesson 03, section 5"),
        Mistake("others of the batch", "the others are those of the same group, not of the batch.",
                "lesson 03, section 5"),
        Mistake("sign", "the sign is wrong: better than the others must be above 0.",
                "lesson 03, section 1")),
    '''def leave_one_out(rewards):
    others = rewards.shape[1] - 1
    return rewards - (rewards.sum(1, keepdim=True) - rewards) / others''')


def write_informative(faults: Faults):
    def informative_share(p, group_size):
        size = group_size - 1 if "one less" in faults else group_size
        all_right, all_wrong = p**size, (1 - p) ** size
        if "only all wrong" in faults:
            all_right = 0.0
        if "only all right" in faults:
            all_wrong = 0.0
        if "the silent ones" in faults:
            return all_right + all_wrong
        return 1 - all_right - all_wrong

    return informative_share


def share_cases():
    for p, size in ((0.5, 2), (0.25, 2), (0.1, 4), (0.9, 8), (0.0, 4), (1.0, 3), (0.12, 16)):
        yield f"p = {p}, G = {size}", (p, size)


INFORMATIVE_SHARE = Exercise(
    "informative_share", "03",
    "Write informative_share(p, group_size) -> float: how often a group of so many answers, each "
    "right with chance p, is neither all right nor all wrong.",
    write_informative, share_cases, (
        Mistake("only all wrong", "a group that is all right teaches nothing either.",
                "lesson 03, section 3"),
        Mistake("only all right", "a group that is all wrong teaches nothing either.",
                "lesson 03, section 3"),
        Mistake("the silent ones", "this is the share of groups that teach nothing.",
                "lesson 03, section 3"),
        Mistake("one less", "there are G answers in a group, not G - 1.", "lesson 03, section 3")),
    '''def informative_share(p, group_size):
    return 1 - p**group_size - (1 - p) ** group_size''')

EXERCISES = (GROUP_ADVANTAGES, LEAVE_ONE_OUT, INFORMATIVE_SHARE)
