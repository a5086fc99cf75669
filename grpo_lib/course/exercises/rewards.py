"""Lesson 02: a verifier, pass@k."""

from __future__ import annotations

import math
import re

from grpo_lib.course.exercises.base import Exercise, Faults, Mistake


def write_verifier(faults: Faults):
    def verify(completion, answer):
        digits = re.findall("[0-9]", completion)
        after = completion.partition("=>")[2]
        if {"the last arrow", "the last arrow, blanks forgiven"} & faults:
            after = completion.rpartition("=>")[2] if "=>" in completion else ""
        if {"other blanks", "the last arrow, blanks forgiven"} & faults:
            return after.strip() == answer
        if "leading blanks" in faults:
            return after.lstrip() == answer
        if "trailing blanks" in faults:
            return after.startswith(" ") and after[1:].strip() == answer
        if "words" in faults:
            return after.split() == [answer]
        if "blanks taken out" in faults:
            return after.replace(" ", "") == answer
        if "as a number" in faults:
            return int(after if after.strip().isdigit() else -1) == int(answer)
        if "anywhere" in faults:
            return answer in completion
        if "the last digit" in faults:
            return digits[-1:] == [answer]
        if "the first digit" in faults:
            return digits[:1] == [answer]
        if "whatever follows" in faults:
            return re.findall("[0-9]", after)[:1] == [answer]
        if "one of many" in faults:
            return answer in after.split()
        if "part of the answer" in faults:
            return after.strip() in answer
        return after == f" {answer}"

    return verify


def verifier_cases():
    for name, text in (("right", "=> 4"), ("wrong", "=> 7"), ("nothing", ""),
                       ("the working alone", "s1=4"), ("no arrow", "4"), ("two answers", "=> 7 4"),
                       ("right, and more", "=> 4 7"), ("an empty answer", "=> "),
                       ("corrected afterwards", "=> 7 => 4"), ("right after working", "s1=9 => 4"),
                       ("wrong after right working", "s1=4 => 7"), ("working with 4", "s4=2 => 7"),
                       ("right, with the 4 first", "4 => 4"), ("the arrow alone", "=>")):
        yield f"{name}: {text!r}", (text, "4")
    for name, text, answer in (("another answer", "=> 7", "7"), ("not this one", "=> 4", "7"),
                               ("no blank", "=>4", "4"), ("two blanks", "=>  8", "8"),
                               ("a blank behind", "=> 4 ", "4"), ("a line break", "=> 9\n", "9"),
                               ("a zero before", "=> 04", "4"), ("nought", "s1=3 => 0", "0")):
        yield f"{name}: {text!r} for {answer!r}", (text, answer)


VERIFIER = Exercise(
    "verify", "02",
    "Write verify(completion, answer) -> bool: true if the text after the first => is one blank "
    "and the answer (a digit), and nothing else.",
    write_verifier, verifier_cases, (
        Mistake("anywhere", "the digit counts anywhere in the text, in the working too; a policy "
                "that writes all ten digits is always right.", "lesson 02, section 2"),
        Mistake("the last digit", "you look at the last digit of the text, whether or not an "
                "answer was marked, and let a wrong answer be corrected.", "lesson 02, section 2"),
        Mistake("the first digit", "you look at the first digit of the text, which in a worked "
                "answer belongs to the working.", "lesson 02, section 2"),
        Mistake("whatever follows", "anything may follow the digit: \"=> 4 7\" passes.",
                "lesson 02, section 2"),
        Mistake("one of many", "one of several answers may be right: naming all ten always is.",
                "lesson 02, section 2"),
        Mistake("part of the answer", "you ask whether the text is in the answer; an empty text "
                "always is.", "lesson 02, section 2"),
        Mistake("the last arrow", "you take what follows the last =>, so that a wrong answer can "
                "be followed by another.", "lesson 02, section 2",
                ways=("the last arrow, blanks forgiven",)),
        Mistake("other blanks", "one blank is asked for, and nothing else: yours also takes an "
                "answer without it, or with more white space around it.", "lesson 02, section 2",
                ways=("leading blanks", "trailing blanks", "words",
                      "blanks taken out")),
        Mistake("as a number", "you compare numbers; the text counts: \"=> 04\" is not \"=> 4\".",
                "lesson 02, section 2")),
    '''def verify(completion, answer):
    return completion.partition("=>")[2] == f" {answer}"''')


def write_pass_at_k(faults: Faults):
    def pass_at_k(samples, right, k):
        share = right / samples
        if "with replacement" in faults:
            chance = 1 - (1 - share) ** k
        elif "k times" in faults:
            chance = min(1.0, k * share)
        elif "pass@1" in faults:
            chance = share
        elif "all of them" in faults:
            chance = math.comb(right, k) / math.comb(samples, k)
        elif "any at all" in faults:
            chance = float(right > 0)
        else:
            chance = 1 - math.comb(samples - right, k) / math.comb(samples, k)
        return 1 - chance if "none of them" in faults else chance

    return pass_at_k


def pass_at_k_cases():
    for arguments in ((2, 1, 1), (2, 1, 2), (4, 1, 2), (4, 2, 2), (10, 4, 3), (5, 0, 2), (6, 6, 4),
                      (20, 1, 10)):
        yield "{} samples, {} right, k = {}".format(*arguments), arguments


PASS_AT_K = Exercise(
    "pass_at_k", "02",
    "Write pass_at_k(samples, right, k) -> float: the chance that k of the samples, drawn without "
    "replacement, hold a right one (2107.03374).",
    write_pass_at_k, pass_at_k_cases, (
        Mistake("with replacement", "1 - (1 - c/n)^k draws with replacement and takes c/n for the "
                "truth: too low on average.", "lesson 02, section 4"),
        Mistake("k times", "k times the share counts draws that hold two right ones twice.",
                "lesson 02, section 4"),
        Mistake("pass@1", "this is pass@1, whatever k is.", "lesson 02, section 4"),
        Mistake("all of them", "this is the chance that all k are right.", "lesson 02, section 4"),
        Mistake("none of them", "this is the chance that none is right: 1 minus it is wanted.",
                "lesson 02, section 4"),
        Mistake("any at all", "this is pass@n: all samples count, and k does not.",
                "lesson 02, section 4")),
    '''import math


def pass_at_k(samples, right, k):
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)''')

EXERCISES = (VERIFIER, PASS_AT_K)
