"""Rows in which not every token counts: a tool's tokens inside a completion are attended to and
left out of everything else. Each row must be that row computed alone."""

import doctest
import math
from dataclasses import replace

import pytest
import torch

from grpo_lib.algorithms import ALGORITHMS
from grpo_lib.config import GRPOConfig
from grpo_lib.critic import ValueModel, completion_values
from grpo_lib.lab.xray import NOT_COUNTED, Xray
from grpo_lib.objective import (
    AGGREGATIONS,
    aggregate,
    grpo_loss,
    importance_ratio,
    kl_estimate,
    token_weights,
)
from grpo_lib.policy import TinyPolicy, token_entropy
from grpo_lib.returns import gae, token_rewards, whiten
from grpo_lib.rollout import (
    Rollouts,
    completion_log_probs,
    completion_logits,
    offset_log_probs,
    sample_groups,
    shift,
)
from grpo_lib.training import GRPOTrainer

SETTINGS = {"steps": 2, "prompts_per_step": 4, "group_size": 4, "eval_every": 0, "minibatches": 3,
            "num_iterations": 2, "learning_rate": 0.01}
ANSWER = 3  # tokens of the tool


def two_turns(policy, prompts, group_size, *, max_new_tokens, device="cpu", **options):
    """A sampler: a turn of the policy, an answer that depends on it, another turn. Rows that end
    early have padding inside, which is neither attended to nor counted."""
    size = {"max_new_tokens": max_new_tokens // 2, "device": device}
    first = sample_groups(policy, prompts, group_size, **size, **options)
    answer = 3 + (first.completions.sum(1, keepdim=True) + torch.arange(ANSWER)) % 5
    seen = torch.cat((first.prompt_mask, first.attended, torch.ones_like(answer)), 1) > 0
    texts = [row[there].tolist()
             for row, there in zip(torch.cat((first.tokens, answer), 1), seen)]
    then = sample_groups(policy, texts, 1, **size, **options)
    return first.followed_by(answer, then)


@pytest.fixture
def with_tool(policy, prompts, seeded):
    """Twelve completions of three prompts, in float64."""
    drawn = two_turns(policy, prompts, 4, max_new_tokens=10, generator=seeded(3))
    there = drawn.attended
    assert (there & (drawn.mask == 0)).any()  # a tool's tokens
    assert (there[:, 1:] & ~there[:, :-1]).any()  # padding inside of a row
    return drawn


@pytest.fixture
def without_padding(with_tool):
    """The same with nothing but a tool's tokens in the gaps: no attention_mask is needed."""
    closed, _ = shift.without_gaps(with_tool)
    return replace(closed, attention_mask=None)


def alone(policy, rollouts, row):
    """log pi of the counted tokens of a row, scored by itself with all its tokens."""
    prompt = rollouts.tokens[row, : rollouts.prompt_length][rollouts.prompt_mask[row] > 0]
    there = rollouts.attended[row]
    text = torch.cat((prompt, rollouts.completions[row][there]))
    log_probs = (policy(text[None])[0] / rollouts.temperature).log_softmax(-1)
    found = log_probs[:-1].gather(1, text[1:, None])[len(prompt) - 1 :, 0]
    return found[rollouts.mask[row][there] > 0]


def assert_rows_are_themselves(policy, rollouts, scores):
    for row, counts in enumerate(rollouts.mask > 0):
        assert (scores[row][counts] - alone(policy, rollouts, row)).abs().max() < 1e-12
    assert (scores[rollouts.mask == 0] == 0).all()


class Unpacked(torch.nn.Module):
    """A policy that is scored with its padding."""

    def __init__(self, policy):
        super().__init__()
        self.inner = policy

    def new_cache(self, batch, length):
        return self.inner.new_cache(batch, length)

    def forward(self, tokens, mask=None, cache=None):
        return self.inner(tokens, mask, cache)


# --- scoring ------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["with_tool", "without_padding"])
@pytest.mark.parametrize("wrap", [lambda policy: policy, Unpacked])
@pytest.mark.parametrize("rows_at_once", [None, 1, 5])
def test_every_row_is_scored_as_if_it_were_alone(policy, request, kind, wrap, rows_at_once):
    rollouts = request.getfixturevalue(kind)
    scores = completion_log_probs(wrap(policy), rollouts, rows_at_once)
    assert_rows_are_themselves(policy, rollouts, scores)
    assert (scores - rollouts.log_probs).abs().max() < 1e-12  # which were sampled turn by turn


def test_the_tools_tokens_matter_and_padding_does_not(policy, with_tool):
    there, counted = with_tool.attended, with_tool.mask > 0
    before = completion_log_probs(policy, with_tool)
    for which, matters in ((there & ~counted, True), (~there, False)):
        tokens = with_tool.tokens.clone()
        tokens[:, with_tool.prompt_length :][which] = 11
        after = completion_log_probs(policy, replace(with_tool, tokens=tokens))
        assert ((after - before).abs().max() > 0.01) == matters


@pytest.mark.parametrize("kind", ["with_tool", "without_padding"])
@pytest.mark.parametrize("wrap", [lambda policy: policy, Unpacked])
def test_gradients_are_those_of_the_rows_alone(policy, request, kind, wrap):
    rollouts = request.getfixturevalue(kind)
    found = []
    for scores in (completion_log_probs(wrap(policy), rollouts).sum(),
                   sum(alone(policy, rollouts, row).sum() for row in range(12))):
        policy.zero_grad(set_to_none=True)
        scores.backward()
        found.append([p.grad.clone() for p in policy.parameters()])
    assert all((a - b).abs().max() < 1e-10 for a, b in zip(*found))


def test_a_value_models_values_are_those_of_the_rows_alone(policy, with_tool):
    model = ValueModel(policy)
    torch.nn.init.normal_(model.transformer.lm_head.weight)
    found = completion_values(model, with_tool)
    for row, counts in enumerate(with_tool.mask > 0):
        there = with_tool.attended[row]
        prompt = with_tool.tokens[row, : with_tool.prompt_length][with_tool.prompt_mask[row] > 0]
        values = model(torch.cat((prompt, with_tool.completions[row][there]))[None])[0]
        values = values[len(prompt) - 1 : -1][counts[there]]
        assert (found[row][counts] - values).abs().max() < 1e-12


def test_logits_of_another_column_attend_to_the_tool(policy, without_padding):
    scores = offset_log_probs(policy, without_padding, -1)
    assert_rows_are_themselves(policy, without_padding, scores)


def test_a_policy_without_context_takes_several_turns(prompts, seeded):
    tiny = TinyPolicy(12, 8).double()
    drawn = two_turns(tiny, prompts, 2, max_new_tokens=8, generator=seeded(1))
    assert (completion_log_probs(tiny, drawn) - drawn.log_probs).abs().max() < 1e-12


# --- rows of batches ----------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["with_tool", "without_padding"])
@pytest.mark.parametrize("rows", [[0], [11, 2], [3, 3, 5], list(range(12))])
def test_selected_rows_keep_every_token_that_counts(policy, request, kind, rows):
    whole = request.getfixturevalue(kind)
    some = whole.select(torch.tensor(rows))
    assert some.lengths.tolist() == whole.lengths[rows].tolist()
    assert (some.mask[:, -1] > 0).any()  # and no column more than it takes
    for row, origin in enumerate(rows):
        counts, there = some.mask[row] > 0, whole.mask[origin] > 0
        assert torch.equal(some.completions[row][counts], whole.completions[origin][there])
        assert torch.equal(some.log_probs[row][counts], whole.log_probs[origin][there])
        width = some.mask.shape[1]
        assert torch.equal(some.attended[row], whole.attended[origin][:width])
    assert_rows_are_themselves(policy, some, completion_log_probs(policy, some))


def test_joined_batches_keep_both_masks(policy, prompts, seeded, with_tool, sample):
    longer = two_turns(policy, [[2] * 7, [3]], 4, max_new_tokens=14, generator=seeded(5))
    plain = sample(policy)  # one turn, no attention_mask of its own
    parts = [with_tool, plain, longer]
    whole = Rollouts.join(parts)
    assert whole.lengths.tolist() == torch.cat([part.lengths for part in parts]).tolist()
    assert_rows_are_themselves(policy, whole, completion_log_probs(policy, whole))
    assert (completion_log_probs(policy, whole) - whole.log_probs).abs().max() < 1e-12


def test_padding_inside_of_rows_takes_no_context(make_policy, with_tool):
    some = with_tool.select((~with_tool.attended).any(1).nonzero()[:, 0])
    closed, _ = shift.without_gaps(some)
    assert closed.tokens.shape[1] < some.tokens.shape[1]
    policy = make_policy(context_length=closed.tokens.shape[1] - 1)
    assert_rows_are_themselves(policy, some, completion_log_probs(policy, some))


def test_rows_of_which_nothing_counts_are_scored_as_nothing(policy, without_padding):
    mask = without_padding.mask.clone()
    mask[:2] = 0
    some = replace(without_padding, mask=mask).select(torch.tensor([0, 1]))
    assert some.mask.shape == (2, 1)
    assert (completion_log_probs(policy, some) == 0).all()


def test_an_attention_mask_that_does_not_fit_is_named(with_tool):
    with pytest.raises(ValueError, match=r"^attention_mask: got shape \(12, 3\), must be that of"):
        replace(with_tool, attention_mask=with_tool.attention_mask[:, :3])
    with pytest.raises(ValueError, match=r"^attention_mask: got 0 on a token that counts"):
        replace(with_tool, attention_mask=torch.zeros_like(with_tool.mask))


def test_the_example_of_the_documentation_runs():
    found = doctest.DocTestFinder().find(Rollouts, "Rollouts", globs={})
    runner = doctest.DocTestRunner()
    for example in found:
        runner.run(example)
    assert (runner.failures, runner.tries) == (0, 12)


# --- every number, against plain Python ---------------------------------------------------

@pytest.fixture
def numbers():
    """A mask with holes, and tensors whose holes hold what must never be read."""
    generator = torch.Generator().manual_seed(4)
    mask = torch.tensor([[1, 1, 0, 0, 1, 1, 0], [0, 1, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0, 1],
                         [0, 0, 0, 0, 0, 0, 0]]).double()

    def draw(scale=1.0):
        return (torch.randn(4, 7, generator=generator).double() * scale).masked_fill(
            mask == 0, torch.nan)

    return mask, draw


def lists(tensor, mask):
    """The counted numbers of each row."""
    return [[x for x, counts in zip(row, row_mask) if counts]
            for row, row_mask in zip(tensor.tolist(), mask.tolist())]


def means(values, aggregation, columns):
    flat, rows = [x for row in values for x in row], [r for r in values if r]
    return {"sequence_mean": sum(sum(r) / len(r) for r in rows) / len(values),
            "nonempty_sequence_mean": sum(sum(r) / len(r) for r in rows) / len(rows),
            "token_mean": sum(flat) / len(flat), "sequence_sum": sum(flat) / len(values),
            "constant": sum(flat) / (len(values) * columns)}[aggregation]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_the_loss_is_that_of_the_counted_tokens(numbers, aggregation, ratio):
    mask, draw = numbers
    new, old, ref = draw(0.3), draw(0.3), draw(0.3)
    advantages = torch.tensor([1.0, -2.0, 0.5, 3.0]).double()
    expected = []
    for row, (a, b, c) in enumerate(zip(*(lists(t, mask) for t in (new, old, ref)))):
        mean = sum(x - y for x, y in zip(a, b)) / max(1, len(a))
        values = []
        for x, y, z in zip(a, b, c):
            r = math.exp(mean if ratio == "sequence" else x - y)
            gain = min(r * advantages[row].item(),
                       min(max(r, 0.8), 1.2) * advantages[row].item())
            values.append(gain - 0.1 * (math.exp(z - x) - (z - x) - 1))
        expected.append(values)
    found = grpo_loss(new, old, advantages, mask, ref_log_probs=ref, beta=0.1, ratio=ratio,
                      aggregation=aggregation, max_length=9)
    assert found.loss.item() == pytest.approx(-means(expected, aggregation, 9), abs=1e-12)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_mean_and_its_weights_are_those_of_the_counted_tokens(numbers, aggregation):
    mask, draw = numbers
    values = draw()
    assert aggregate(values, mask, aggregation, 9).item() == pytest.approx(
        means(lists(values, mask), aggregation, 9), abs=1e-12)
    weights = token_weights(mask, aggregation, 9)
    assert (weights * values.nan_to_num(0)).sum().item() == pytest.approx(
        means(lists(values, mask), aggregation, 9), abs=1e-12)


def test_kl_and_ratio_of_rows_are_those_of_the_counted_tokens(numbers):
    mask, draw = numbers
    new, old = draw(), draw()
    rows = [sum(x - y for x, y in zip(a, b)) for a, b in zip(lists(new, mask), lists(old, mask))]
    assert importance_ratio(new, old, mask, "sequence_sum").flatten().tolist() == pytest.approx(
        [math.exp(row) for row in rows])
    distance = aggregate(kl_estimate(new, old, "k1"), mask, "token_mean")
    assert distance.item() == pytest.approx(sum(rows) / mask.sum().item())


def test_entropy_is_that_of_the_counted_tokens(policy, with_tool):
    entropies = token_entropy(completion_logits(policy, with_tool))
    expected = []
    for row, counts in enumerate(with_tool.mask > 0):
        there = with_tool.attended[row]
        prompt = with_tool.tokens[row, : with_tool.prompt_length][with_tool.prompt_mask[row] > 0]
        logits = policy(torch.cat((prompt, with_tool.completions[row][there]))[None])[0]
        p = logits[len(prompt) - 1 : -1][counts[there]].softmax(-1)
        expected += (-(p * p.log()).sum(-1)).tolist()
    assert aggregate(entropies, with_tool.mask, "token_mean").item() == pytest.approx(
        sum(expected) / len(expected), abs=1e-12)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.8), (1.0, 0.0)])
