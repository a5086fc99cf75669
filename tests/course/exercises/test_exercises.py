"""Every named mistake is recognised, every right way of writing passes, and a learner's function
may do what it likes."""

import contextlib
import copy
import functools
import itertools
import math
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from waiting import PATIENCE

import grpo_lib
from grpo_lib.algorithms import ALGORITHMS, Algorithm
from grpo_lib.course import exercises
from grpo_lib.course.exercises import (
    EXERCISES,
    CurveQuestion,
    Exercise,
    Mistake,
    Question,
    Repair,
    check,
)
from grpo_lib.course.exercises import curves as quiz
from grpo_lib.course.exercises.comparing import Answer, alike
from grpo_lib.course.exercises.running import limited
from grpo_lib.objective import surrogate_gradient, token_weights

ROOT = Path(__file__).parents[3]
FUNCTIONS = {name: e for name, e in EXERCISES.items() if isinstance(e, Exercise)}
CURVES = [e for e in EXERCISES.values() if isinstance(e, CurveQuestion)]
QUESTIONS = [e for e in EXERCISES.values() if isinstance(e, Question)]
MISTAKES = [(e, m) for e in FUNCTIONS.values() for m in e.mistakes]
# Two faults that cancel to the reference's own output, for every input: none is known.
CANCEL: set[tuple[str, str, str]] = set()


# --- right ways of writing each: loops, another library's idiom ----------------------------------

def log_probs_by_loop(logits, tokens):
    return [[math.log(math.exp(logits[b, t - 1, tokens[b, t]])
                      / sum(math.exp(x) for x in logits[b, t - 1].tolist()))
             for t in range(1, tokens.shape[1])] for b in range(len(tokens))]


def log_probs_by_cross_entropy(logits, tokens):
    return -F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")


def mask_by_loop(tokens, prompt_length, eos_id):
    rows = []
    for row in tokens.tolist():
        counts, ended = [], False
        for token in row[prompt_length:]:
            counts.append(0 if ended else 1)
            ended = ended or token == eos_id
        rows.append(counts)
    return rows


def mask_as_trl_has_it(tokens, prompt_length, eos_id):
    is_eos = tokens[:, prompt_length:] == eos_id
    first = torch.full((len(tokens),), is_eos.shape[1])
    first[is_eos.any(1)] = is_eos.int().argmax(1)[is_eos.any(1)]
    return torch.arange(is_eos.shape[1]).expand(len(tokens), -1) <= first[:, None]


def entropy_by_loop(logits):
    rows = logits.reshape(-1, logits.shape[-1]).tolist()
    values = []
    for row in rows:
        total = sum(map(math.exp, row))
        values.append(-sum(math.exp(x) / total * math.log(math.exp(x) / total) for x in row))
    return torch.tensor(values, dtype=torch.float64).reshape(logits.shape[:-1])


def distribution_by_numpy(logits, temperature):
    scores = np.exp(logits.numpy() / temperature)
    return scores / scores.sum(-1, keepdims=True)


def distribution_by_loop(logits, temperature):
    rows = [[math.exp(x / temperature) for x in row]
            for row in logits.reshape(-1, logits.shape[-1]).tolist()]
    return torch.tensor([[x / sum(row) for x in row] for row in rows],
                        dtype=torch.float64).reshape(logits.shape)


def verify_by_pattern(completion, answer):
    return bool(re.fullmatch(rf"(?:(?!=>).)*=> {answer}", completion))


def verify_by_splitting(completion, answer):
    parts = completion.split("=>", 1)
    return len(parts) == 2 and parts[1] == " " + answer


def pass_at_k_by_subsets(samples, right, k):
    answers = [i < right for i in range(samples)]
    subsets = list(itertools.combinations(answers, k)) if math.comb(samples, k) < 2000 else None
    if subsets is None:  # 2107.03374's own product
        return 1 - math.prod(1 - k / n for n in range(samples - right + 1, samples + 1))
    return sum(map(any, subsets)) / len(subsets)


def pass_at_k_by_the_papers_product(samples, right, k):
    if samples - right < k:
        return 1.0
    return 1.0 - np.prod(1.0 - k / np.arange(samples - right + 1, samples + 1))


def advantages_by_loop(rewards):
    rows = []
    for row in rewards.tolist():
        mean = sum(row) / len(row)
        std = math.sqrt(sum((r - mean) ** 2 for r in row) / (len(row) - 1))
        rows.append([(r - mean) / (std + 1e-4) for r in row])
    return rows


def advantages_by_numpy(rewards):
    r = rewards.numpy()
    return (r - r.mean(1, keepdims=True)) / (r.std(1, keepdims=True, ddof=1) + 1e-4)


def leave_one_out_by_loop(rewards):
    return [[r - sum(row[:i] + row[i + 1:]) / (len(row) - 1) for i, r in enumerate(row)]
            for row in rewards.tolist()]


def leave_one_out_by_factor(rewards):
    size = rewards.shape[1]
    return (rewards - rewards.mean(1, keepdim=True)) * size / (size - 1)


def informative_by_binomial(p, group_size):
    return sum(math.comb(group_size, c) * p**c * (1 - p) ** (group_size - c)
               for c in range(1, group_size))


