"""No wrong answer is called right, no right one wrong, and attempted work is seen as such."""

import decimal
import fractions
import inspect
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from grpo_lib.course.exercises import EXERCISES, Exercise, Question, check

FUNCTIONS = {name: e for name, e in EXERCISES.items() if isinstance(e, Exercise)}
# Arguments that the right answer does not depend on.
UNUSED = {("sequence_mean", "max_length"), ("token_mean", "max_length"),
          ("accumulated_loss", "rows")}


# --- constants in place of arguments --------------------------------------------------------------

def numbers_and_texts():
    """Every argument of every exercise that is a number or a text."""
    for name, exercise in FUNCTIONS.items():
        [(_, first), *_] = exercise.cases()
        names = list(inspect.signature(exercise.reference).parameters)
        for place, value in enumerate(first):
            if isinstance(value, (int, float, str)) and (name, names[place]) not in UNUSED:
                yield pytest.param(exercise, place, id=f"{name}-{names[place]}")


@pytest.mark.parametrize(("exercise", "place"), [*numbers_and_texts()])
def test_the_first_cases_value_in_place_of_an_argument_is_not_right(exercise, place):
    [(_, first), *_] = exercise.cases()

    def constant(*arguments):
        return exercise.reference(*arguments[:place], first[place], *arguments[place + 1:])

    assert not exercise.check(constant)


def test_what_is_shown_of_a_constant_epsilon_was_judged_before():
    updates = EXERCISES["updates_of_a_batch"]
    verdict = updates.check(lambda *a: updates.reference(*a[:5], 0.1, a[6]))
    assert verdict.status == "wrong" and '"four rows, a wider clip"' in verdict.text


# --- verify ---------------------------------------------------------------------------------------

def after(completion):
    return completion.partition("=>")[2]


@pytest.mark.parametrize(("verify", "mistake"), [
    (lambda c, a: after(c).strip() == a, "other blanks"),
    (lambda c, a: after(c).lstrip() == a, "other blanks"),
    (lambda c, a: after(c).split() == [a], "other blanks"),
    (lambda c, a: after(c).replace(" ", "") == a, "other blanks"),
    (lambda c, a: int(after(c) if after(c).strip().isdigit() else -1) == int(a), "as a number"),
    (lambda c, a: after(c) == " 4", None),
])
def test_a_verifier_that_takes_more_than_one_blank_and_the_answer_is_wrong(verify, mistake):
    verdict = check.verify(verify)
    assert verdict.status == "wrong" and verdict.mistake == mistake


# --- half precision and complex numbers -----------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_hides_no_mistake(dtype):
    def no_epsilon(r):
        return ((r - r.mean(1, keepdim=True)) / r.std(1, keepdim=True)).nan_to_num().to(dtype)

    def divisor(values, mask, longest):
        return ((values * mask).sum(1) / (mask.sum(1) + 0.01)).mean().to(dtype)

    assert not check.group_advantages(no_epsilon) and not check.sequence_mean(divisor)


def test_a_right_answer_in_half_precision_is_too_coarse_where_it_rounds_and_right_where_not():
    right = FUNCTIONS["entropy"].reference
    verdict = check.entropy(lambda logits: right(logits).half())
    assert verdict.status == "error" and "torch.float16, which is too coarse" in verdict.text
    assert "allowed are float32 and float64" in verdict.text
    assert check.completion_mask(
        lambda *a: FUNCTIONS["completion_mask"].reference(*a).bfloat16())


def test_complex_numbers_are_refused_and_nothing_is_dropped(recwarn):
    right = FUNCTIONS["entropy"].reference
    for returned in (lambda x: right(x) + 5j, lambda x: (right(x) + 5j).numpy()):
        verdict = check.entropy(returned)
        assert verdict.status == "error" and "it returned complex numbers" in verdict.text
    assert not recwarn.list


# --- what may be returned -------------------------------------------------------------------------

def mean_by_item(values, mask, longest):
    return sum((v * m).item() for v, m in zip(values.flatten(), mask.flatten())) / mask.sum().item()