def test_gae_goes_from_counted_token_to_counted_token(numbers, gamma, lam):
    mask, draw = numbers
    rewards, values = draw(), draw()
    expected = []
    for r, v in zip(lists(rewards, mask), lists(values, mask)):
        found, running = [], 0.0
        for t in reversed(range(len(r))):
            after = v[t + 1] if t + 1 < len(v) else 0.0
            running = r[t] + gamma * after - v[t] + gamma * lam * running
            found.insert(0, running)
        expected.append(found)
    found = gae(rewards, values, mask, gamma, lam)
    assert (found[mask == 0] == 0).all()
    for row, wanted in zip(lists(found, mask), expected):
        assert row == pytest.approx(wanted, abs=1e-12)


def test_rewards_of_tokens_and_whitening_are_of_the_counted(numbers):
    mask, draw = numbers
    kl = draw()
    rewards = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    found = token_rewards(rewards, mask, kl, 0.5)
    for row, (got, part) in enumerate(zip(lists(found, mask), lists(kl, mask))):
        wanted = [-0.5 * x for x in part]
        if wanted:
            wanted[-1] += rewards[row].item()
        assert got == pytest.approx(wanted)
    flat = [x for row in lists(kl, mask) for x in row]
    mean = sum(flat) / len(flat)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in flat) / (len(flat) - 1) + 1e-8)
    whitened = [x for row in lists(whiten(kl, mask), mask) for x in row]
    assert whitened == pytest.approx([(x - mean) / deviation for x in flat])