def informative_by_tensors(p, group_size):
    p = torch.tensor(p, dtype=torch.float64)
    return 1 - p.pow(group_size) - (1 - p).pow(group_size)


def ratio_by_quotient(log_probs, old_log_probs):
    return log_probs.exp() / old_log_probs.exp()


def ratio_by_stacking(log_probs, old_log_probs):
    return torch.stack([torch.exp(a - b) for a, b in zip(log_probs.flatten(),
                                                         old_log_probs.flatten())]
                       ).view_as(log_probs)


def surrogate_by_where(ratio, advantages, epsilon):
    bound = torch.where(advantages > 0, 1 + epsilon, 1 - epsilon)
    held = torch.where(advantages > 0, torch.minimum(ratio, bound), torch.maximum(ratio, bound))
    return held * advantages


def surrogate_as_verl_has_it(ratio, advantages, epsilon):
    return -torch.maximum(-advantages * ratio,
                          -advantages * torch.clamp(ratio, 1 - epsilon, 1 + epsilon))


def clip_fraction_by_loop(ratio, advantages, mask, epsilon):
    blocked = total = 0
    for r, (a,), m in zip(ratio.tolist(), advantages.tolist(), mask.tolist()):
        for value, keep in zip(r, m):
            total += keep
            blocked += keep and ((a < 0 and value < 1 - epsilon) or (a > 0 and value > 1 + epsilon))
    return blocked / total


def clip_fraction_as_verl_has_it(ratio, advantages, mask, epsilon):
    first, second = -advantages * ratio, -advantages * ratio.clamp(1 - epsilon, 1 + epsilon)
    return ((second > first).double() * mask).sum() / mask.sum()


def k3_by_expm1(log_probs, ref_log_probs):
    d = ref_log_probs - log_probs
    return torch.expm1(d) - d


def k3_by_ratio(log_probs, ref_log_probs):
    r = ref_log_probs.exp() / log_probs.exp()
    return r - 1 - r.log()


def divergence_by_torch(logits, ref_logits):
    return F.kl_div(ref_logits.log_softmax(-1), logits.log_softmax(-1), log_target=True,
                    reduction="none").sum(-1)


def divergence_by_distributions(logits, ref_logits):
    Categorical = torch.distributions.Categorical
    return torch.distributions.kl_divergence(Categorical(logits=logits),
                                             Categorical(logits=ref_logits))


def sequence_mean_by_loop(values, mask, max_length):
    rows = [sum(v for v, m in zip(row, keep) if m) / max(1, sum(keep))
            for row, keep in zip(values, mask.tolist())]
    return sum(rows) / len(rows)


def sequence_mean_by_einsum(values, mask, max_length):
    weights = mask / mask.sum(1, keepdim=True).clamp(min=1) / len(mask)
    return torch.einsum("bt,bt->", values, weights)


def token_mean_by_selection(values, mask, max_length):
    return values[mask > 0].mean()


def token_mean_by_loop(values, mask, max_length):
    kept = [v for row, keep in zip(values, mask) for v, m in zip(row, keep) if m]
    return sum(kept) / len(kept)


def constant_by_loop(values, mask, max_length):
    return sum(sum(row * keep) / max_length for row, keep in zip(values, mask)) / len(values)


def constant_by_where(values, mask, max_length):
    return torch.where(mask > 0, values, 0.0).sum(1).mean() / max_length


def loss_by_rows(log_probs, old_log_probs, advantages, mask, epsilon):
    total = 0.0
    for lp, old, a, m in zip(log_probs, old_log_probs, advantages, mask):
        ratio = torch.exp(lp - old)[m > 0]
        total = total - torch.min(ratio * a, ratio.clamp(1 - epsilon, 1 + epsilon) * a).mean()
    return total / len(mask)