@pytest.mark.parametrize(("name", "function"), [
    ("importance_ratio", lambda a, b: [torch.exp(x - y) for x, y in zip(a, b)]),
    ("importance_ratio", lambda a, b: np.exp(a.numpy() - b.numpy())),
    ("k3", lambda a, b: [(y - x).exp() - (y - x) - 1 for x, y in zip(a, b)]),
    ("token_mean", mean_by_item),
    ("token_mean", lambda v, m, n: np.average(v.numpy(), weights=m.numpy())),
    ("constant", lambda v, m, n: float((v * m).sum()) / (len(m) * n)),
    ("clipped_surrogate", lambda r, a, e: np.minimum(
        r.numpy() * a.numpy(), r.numpy().clip(1 - e, 1 + e) * a.numpy())),
    ("accumulated_loss", lambda v, m, rows: float((v * m).sum() / m.sum())),
    ("founding_loss", lambda *a: FUNCTIONS["founding_loss"].reference(*a).item()),
])
def test_lists_arrays_and_floats_are_right_also_where_a_gradient_is_looked_at(name, function):
    verdict = FUNCTIONS[name].check(function)
    assert verdict.status == "right", verdict
    plain = isinstance(function(*next(iter(FUNCTIONS[name].cases()))[1]), list)
    assert ("No gradient passes through it" in verdict.text) == (not plain)


def test_where_the_task_asks_for_a_gradient_it_has_to_be_there():
    for name in ("k3", "grpo_loss"):
        assert "Its gradient counts" in EXERCISES[name].task
        reference = FUNCTIONS[name].reference
        assert not check.__getattr__(name)(
            lambda *a, reference=reference: reference(*a).detach())
    assert {n for n, e in FUNCTIONS.items() if e.gradient_asked} == {"k3", "grpo_loss"}


def test_a_wrong_gradient_is_wrong_though_the_task_does_not_ask_for_one():
    verdict = check.importance_ratio(
        lambda a, b: (a.detach() - b).exp() * (1 + a - a.detach()) ** 2)
    assert verdict.status == "wrong" and "its gradient is not" in verdict.text


@pytest.mark.parametrize("name", ["token_mean", "sequence_mean"])
def test_an_argument_may_be_changed_in_place(name):
    def changes(values, mask, longest):
        values *= mask
        return FUNCTIONS[name].reference(values, mask, longest)

    verdict = FUNCTIONS[name].check(changes)
    assert verdict and "changes its argument 1" in verdict.text


def test_a_log_prob_may_be_changed_in_place():
    def changes(log_probs, old):
        log_probs -= old
        return log_probs.exp()

    verdict = check.importance_ratio(changes)
    assert verdict and "changes its argument 1" in verdict.text
    assert "No gradient" not in verdict.text


def reversed_gae(rewards, values, gamma, lam):
    found, later, after_it = [], 0.0, 0.0
    for r, v in zip(rewards.tolist()[::-1], values.tolist()[::-1]):
        later, after_it = r + gamma * after_it - v + gamma * lam * later, v
        found.append(later)
    return np.array(found)[::-1]


@pytest.mark.parametrize(("name", "function"), [
    ("gae", reversed_gae),
    ("gae", lambda *a: reversed_gae(*a).astype(">f8")),
    ("gae", lambda *a: reversed_gae(*a).astype(np.longdouble)),
    ("gae", lambda *a: list(map(fractions.Fraction, reversed_gae(*a)))),
    ("gae", lambda *a: np.array(list(map(decimal.Decimal, reversed_gae(*a))))),
    ("pass_at_k", lambda n, c, k: 1 - fractions.Fraction(math.comb(n - c, k), math.comb(n, k))),
    ("pass_at_k", lambda n, c, k: 1 - decimal.Decimal(math.comb(n - c, k)) / math.comb(n, k)),
    ("pass_at_k", lambda n, c, k: np.longdouble(1) - np.longdouble(math.comb(n - c, k))
     / math.comb(n, k)),
    ("completion_mask", lambda *a: FUNCTIONS["completion_mask"].reference(*a).numpy().astype(
        np.uint16)),
    ("completion_mask", lambda *a: FUNCTIONS["completion_mask"].reference(*a).numpy() == 1),
    ("entropy", lambda x: FUNCTIONS["entropy"].reference(x).to_sparse()
     if x.dim() > 1 else FUNCTIONS["entropy"].reference(x)),
])
def test_numbers_of_any_type_are_numbers(name, function):
    assert FUNCTIONS[name].check(function), FUNCTIONS[name].check(function)


@pytest.mark.parametrize("number", [
    np.float32, np.float64, np.longdouble, fractions.Fraction, decimal.Decimal, np.array,
    lambda x: np.array([x]), torch.tensor])