@pytest.mark.parametrize("name", ["ppo", "reinforce_plus_plus", "grpo", "rloo"])
def test_advantages_are_those_of_the_counted_tokens(numbers, name):
    """Rows with their holes closed have the same advantages."""
    mask, draw = numbers
    row = ALGORITHMS[name]
    rewards, kl, values = torch.tensor([[1.0, 0.0], [2.0, 5.0]]).double(), draw(), draw()
    order = (mask == 0).long().argsort(dim=1, stable=True)
    found = row.advantages(rewards, mask, kl=kl, values=values)
    closed = row.advantages(rewards, mask.gather(1, order), kl=kl.gather(1, order),
                            values=values.gather(1, order))
    if found.dim() == 2:
        found = found.gather(1, order)
    assert (found - closed).abs().max() < 1e-12


# --- a run --------------------------------------------------------------------------------

@pytest.fixture
def make_trainer(make_policy, sort_task):
    def make(sampler=two_turns, **settings):
        sort_task.max_new_tokens = 12
        task = sort_task.with_reward(lambda problem, text: len(text) % 5 / 4)
        policy = make_policy(len(task.tokenizer))
        config = GRPOConfig(**SETTINGS | settings)
        value_model = ValueModel(policy) if config.choices.critic else None
        return GRPOTrainer(policy, task, config, value_model=value_model, sampler=sampler)

    return make