def loss_as_trl_has_it(log_probs, old_log_probs, advantages, mask, epsilon):
    coef_1 = torch.exp(log_probs - old_log_probs)
    coef_2 = torch.clamp(coef_1, 1 - epsilon, 1 + epsilon)
    per_token = -torch.min(coef_1 * advantages.unsqueeze(1), coef_2 * advantages.unsqueeze(1))
    return ((per_token * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()


def gae_by_double_sum(rewards, values, gamma, lam):
    after = torch.cat((values[1:], values.new_zeros(1)))
    delta = rewards + gamma * after - values
    return [sum((gamma * lam) ** k * delta[t + k] for k in range(len(delta) - t))
            for t in range(len(delta))]


def gae_by_matrix(rewards, values, gamma, lam):
    n = len(rewards)
    delta = rewards - values
    delta[:-1] = delta[:-1] + gamma * values[1:]
    steps = torch.arange(n)[None, :] - torch.arange(n)[:, None]
    powers = torch.where(steps >= 0, (gamma * lam) ** steps.clamp(min=0), 0.0)
    return powers.to(delta) @ delta


def row_by_name(start):
    return Algorithm(**{**start.differences(), "scale": "none", "aggregation": "constant"})


def row_of_the_table(start):
    return ALGORITHMS["dr_grpo"]


def step_by_autograd(policy, optimizer, tokens, advantages):
    optimizer.zero_grad()
    total = 0.0
    for row, a in zip(tokens, advantages):
        for t in range(1, len(row)):
            total = total - a * policy(row[None, :t])[0, -1].log_softmax(-1)[row[t]]
    loss = total / tokens[:, 1:].numel()
    loss.backward()
    optimizer.step()
    return loss.item()


def step_with_cross_entropy(policy, optimizer, tokens, advantages):
    losses = F.cross_entropy(policy(tokens)[:, :-1].transpose(1, 2), tokens[:, 1:],
                             reduction="none")
    loss = (losses * advantages[:, None]).mean()
    loss.backward()
    optimizer.step()
    policy.zero_grad()
    return loss.detach()


def founding_by_loop(logits, tokens, old_log_probs, advantages, mask, epsilon):
    total = 0.0
    for b, t in mask.nonzero().tolist():
        ratio = (logits[b, t].log_softmax(-1)[tokens[b, t + 1]] - old_log_probs[b, t]).exp()
        held = ratio.clamp(1 - epsilon, 1 + epsilon)
        total = total - torch.min(ratio * advantages[b], held * advantages[b])
    return total / int(mask.sum())


def founding_with_the_library(logits, tokens, old_log_probs, advantages, mask, epsilon):
    log_probs = grpo_lib.token_log_probs(logits[:, :-1], tokens[:, 1:])
    return grpo_lib.grpo_loss(log_probs, old_log_probs, advantages, mask, epsilon=epsilon,
                              aggregation="token_mean").loss


def log_probs_of(policy, tokens):
    return -F.cross_entropy(policy(tokens)[:, :-1].transpose(1, 2), tokens[:, 1:],
                            reduction="none")


def updates_with_a_copy(policy, optimizer, tokens, advantages, ref_log_probs, epsilon, updates):
    old, shares = copy.deepcopy(policy), []
    for _ in range(updates):
        with torch.no_grad():
            before = log_probs_of(old, tokens)
        ratio = torch.exp(log_probs_of(policy, tokens) - before)
        first = -advantages[:, None] * ratio
        second = -advantages[:, None] * ratio.clamp(1 - epsilon, 1 + epsilon)
        torch.maximum(first, second).mean().backward()
        optimizer.step()
        policy.zero_grad()
        shares.append((second > first).float().mean().item())
    return shares


def updates_with_the_library(policy, optimizer, tokens, advantages, ref_log_probs, epsilon,
                             updates):
    old, shares = log_probs_of(policy, tokens).detach(), []
    mask = torch.ones_like(old)
    for _ in range(updates):
        output = grpo_lib.grpo_loss(log_probs_of(policy, tokens), old, advantages, mask,
                                    epsilon=epsilon, aggregation="token_mean")
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        shares.append(output.stats["clip_fraction_low"] + output.stats["clip_fraction_high"])
    return shares


def leash_by_hand(logits, ref_logits, rewards, beta, learning_rate, steps):
    ref, found = ref_logits.softmax(-1), []
    for _ in range(steps):
        p = logits.softmax(-1)
        rise = p * (rewards - (p * rewards).sum()) - beta * (p - ref)  # k3's slope by the logits
        logits = logits + learning_rate * rise
        p = logits.softmax(-1)
        found.append((p * (p / ref).log()).sum())
    return found


def leash_with_an_optimizer(logits, ref_logits, rewards, beta, learning_rate, steps):
    logits, found = torch.nn.Parameter(logits.clone()), []
    optimizer, ref = torch.optim.SGD([logits], learning_rate), ref_logits.log_softmax(-1)
    for _ in range(steps):
        log_probs = logits.log_softmax(-1)
        weights = log_probs.exp().detach()
        k3 = grpo_lib.kl_estimate(log_probs, ref, "k3")
        loss = -(weights * (rewards - (weights * rewards).sum()) * log_probs).sum()
        optimizer.zero_grad()
        (loss + beta * (weights * k3).sum()).backward()
        optimizer.step()
        found.append(F.kl_div(ref, logits.detach().log_softmax(-1), reduction="sum",
                              log_target=True))
    return found


def accumulated_by_scaling(values, mask, rows):
    loss = 0.0
    for part, counts in zip(values.split(rows), mask.split(rows)):
        mean = (part * counts).sum() / counts.sum()
        loss = loss + mean * (counts.sum() / mask.sum())
    return loss


def run_by_hand(policy, optimizer, sample, reward, prompts, group_size, steps):
    found = []
    for _ in range(steps):
        tokens = sample(policy, prompts, group_size)
        rewards = reward(tokens)
        found.append(rewards.mean().item())
        policy.zero_grad()
        total, count = 0.0, 0
        for start in range(0, len(tokens), group_size):
            group = rewards[start : start + group_size]
            for row, r in zip(tokens[start : start + group_size], group):
                log_probs = log_probs_of(policy, row[None])[0]
                for t, word in enumerate(row[1:].tolist()):
                    advantage = (r - group.mean()) / (group.std() + 1e-4)
                    total, count = total - advantage * log_probs[t], count + 1
                    if word == 0:
                        break
        (total / count).backward()
        optimizer.step()
    return found


def run_with_the_library(policy, optimizer, sample, reward, prompts, group_size, steps):
    found = []
    for _ in range(steps):
        tokens = sample(policy, prompts, group_size)
        rewards = reward(tokens).view(len(prompts), group_size)
        mask = EXERCISES["completion_mask"].reference(tokens, 1, 0).double()
        advantages = grpo_lib.group_advantages(rewards).flatten()
        log_probs = log_probs_of(policy, tokens)
        loss = grpo_lib.grpo_loss(log_probs, log_probs.detach(), advantages, mask,
                                  aggregation="token_mean").loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(rewards.mean())
    return torch.stack(found)


RIGHT = {
    "founding_loss": (founding_by_loop, founding_with_the_library),
    "updates_of_a_batch": (updates_with_a_copy, updates_with_the_library),
    "leash": (leash_by_hand, leash_with_an_optimizer),
    "accumulated_loss": (accumulated_by_scaling, lambda values, mask, rows: (
        values * mask).sum() / mask.sum()),
    "whole_run": (run_by_hand, run_with_the_library),
    "shifted_log_probs": (log_probs_by_loop, log_probs_by_cross_entropy),
    "completion_mask": (mask_by_loop, mask_as_trl_has_it),
    "entropy": (entropy_by_loop, lambda logits: torch.distributions.Categorical(
        logits=logits).entropy()),
    "distribution": (distribution_by_numpy, distribution_by_loop),
    "verify": (verify_by_pattern, verify_by_splitting),
    "pass_at_k": (pass_at_k_by_subsets, pass_at_k_by_the_papers_product),
    "group_advantages": (advantages_by_loop, advantages_by_numpy),
    "leave_one_out": (leave_one_out_by_loop, leave_one_out_by_factor),
    "informative_share": (informative_by_binomial, informative_by_tensors),
    "importance_ratio": (ratio_by_quotient, ratio_by_stacking),
    "clipped_surrogate": (surrogate_by_where, surrogate_as_verl_has_it),
    "clip_fraction": (clip_fraction_by_loop, clip_fraction_as_verl_has_it),
    "k3": (k3_by_expm1, k3_by_ratio),
    "kl_divergence": (divergence_by_torch, divergence_by_distributions),
    "sequence_mean": (sequence_mean_by_loop, sequence_mean_by_einsum),
    "token_mean": (token_mean_by_selection, token_mean_by_loop),
    "constant": (constant_by_loop, constant_by_where),
    "grpo_loss": (loss_by_rows, loss_as_trl_has_it),
    "train_step": (step_by_autograd, step_with_cross_entropy),
    "gae": (gae_by_double_sum, gae_by_matrix),
    "dr_grpo_row": (row_by_name, row_of_the_table),
}


def solution_of(exercise):
    names = {}
    exec(exercise.solution, names)
    return names[exercise.name]


def test_every_exercise_has_right_ways_to_be_tried():
    assert RIGHT.keys() == FUNCTIONS.keys()
    assert len(MISTAKES) >= 60 and len(EXERCISES) >= 25
    assert {e.lesson for e in EXERCISES.values()} == {f"0{n}" for n in range(10)}


@pytest.mark.parametrize("exercise", FUNCTIONS.values(), ids=lambda e: e.name)
class TestRight:
    def test_three_ways_of_writing_it_pass(self, exercise):
        for function in (solution_of(exercise), *RIGHT[exercise.name]):
            verdict = exercise.check(function)
            assert verdict and verdict.status == "right", verdict

    def test_in_float32_too(self, exercise):
        for function in (solution_of(exercise), *RIGHT[exercise.name]):
            def single(*arguments, function=function):
                given = [a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
                         for a in arguments]
                return function(*given)

            assert exercise.check(single), exercise.check(single)


@pytest.mark.parametrize(("exercise", "mistake"), MISTAKES,
                         ids=[f"{e.name}-{m.name.replace(' ', '_')}" for e, m in MISTAKES])
def test_a_mistake_is_named(exercise, mistake):
    verdict = exercise.check(exercise.wrong(mistake.name))
    assert not verdict and verdict.mistake == mistake.name
    if isinstance(exercise, Repair) and exercise.faults == (mistake.name,):
        assert verdict.status == "not attempted" and mistake.says not in verdict.text
        return  # as the learner gets it: known, and not told
    assert verdict.status == ("another choice" if mistake.legitimate else "wrong")
    assert mistake.says in verdict.text and mistake.read in verdict.text
    assert "yours" in verdict.text and "right" in verdict.text


def together(exercise, a, b):
    """The solution with two mistakes in it; None where they change the same words."""
    for names in ((a, b), (b, a)):
        with contextlib.suppress(ValueError, SyntaxError):
            return exercise.wrong(*names)
    return None


@functools.cache
def real_pairs(name):
    """Pairs of mistakes that together do what neither does alone: of other pairs one hides the
    other, or they exclude each other."""
    exercise = FUNCTIONS[name]
    alone = {m.name: exercise.answers(exercise.wrong(m.name)) for m in exercise.mistakes}
    both = {(a, b): together(exercise, a, b) for a, b in itertools.combinations(alone, 2)}
    return [pair for pair, function in both.items() if function and not any(
        alike(exercise.answers(function), alone[one], exercise.rtol) for one in pair)]


@pytest.mark.parametrize("exercise", FUNCTIONS.values(), ids=lambda e: e.name)
def test_two_faults_are_never_called_right(exercise):
    assert real_pairs(exercise.name)
    for a, b in real_pairs(exercise.name):
        verdict = exercise.check(together(exercise, a, b))
        assert bool(verdict) == ((exercise.name, a, b) in CANCEL), (a, b)


def test_the_table(capsys):
    lines = [f"{'exercise':20}{'lesson':>7}{'cases':>7}{'mistakes':>10}{'named':>7}{'pairs':>7}"]
    for e in FUNCTIONS.values():
        named = sum(e.check(e.wrong(m.name)).mistake == m.name for m in e.mistakes)
        pairs = len(real_pairs(e.name))
        lines.append(f"{e.name:20}{e.lesson:>7}{len(list(e.cases())):7}{len(e.mistakes):10}"
                     f"{named:7}{pairs:7}")
        assert named == len(e.mistakes)
    count = sum(len(real_pairs(name)) for name in FUNCTIONS)
    lines.append(f"{len(MISTAKES)} mistakes, {count} pairs of them that do what neither does "
                 f"alone; pairs that cancel: {len(CANCEL)}")
    assert count >= 350
    with capsys.disabled():
        print("\n" + "\n".join(lines))


# --- mistakes as patches -------------------------------------------------------------------------

HALF = Exercise("half", "00", "lesson 00, section 1", "Write half(x) -> x / 2.",
                "def half(x):\n    return x / 2", lambda: [("one", (1.0,))], ())


def test_a_mistake_is_a_patch_of_the_solution():
    exercise = replace(HALF, mistakes=(
        Mistake("double", "it is doubled.", ("/ 2", "* 2")),
        Mistake("less one", "one less.", (("return ", "y = "), ("2", "2\n    return y - 1"))),
        Mistake("third", "a third.", ("/", "/ 1.5 /"), ways=(("2", "3"),),
                read="lesson 03, section 1")))
    assert exercise.reference(3.0) == 1.5 and exercise.wrong("double")(3.0) == 6.0
    assert exercise.wrong("less one")(3.0) == 0.5 and exercise.wrong("third", "less one")(3.0) == 0
    for double in (lambda x: x * 2, lambda x: x + x):
        verdict = exercise.check(double)
        assert verdict.mistake == "double" and "Read lesson 00, section 1." in verdict.text
    for third in (lambda x: x / 3, lambda x: x / 1.5 / 2):
        verdict = exercise.check(third)
        assert verdict.mistake == "third" and "Read lesson 03, section 1." in verdict.text


@pytest.mark.parametrize(("patch", "said"), [
    (("x * 2", "x"), "'x * 2' occurs 0 times, must occur exactly once"),
    (("x", "y"), "'x' occurs 2 times, must occur exactly once"),
    ((("/ 2", "/ 3"), ("/ 2", "/ 4")), "'/ 2' occurs 0 times, must occur exactly once"),
    (("/ 2", "/"), "invalid syntax"), (("half", "third"), "no half is defined"),
    ((), "there is no patch")])
def test_a_patch_that_does_not_fit_is_refused_when_the_exercise_is_built(patch, said):
    for mistake in (Mistake("third", "a third.", patch),
                    Mistake("third", "a third.", ("/ 2", "/ 3"), ways=(patch,))):
        with pytest.raises(ValueError, match=f"^half, mistake 'third': {re.escape(said)}"):
            replace(HALF, mistakes=(mistake,))


# --- what a learner's function may do ----------------------------------------------------------

EXAMPLE = EXERCISES["group_advantages"]


@pytest.mark.parametrize("empty", [lambda rewards: None, lambda rewards: ...,
                                   lambda rewards: NotImplemented])
def test_an_empty_function_is_not_attempted(empty):
    verdict = check.group_advantages(empty)
    assert verdict.status == "not attempted" and not verdict
    assert "not attempted yet" in str(verdict) and "library's" in str(verdict)


def test_a_function_that_says_so_itself_is_not_attempted():
    def unwritten(rewards):
        raise NotImplementedError("write me")

    assert check.group_advantages(unwritten).status == "not attempted"


def test_what_it_raises_is_said_with_its_line_and_without_a_trace():
    def broken(rewards):
        scale = 0
        return rewards / scale.real.missing

    verdict = check.group_advantages(broken)
    assert verdict.status == "error"
    assert "raised AttributeError" in verdict.text and "in line" in verdict.text
    assert "Traceback" not in verdict.text and '"two completions"' in verdict.text


def test_the_line_is_that_of_the_function_though_torch_stands_between():
    """Also where the gradient is taken, and where the error comes from deeper down."""
    for exercise in (EXAMPLE, EXERCISES["grpo_loss"], EXERCISES["train_step"]):
        names = {}
        exec(compile("def broken(*arguments):\n    import torch\n"
                     "    return torch.ones(2).view(3)", "cell-7", "exec"), names)
        assert "in line 3 of its cell" in exercise.check(names["broken"]).text
    assert "of its cell" not in EXAMPLE.check(torch.cat).text


def test_a_function_that_needs_a_gpu_is_told_where_it_runs():
    def on_a_gpu(rewards):
        raise RuntimeError("No CUDA GPUs are available")

    def plain(rewards):
        raise RuntimeError("boom")

    text = check.group_advantages(on_a_gpu).text
    assert "No CUDA GPUs" in text and "The arguments are on the CPU" in text
    assert "on the CPU" not in check.group_advantages(plain).text


@pytest.mark.parametrize("error", [SystemExit, MemoryError, GeneratorExit])
def test_even_leaving_python_is_caught(error):
    def leave(rewards):
        raise error("now")

    assert check.group_advantages(leave).status == "error"


def test_ctrl_c_is_not_swallowed():
    def interrupted(rewards):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check.group_advantages(interrupted)


def test_an_endless_loop_is_stopped_and_everything_works_afterwards():
    def endless(rewards):
        while True:
            with contextlib.suppress(Exception):
                rewards = rewards + 0

    start = time.perf_counter()
    verdict = check.group_advantages(endless, limit=0.3)
    assert time.perf_counter() - start < PATIENCE, "it would go on for ever"
    assert verdict.status == "error" and "stopped after 0.3 s" in verdict.text
    assert check.group_advantages(solution_of(EXAMPLE))


def test_the_time_limit_leaves_no_alarm_behind():
    assert limited(lambda: 3, PATIENCE, {}) == 3
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_what_is_no_number_at_all_is_named(recwarn):
    async def waits(rewards):
        return rewards

    for function, kind in ((lambda r: (x for x in r), "a generator"),
                           (lambda r: {"a": r}, "a dict"), (lambda r: "hello", "a str"),
                           (waits, "a coroutine"), (lambda r: object(), "an object")):
        verdict = check.group_advantages(function)
        assert verdict.status == "error" and f"it returned {kind}, allowed is a" in verdict.text
    assert not recwarn.list


def test_the_default_dtype_is_left_alone():
    def sets(rewards):
        torch.set_default_dtype(torch.float64)
        return solution_of(EXAMPLE)(rewards)

    assert check.group_advantages(sets)
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="Linux and macOS have alarms")
def test_the_time_limit_gives_others_alarm_back():
    ours = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        handler = signal.getsignal(signal.SIGALRM)
        within = limited(lambda: signal.getsignal(signal.SIGALRM), 1.0, {})
        assert within is not handler
        assert signal.getsignal(signal.SIGALRM) is handler
    finally:
        signal.signal(signal.SIGALRM, ours)


def test_printing_is_left_out_and_said(capsys):
    def loud(rewards):
        print("looking at", rewards)
        return solution_of(EXAMPLE)(rewards)

    verdict = check.group_advantages(loud)
    assert verdict and "printed" in verdict.text
    assert capsys.readouterr().out == ""


def test_changing_the_input_is_told():
    def changes(rewards):
        rewards -= rewards.mean(1, keepdim=True)
        return rewards / (rewards.std(1, keepdim=True) + 1e-4)

    verdict = check.group_advantages(changes)
    assert verdict and "changes its argument 1" in verdict.text


def test_seeds_and_settings_are_left_alone():
    state = torch.random.get_rng_state()

    def meddles(rewards):
        torch.manual_seed(0)
        torch.rand(3)
        return solution_of(EXAMPLE)(rewards)

    assert check.group_advantages(meddles)
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.no_grad():
        assert check.grpo_loss(solution_of(EXERCISES["grpo_loss"]))


@pytest.mark.parametrize("returned", ["text", {"a": 1}, [[1.0, 2.0], [3.0]], object()])
def test_nonsense_is_an_error_and_no_trace(returned):
    verdict = check.group_advantages(lambda rewards: returned)
    assert verdict.status in ("error", "wrong") and "Traceback" not in verdict.text


def test_a_wrong_shape_is_said():
    verdict = check.group_advantages(lambda rewards: rewards.sum())
    assert verdict.status == "wrong" and "of shape ()" in verdict.text


def test_right_numbers_in_another_shape_are_refused():
    verdict = check.group_advantages(lambda rewards: EXAMPLE.reference(rewards).flatten())
    assert verdict.status == "wrong" and "of shape (2,)" in verdict.text


def test_as_many_digits_are_shown_as_tell_the_numbers_apart():
    wrong = check.group_advantages(lambda rewards: EXAMPLE.reference(rewards) + 3e-6)
    yours, right = re.findall(r"(?:yours|right) +(\[\[.*)", wrong.text)
    assert yours != right and len(right.split(",")[0]) > 8


def test_an_unknown_mistake_is_said_to_be_unknown():
    verdict = check.group_advantages(lambda rewards: rewards * 7)
    assert verdict.status == "wrong" and verdict.mistake is None
    assert "none of the mistakes known here" in verdict.text


@pytest.mark.parametrize("given", [3, None, "text"])
def test_what_is_no_function_is_named(given):
    verdict = check.group_advantages(given)
    assert verdict.status == "error" and "allowed is a function" in verdict.text


def test_an_unknown_exercise_is_answered_with_the_names():
    with pytest.raises(AttributeError, match=r"check: got 'groups', allowed are .*group_adv"):
        check.groups(len)
    assert not hasattr(check, "groups")
    assert "check.group_advantages" in repr(check) and "grpo_loss" in dir(check)


def test_a_verdict_shows_itself_as_its_text():
    verdict = check.group_advantages(solution_of(EXAMPLE))
    said = []
    verdict._repr_pretty_(type("printer", (), {"text": staticmethod(said.append)}), False)
    assert said == [verdict.text] == [str(verdict)]
    long = check.group_advantages(EXAMPLE.wrong("groups interleaved"))
    assert max(map(len, str(long).splitlines())) <= 100
    assert str(long).split() == long.text.split()


def test_every_case_is_new_each_time():
    for exercise in FUNCTIONS.values():
        for (_, one), (_, other) in zip(exercise.cases(), exercise.cases()):
            for a, b in zip(one, other):
                if isinstance(a, torch.Tensor):
                    assert a is not b and torch.equal(a, b)


def test_answers_are_alike_only_if_all_are():
    one, two = Answer(torch.tensor(1.0)), Answer(torch.tensor(2.0))
    assert alike([one, two], [one, two]) and not alike([one, two], [one, one])
    assert not alike([one], [one, one])
    assert not alike([one], [ValueError()]) and alike([ValueError()], [TypeError()])


def test_the_reading_is_there():
    """Every mistake sends its maker to a section or a document that exists."""
    for mistake in [m for e in EXERCISES.values() for m in e.mistakes]:
        found = re.fullmatch(r"lesson (\d\d), section (\d)|(docs/\w+\.md)", mistake.read)
        lesson, section, document = found.groups()
        if document:
            assert (ROOT / document).is_file()
        else:
            [notebook] = (ROOT / "notebooks").glob(f"{lesson}_*.ipynb")
            assert re.search(rf'"## {section}\. ', notebook.read_text(encoding="utf-8")), mistake
        assert mistake.says.endswith((".", ")", "?"))


def test_the_package_holds_the_rooms():
    assert [room.__name__.rpartition(".")[2] for room in exercises.ROOMS] == [
        "policy", "rewards", "advantages", "clipping", "kl", "aggregation", "training",
        "algorithms", "questions", "curves"]


# --- functions to repair -------------------------------------------------------------------------

REPAIRS = [e for e in FUNCTIONS.values() if isinstance(e, Repair)]


def named(source, exercise):
    names = {}
    exec(source, names)
    return names[exercise.name]


@pytest.mark.parametrize("exercise", REPAIRS, ids=lambda e: e.name)
class TestRepair:
    def test_the_broken_source_has_the_faults_that_it_says(self, exercise):
        broken = named(exercise.broken, exercise)
        assert alike(exercise.answers(broken),
                     exercise.answers(exercise.wrong(*exercise.faults)))
        verdict = exercise.check(broken)
        assert verdict.status == "not attempted" and not verdict
        count = len(exercise.faults)
        assert f"it still has {count} bug{'s' * (count != 1)}." in verdict.text

    def test_it_raises_nothing_and_differs_from_its_solution_in_few_lines(self, exercise):
        broken, solved = (source.splitlines() for source in (exercise.broken, exercise.solution))
        assert not any(isinstance(a, Exception) for a in exercise.answers(
            named(exercise.broken, exercise)))
        assert 1 <= len([line for line in solved if line not in broken]) <= 6

    def test_what_is_left_of_its_faults_is_named(self, exercise):
        for size in range(1, len(exercise.faults)):
            for left in itertools.combinations(exercise.faults, size):
                verdict = exercise.check(exercise.wrong(*left))
                assert verdict.status == "wrong" and verdict.mistake == left[0]

    def test_empty_and_hopeless_ones(self, exercise):
        assert exercise.check(lambda *arguments: None).status == "not attempted"
        assert exercise.check(lambda *arguments: 1 / 0).status == "error"
        assert exercise.check("text").status == "error"


def test_mending_shows_in_what_the_run_does():
    """The line below a verdict is measured with the function at hand."""
    def shown(name, source):
        return str(EXERCISES[name].check(named(getattr(EXERCISES[name], source),
                                               EXERCISES[name]))).replace("\n", " ")

    def figures(text):
        return [float(n) for n in re.findall(r"\b\d\.\d\d+", text)]

    blocked = [re.findall(r"(\d+)%", shown("updates_of_a_batch", s))
               for s in ("broken", "solution")]
    assert set(blocked[0]) == {"0"} and len(blocked[0]) == 16
    assert blocked[1][0] == blocked[1][8] == "0" and max(map(int, blocked[1])) > 30
    same, held = (figures(shown("leash", s).partition("KL to")[2]) for s in ("broken", "solution"))
    assert len(set(same)) == 1 and held[0] == same[0] and held[0] > held[1] > 100 * held[2]
    moved, equal = (figures(shown("accumulated_loss", s)) for s in ("broken", "solution"))
    assert len(set(moved)) == 3 and len(set(equal)) == 1 and moved[2] == equal[0]
    stuck, learned = (figures(shown("whole_run", s)) for s in ("broken", "solution"))
    assert stuck[1:] == [0.5] * 4 and learned == sorted(learned) and learned[-1] > 0.95


def test_a_run_that_fails_only_when_shown_is_no_matter():
    leash = EXERCISES["leash"]

    def short(*arguments):
        if arguments[-1] > 100:
            raise SystemError
        return leash.reference(*arguments)

    assert leash.check(short).text == "leash: right, on 3 cases."


# --- numbers to predict ---------------------------------------------------------------------------

@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.name)
class TestQuestion:
    def test_the_answer_is_right_and_its_neighbourhood(self, question):
        for guess in (question.answer, question.answer + 0.9 * question.tolerance,
                      torch.tensor(question.answer)):
            assert check.__getattr__(question.name)(guess).status == "right"
        names = {}
        exec(question.solution, names)
        assert question.check(names[question.name])

    def test_every_wrong_number_names_its_mistake_and_no_other(self, question):
        for number, mistake in question.wrong:
            verdict = question.check(number)
            assert verdict.status == "wrong" and verdict.mistake == mistake.name
            assert mistake.says in verdict.text
        marks = sorted([question.answer, *(number for number, _ in question.wrong)])
        assert all(b - a > 2 * question.tolerance for a, b in itertools.pairwise(marks))

    def test_other_guesses(self, question):
        assert "too large" in question.check(1e6).text and "too small" in question.check(-1e6).text
        for nothing in (None, ...):
            assert question.check(nothing).status == "not attempted"
        for nonsense in ("text", [1.0], True, math.nan, torch.ones(2)):
            assert question.check(nonsense).status == "error"