def test_a_prediction_may_be_a_number_of_any_type(number):
    for question in [e for e in EXERCISES.values() if isinstance(e, Question)]:
        assert question.check(number(question.answer)), question.name
    assert check.gradient_steps(np.int64(8)) and check.weight_of_a_token(fractions.Fraction(1, 16))


@pytest.mark.parametrize("value", [np.bool_(True), 1j, np.array("1"), decimal.Decimal("nan"),
                                   np.array([1.0, 2.0]), torch.tensor(True), b"1"])
def test_what_is_no_number_is_no_prediction(value):
    assert check.weight_of_a_token(value).status == "error"


@pytest.mark.parametrize("small", [1e-6, 1e-8])
def test_a_small_number_in_the_divisor_is_no_mistake(small):
    def mean(values, mask, longest):
        return ((values * mask).sum(1) / (mask.sum(1) + small)).mean()

    def loss(lp, old, a, mask, epsilon):
        ratio = (lp - old).exp()
        gain = torch.min(ratio * a[:, None], ratio.clamp(1 - epsilon, 1 + epsilon) * a[:, None])
        return -((gain * mask).sum(1) / (mask.sum(1) + small)).mean()

    assert check.sequence_mean(mean), check.sequence_mean(mean)
    assert check.grpo_loss(loss), check.grpo_loss(loss)
    assert check.token_mean(lambda v, m, n: (v * m).sum() / (m.sum() + small))


# --- attempted or not -----------------------------------------------------------------------------

def no_return_of_advantages(rewards):
    advantages = rewards - rewards.mean(1, keepdim=True)
    advantages = advantages / (rewards.std(1, keepdim=True) + 1e-4)


def no_return_of_loss(policy, optimizer, tokens, advantages):
    loss = -policy(tokens).log_softmax(-1).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def true_or_nothing(completion, answer):
    if completion.partition("=>")[2] == f" {answer}":
        return True


@pytest.mark.parametrize(("name", "function"), [
    ("group_advantages", no_return_of_advantages), ("train_step", no_return_of_loss),
    ("verify", true_or_nothing)])
def test_a_forgotten_return_is_said(name, function):
    verdict = FUNCTIONS[name].check(function)
    assert verdict.status == "error"
    assert "it returned None on the case" in verdict.text and "`return` missing?" in verdict.text


def only_a_docstring(rewards):
    """Advantages."""


def only_pass(rewards):
    pass


def only_a_constant(rewards):
    return ...


@pytest.mark.parametrize("empty", [only_a_docstring, only_pass, only_a_constant])
def test_an_empty_function_is_not_attempted(empty):
    assert check.group_advantages(empty).status == "not attempted"


@pytest.mark.parametrize("function", [
    lambda logits, tokens: tokens.log_softmax(-1),
    lambda logits, tokens: logits.to("meta"),
    lambda logits, tokens: logits.to("meta").cpu()])
def test_what_torch_has_not_implemented_was_attempted(function):
    verdict = check.shifted_log_probs(function)
    assert verdict.status == "error" and "not attempted" not in verdict.text


# --- common spellings of known mistakes -----------------------------------------------------------

def columns(r, **options):
    return dict(dim=0, keepdim=True, **options)


def first_end(tokens, prompt_length, eos_id):
    is_eos = (tokens[:, prompt_length:] == eos_id).long()
    return torch.arange(is_eos.shape[1]) <= is_eos.argmax(1, keepdim=True)


def cross_entropy(logits, tokens):
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")


def scored(logits, tokens):
    return logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)


def loss_of(gain_of, divisor=lambda mask: mask.sum(1)):
    def loss(lp, old, a, mask, epsilon):
        ratio, a = (lp - old).exp(), a[:, None]
        gain = gain_of(ratio, ratio.clamp(1 - epsilon, 1 + epsilon), a)
        return -((gain * mask).sum(1) / divisor(mask)).mean()

    return loss


