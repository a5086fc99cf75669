"""Lesson 02: a verifier, pass@k."""

from __future__ import annotations

from grpo_lib.course.exercises.base import Exercise, Mistake


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
    "verify", "02", "lesson 02, section 2",
    "Write verify(completion, answer) -> bool: true if the text after the first => is one "
    "blank, then the answer (a digit), and nothing else.",
    '''def verify(completion, answer):
    return completion.partition("=>")[2] == f" {answer}"''',
    verifier_cases, (
        Mistake("anywhere", "the digit counts anywhere in the text, in the working too; a policy "
                "that writes all ten digits is always right.",
                ('completion.partition("=>")[2] == f" {answer}"', "answer in completion")),
        Mistake("the last digit", "you look at the last digit of the text, whether or not an "
                "answer was marked, and let a wrong answer be corrected.",
                ('completion.partition("=>")[2] == f" {answer}"',
                 're.findall("[0-9]", completion)[-1:] == [answer]')),
        Mistake("the first digit", "you look at the first digit of the text, which in a worked "
                "answer belongs to the working.",
                ('completion.partition("=>")[2] == f" {answer}"',
                 're.findall("[0-9]", completion)[:1] == [answer]')),
        Mistake("whatever follows", 'anything may follow the digit: "=> 4 7" passes.',
                (("return ", 'return re.findall("[0-9]", '),
                 ('[2] == f" {answer}"', "[2])[:1] == [answer]"))),
        Mistake("one of many", "one of several answers may be right: naming all ten always is.",
                (("return ", "return answer in "), (' == f" {answer}"', ".split()"))),
        Mistake("part of the answer", "you ask whether the text is in the answer; an empty text "
                "always is.", (' == f" {answer}"', ".strip() in answer")),
        Mistake("the last arrow", "you take what follows the last =>, so that a wrong answer can "
                "be followed by another.", ("partition", "rpartition"),
                ways=((("return ", 'return "=>" in completion and '), ("partition", "rpartition"),
                       (' == f" {answer}"', ".strip() == answer")),)),
        Mistake("other blanks", "one blank is asked for, and nothing else: yours also takes an "
                "answer without it, or with more white space around it.",
                (' == f" {answer}"', ".strip() == answer"),
                ways=((' == f" {answer}"', ".lstrip() == answer"),
                      (('"=>"', '"=> "'), (' == f" {answer}"', ".strip() == answer")),
                      (' == f" {answer}"', ".split() == [answer]"),
                      (' == f" {answer}"', '.replace(" ", "") == answer'))),
        Mistake("as a number", 'you compare numbers; the text counts: "=> 04" is not "=> 4".',
                (' == f" {answer}"', ".strip().zfill(9) == answer.zfill(9)"))))


def pass_at_k_cases():
    for arguments in ((2, 1, 1), (2, 1, 2), (4, 1, 2), (4, 2, 2), (10, 4, 3), (5, 0, 2), (6, 6, 4),
                      (20, 1, 10)):
        yield "{} samples, {} right, k = {}".format(*arguments), arguments


PASS_AT_K = Exercise(
    "pass_at_k", "02", "lesson 02, section 4",
    "Write pass_at_k(samples, right, k) -> float: the chance that k of the samples, drawn "
    "without replacement, contain a right one (2107.03374).",
    '''import math


def pass_at_k(samples, right, k):
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)''',
    pass_at_k_cases, (
        Mistake("with replacement", "1 - (1 - c/n)^k draws with replacement and takes c/n for the "
                "truth: too low on average.",
                ("math.comb(samples - right, k) / math.comb(samples, k)",
                 "(1 - right / samples) ** k")),
        Mistake("k times", "k times the share counts draws that hold two right ones twice.",
                ("1 - math.comb(samples - right, k) / math.comb(samples, k)",
                 "min(1.0, k * right / samples)")),
        Mistake("pass@1", "this is pass@1, whatever k is.",
                ("1 - math.comb(samples - right, k) / math.comb(samples, k)", "right / samples")),
        Mistake("all of them", "this is the chance that all k are right.",
                ("1 - math.comb(samples - right, k)", "math.comb(right, k)")),
        Mistake("none of them", "this is the chance that none is right: 1 minus it is wanted.",
                ("return 1 - ", "return ")),
        Mistake("any at all", "this is pass@n: all samples count, and k does not.",
                ("1 - math.comb(samples - right, k) / math.comb(samples, k)", "float(right > 0)"))))

EXERCISES = (VERIFIER, PASS_AT_K)