@pytest.mark.parametrize(("name", "by_the_library"), [
    ("advantage_of_one", lambda: grpo_lib.group_advantages(
        torch.tensor([[1.0, 0.0, 0.0, 0.0]]))[0, 0].item()),
    ("entropy_of_four", lambda: grpo_lib.token_entropy(torch.zeros(1, 1, 4)).item()),
    ("pass_at_two", lambda: grpo_lib.pass_at_k(4, 1, 2)),
    ("teaching_share", lambda: grpo_lib.informative_share(0.25, 4)),
    ("k3_of_a_half", lambda: grpo_lib.kl_estimate(torch.tensor([[0.5]]).log(),
                                                  torch.tensor([[0.25]]).log()).item()),
    ("weight_of_a_token", lambda: token_weights(
        (torch.arange(8) < torch.tensor([[2], [8]])).double(), "sequence_mean")[1, 0].item()),
    ("way_back", lambda: surrogate_gradient(torch.tensor([[1.5]]), torch.tensor([[-1.0]]),
                                            0.2).item()),
])
def test_the_answers_are_the_librarys(name, by_the_library):
    assert EXERCISES[name].answer == pytest.approx(by_the_library(), rel=1e-6)


# --- which fault made these curves? ---------------------------------------------------------------

@pytest.mark.parametrize("question", CURVES, ids=lambda q: q.name)
class TestCurves:
    def test_the_answer_is_the_fault_of_the_recorded_run(self, question):
        fault, seed = quiz.RUNS[question.name]
        assert fault in question.answers
        run = quiz.run_of(fault, seed)
        assert (run["fault"], run["seed"]) == (fault, seed)
        shown = quiz.show(question.name)
        assert f"right {run['accuracy'][0]:.0%} to {run['accuracy'][-1]:.0%}" in shown.text
        assert fault not in shown.text
        lines = shown.figure.axes[0].lines
        assert any(list(line.get_ydata()) == run["accuracy"] for line in lines)

    def test_what_the_verdicts_argue_from_is_drawn_and_nothing_else_is_named(self, question):
        axes = {axis.get_title(loc="left"): axis for axis in quiz.show(question.name).figure.axes
                if axis.get_visible()}
        assert axes.keys() == {"Right answers", "Completion length", "Entropy of the next token",
                               "Distance from the base model", "Tokens blocked by the clip"}
        for axis in axes.values():
            assert all(len(line.get_xdata()) for line in axis.lines)
            names = [t.get_text() for t in axis.get_legend().get_texts()] if axis.legend_ else []
            assert "held-out problems" not in names
            assert set(names) <= {line.get_label() for line in axis.lines}

    def test_right_answers_and_wrong_ones(self, question):
        for fault, shows in question.shows.items():
            verdict = question.check(fault)
            assert bool(verdict) == (fault in question.answers)
            assert shows in verdict.text
            assert verdict.mistake == (None if verdict else fault)
        names = {}
        exec(question.solution, names)
        assert question.check(names[question.name])

    def test_what_is_no_fault_is_named(self, question):
        for nothing in (None, ...):
            assert question.check(nothing).status == "not attempted"
        for nonsense in ("signs", 3, ""):
            assert "allowed is one of 'none'" in question.check(nonsense).text


def test_what_curves_cannot_tell_apart_is_said():
    [silent] = [q for q in CURVES if len(q.answers) > 1]
    assert silent.answers == {"none", "interleaved groups", "end masked out"}
    assert "cannot tell them apart" in silent.check("none").text


def test_unknown_curves_are_named():
    with pytest.raises(ValueError, match="name: got 'curves_z', allowed are curves_a"):
        quiz.show("curves_z")
    with pytest.raises(ValueError, match="fault, seed: got 'sign', 99"):
        quiz.run_of("sign", 99)