@pytest.mark.parametrize(("name", "function", "mistake"), [
    ("group_advantages", lambda r: (r - r.mean()) / (r.std() + 1e-4), "mean and std of the batch"),
    ("group_advantages", lambda r: (r - r.mean(0)) / (r.std(0) + 1e-4), "mean over prompts"),
    ("shifted_log_probs", scored, "not shifted"),
    ("shifted_log_probs", lambda x, t: scored(x[:, :-1], t[:, :-1]), "not shifted"),
    ("shifted_log_probs", cross_entropy, "sign"),
    ("completion_mask", first_end, "first of none"),
    ("completion_mask", lambda t, p, e: (t[:, p:] != 0).long(), "padding by its value"),
    ("importance_ratio", lambda a, b: (a - b).mean(-1, keepdim=True).exp().expand_as(a),
     "of the row"),
    ("importance_ratio", lambda a, b: (a - a).exp(), "old with gradient"),
    ("importance_ratio", lambda a, b: (a - a.detach()).exp(), "old with gradient"),
    ("sequence_mean", lambda v, m, n: ((v * m).sum(1) / m.sum(1)).nanmean(),
     "empty rows left out"),
    ("sequence_mean", lambda v, m, n: ((v * m).sum(1) / m.sum(1)).nan_to_num().mean(),
     "nan gradient"),
    ("grpo_loss", loss_of(lambda r, c, a: r * a), "never clipped"),
    ("grpo_loss", loss_of(lambda r, c, a: c * a), "no minimum"),
    ("grpo_loss", loss_of(lambda r, c, a: torch.min(r * a, c * a), lambda m: m.shape[1]),
     "padded divisor"),
    ("distribution", lambda x, t: x.softmax(-1), "no temperature"),
])
def test_common_spellings_of_a_mistake_are_known(name, function, mistake):
    assert FUNCTIONS[name].check(function).mistake == mistake


def test_a_ratio_without_its_gradient_is_told_so():
    verdict = check.importance_ratio(lambda a, b: (a - b).exp().detach())
    assert verdict and "No gradient passes through it" in verdict.text


@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32"])
@pytest.mark.parametrize(("scale", "mistake"), [
    (lambda s: s + 1e-5, "smaller epsilon"), (lambda s: s + 1e-6, "smaller epsilon"),
    (lambda s: s + 1e-8, "smaller epsilon"), (lambda s: s.clamp(min=1e-4), "epsilon elsewhere"),
    (lambda s: torch.where(s == 0, 1.0, s), "smaller epsilon"),
    (lambda s: (s**2 + 1e-8).sqrt(), "epsilon elsewhere")])
def test_an_epsilon_is_told_by_what_it_does(scale, mistake, single):
    def advantages(r):
        r = r.float() if single else r
        return (r - r.mean(1, keepdim=True)) / scale(r.std(1, keepdim=True))

    verdict = check.group_advantages(advantages)
    assert (verdict.status, verdict.mistake) == ("another choice", mistake)


@pytest.mark.parametrize(("exercise", "mistake", "way"), [
    pytest.param(e, m, way, id=f"{e.name}-{m.name.replace(' ', '_')}-{number}")
    for e in FUNCTIONS.values() for m in e.mistakes for number, way in enumerate(m.ways)])
def test_every_way_of_a_mistake_is_named_by_it(exercise, mistake, way):
    assert exercise.check(exercise.version(way)).mistake == mistake.name


# --- numbers in the counterexample ----------------------------------------------------------------

def shown(verdict):
    """The counterexample's lines, by their first word."""
    return {line.split()[0]: line.split(None, 1)[1] for line in verdict.text.splitlines()
            if line.startswith("  ")}


@pytest.mark.parametrize(("name", "fault", "place"), [
    ("dr_grpo_row", "std kept", "advantage [0]"), ("dr_grpo_row", "token mean", "loss"),
    ("train_step", "uphill", "loss"), ("train_step", "gradients pile up", "weight ["),
    ("whole_run", "sign", "policy [")])
def test_of_many_numbers_the_first_that_differs_is_shown_with_its_name(name, fault, place):
    exercise = FUNCTIONS[name]
    lines = shown(exercise.check(exercise.wrong(fault)))
    assert lines["where"].startswith(place) and "first number that differs" in lines["where"]
    assert abs(float(lines["yours"]) - float(lines["right"])) > 1e-9


def test_what_is_given_is_one_line():
    for exercise in FUNCTIONS.values():
        verdict = exercise.check(exercise.wrong(exercise.mistakes[-1].name))
        for line in verdict.text.splitlines():
            assert "0x" not in line and "Parameter" not in line
    step = FUNCTIONS["train_step"]
    given = shown(step.check(step.wrong("uphill")))["given"]
    assert given == "Bigram(), SGD(lr=0.5), [[0, 1, 2]], [1.0]"