def compact(*arguments, **options):
    """The same completions without padding inside."""
    return replace(shift.without_gaps(two_turns(*arguments, **options))[0], attention_mask=None)


@pytest.mark.parametrize("settings", [
    {}, {"micro_batch_size": 3}, {"beta": 0.1}, {"algorithm": "ppo", "minibatches": 1},
    {"algorithm": "reinforce_plus_plus"}, {"dynamic_sampling": True},
    {"mask_truncated_completions": True}, {"entropy_coef": 0.01}])
def test_a_run_is_the_same_wherever_the_padding_stands(make_trainer, settings):
    one, other = make_trainer(two_turns, **settings), make_trainer(compact, **settings)
    for a, b in zip(one.run(), other.run()):
        a, b = ({k: v for k, v in m.to_dict().items() if not k.startswith("seconds")}
                for m in (a, b))
        assert a == pytest.approx(b, abs=1e-9)
        assert a["ratio_min"] < 1 < a["ratio_max"]  # something was learned
    for a, b in zip(one.policy.parameters(), other.policy.parameters()):
        assert (a - b).abs().max() < 1e-9


def test_metrics_and_texts_are_those_of_the_policys_own_tokens(make_trainer):
    trainer = make_trainer(num_iterations=1, minibatches=1)
    texts = []
    rewards = trainer.task.rewards
    trainer.task.rewards = lambda problems, found, finished: (
        texts.extend(found) or rewards(problems, found, finished))
    metrics = trainer.step()
    drawn = trainer.rollouts
    assert metrics.tokens == drawn.mask.sum() < drawn.attended.sum()
    assert metrics.length == pytest.approx(drawn.mask.sum().item() / 16)
    assert (metrics.ratio_min, metrics.ratio_max) == pytest.approx((1, 1), abs=1e-12)
    own = [row[counts][None] for row, counts in zip(drawn.completions, drawn.mask > 0)]
    assert texts == [trainer.task.tokenizer.decode_rows(row, torch.ones_like(row))[0]
                     for row in own]


def test_an_xray_shows_the_tools_tokens_as_not_counted(make_trainer):
    trainer = make_trainer(compact)
    trainer.step()
    xray = Xray.of(trainer)
    state = xray.update("before the step").state
    for row, (words, counts) in enumerate(zip(xray.words, trainer.rollouts.mask > 0)):
        last = int(counts.nonzero()[-1])
        assert list(words) == [trainer.task.tokenizer.words[i]
                               for i in trainer.rollouts.completions[row][: last + 1]]
        assert (state[row][~counts] == NOT_COUNTED).all()
        assert (state[row][counts] != NOT_COUNTED).all()
