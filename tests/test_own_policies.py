"""Policies that are not this library's: compiled, wrapped, of a class of one's own, in train mode.

Everything that the end of a run needs is asked for at its beginning."""

import copy
import re
import warnings
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from grpo_lib.config import GRPOConfig
from grpo_lib.critic import Critic, ValueModel
from grpo_lib.evaluation import evaluate
from grpo_lib.policy import TinyPolicy
from grpo_lib.pretraining import PretrainConfig, pretrain
from grpo_lib.rollout import completion_log_probs, offset_log_probs, sample_groups
from grpo_lib.support.checkpoint import CheckpointError, load_policy, load_tensors, save_policy
from grpo_lib.support.modules import eval_mode, unwrapped
from grpo_lib.support.processes import SeveralProcesses
from grpo_lib.support.rewards import RewardError
from grpo_lib.support.run_folder import RunFolder
from grpo_lib.training import GRPOTrainer

SETTINGS = GRPOConfig(steps=4, prompts_per_step=4, group_size=4, eval_every=2, eval_problems=4,
                      learning_rate=0.01)


class OwnPolicy(nn.Module):
    """A class of one's own: the mean of all embeddings so far, and what is put after it."""

    def __init__(self, vocab_size, *after, seed=0):
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(vocab_size, 16)
            self.after = nn.Sequential(*after, nn.Linear(16, vocab_size))
        self.register_buffer("never", torch.tensor([-torch.inf, 0.0]))  # as masks have it

    def new_cache(self, batch, length):
        return None

    def forward(self, tokens, mask=None, cache=None):
        mask = torch.ones_like(tokens) if mask is None else mask
        seen = self.embedding(tokens) * mask[..., None]
        mean = seen.cumsum(1) / mask.cumsum(1).clamp(min=1)[..., None]
        return self.after(seen + mean)


class ByToken(nn.Module):
    """BatchNorm over all tokens of a batch."""

    def __init__(self, **options):
        super().__init__()
        self.norm = nn.BatchNorm1d(16, **options)

    def forward(self, x):
        return self.norm(x.flatten(0, 1)).view_as(x)


class AlwaysNoisy(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5, training=True)


@pytest.fixture
def task(sort_task):
    sort_task.max_new_tokens = 8
    return sort_task.with_reward(lambda problem, text: len(text) % 5 / 4)


@pytest.fixture(autouse=True)
def registered(monkeypatch, sort_task, task):
    """The task by its name, as a run's folder finds it."""
    monkeypatch.setattr("grpo_lib.support.run_folder.get_task", lambda name: task)


# what torch's own compiler reads on the way
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


def compiled(policy):
    return torch.compile(policy, backend="eager")


def compiled_inside(policy):
    policy.model.layers[1] = compiled(policy.model.layers[1])
    return policy


@pytest.fixture
def in_parallel(tmp_path):
    """Wraps a module as one of several processes does."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0,
                                         world_size=1)
    yield nn.parallel.DistributedDataParallel
    torch.distributed.destroy_process_group()


@pytest.fixture(params=["in_parallel", *(pytest.param(way, marks=pytest.mark.slow)
                                         for way in ("compiled", "compiled_inside", "both"))])
def wrap(request):
    if request.param.startswith("compiled"):
        return globals()[request.param]
    parallel = request.getfixturevalue("in_parallel")
    return parallel if request.param == "in_parallel" else lambda policy: parallel(compiled(policy))


def timeless(history):
    return [{k: v for k, v in m.to_dict().items() if not k.startswith("seconds")} for m in history]


# --- wrapped ------------------------------------------------------------------------------

def test_a_wrapped_policy_is_trained_saved_finished_and_resumed_as_without(make_policy, task, wrap,
                                                                           tmp_path):
    runs = {}
    for name, change in (("plain", lambda policy: policy), ("wrapped", wrap)):
        policy = make_policy(len(task.tokenizer))
        trainer = GRPOTrainer(change(policy), task, SETTINGS)
        run = RunFolder.create(tmp_path / name, trainer, save_every=2)
        for metrics in trainer.run(2):
            run.record(metrics)
        run.save(trainer)
        resumed = GRPOTrainer(change(make_policy(len(task.tokenizer), seed=1)), task, SETTINGS)
        RunFolder.open(tmp_path / name).restore(resumed)
        for metrics in resumed.run():
            run.record(metrics)
        run.finish(resumed)
        runs[name] = timeless(resumed.history)
    assert len(runs["plain"]) == 4
    for one, other in zip(*runs.values()):
        assert one == pytest.approx(other, abs=1e-9)
    for file in ("policy.safetensors", "checkpoints/step-00004.safetensors",
                 "reference.safetensors"):
        kind = {"p": "policy", "c": "trainer", "r": "reference"}[file[0]]
        (one, about), (other, same) = (load_tensors(tmp_path / name / file, kind)
                                       for name in ("plain", "wrapped"))
        assert one.keys() == other.keys() and about.keys() == same.keys()
        assert not any("_orig_mod" in name or "module." in name for name in other)
        assert all((one[name].double() - other[name].double()).abs().max() < 1e-9 for name in one
                   if name != "generator")
    last = RunFolder.open(tmp_path / "wrapped").new_trainer().policy
    assert all((a - b).abs().max() < 1e-6 for a, b in zip(
        last.parameters(), load_policy(tmp_path / "plain" / "policy.safetensors").parameters()))


def test_a_wrapped_policy_is_sampled_scored_evaluated_and_saved_as_without(
        make_policy, task, wrap, sample, tmp_path):
    plain = make_policy(len(task.tokenizer))
    wrapped = wrap(make_policy(len(task.tokenizer)))
    one, other = sample(plain), sample(wrapped)
    assert torch.equal(one.tokens, other.tokens)
    for scores in (completion_log_probs(wrapped, one), offset_log_probs(wrapped, one, -1)):
        assert (scores - one.log_probs).abs().max() < 1e-12
    problems = task.held_out(4)
    assert evaluate(wrapped, task, problems).completions == evaluate(plain, task,
                                                                     problems).completions
    values = ValueModel(wrapped)
    assert values.state_dict().keys() == ValueModel(plain).state_dict().keys() or (
        unwrapped(wrapped) is wrapped)  # parts that are compiled stay so
    save_policy(tmp_path / "policy", wrapped, task.name)
    again = load_policy(tmp_path / "policy")  # in float32
    assert (completion_log_probs(again, one) - one.log_probs).abs().max() < 1e-4
    load_policy(tmp_path / "policy", policy=wrap(make_policy(len(task.tokenizer), seed=3)))


@pytest.mark.parametrize("given", [True, False])
def test_gradients_go_through_one_parallel_wrapper_given_or_made(make_policy, task, in_parallel,
                                                                 given):
    config = replace(SETTINGS, micro_batch_size=5, eval_every=0)
    plain, policy = (make_policy(len(task.tokenizer)) for _ in range(2))
    trainer = GRPOTrainer(in_parallel(policy) if given else policy, task, config,
                          processes=SeveralProcesses())
    parts = list(trainer.completion_logits.modules())
    assert sum(isinstance(part, in_parallel) for part in parts) == 1
    wanted, got = (timeless(list(t.run(2))) for t in (GRPOTrainer(plain, task, config), trainer))
    for one, other in zip(wanted, got, strict=True):
        assert one == pytest.approx(other, abs=1e-9)


def test_a_checkpoint_with_a_wrappers_names_is_read(make_policy, task, tmp_path):
    """As they were written before."""
    from grpo_lib.support.checkpoint import save_tensors

    trainer = GRPOTrainer(make_policy(len(task.tokenizer)), task, SETTINGS)
    list(trainer.run(1))
    trainer.save(tmp_path / "new")
    tensors, about = load_tensors(tmp_path / "new", "trainer")
    old = {name.replace(".", "._orig_mod.", 1): tensor for name, tensor in tensors.items()}
    save_tensors(tmp_path / "old", old, about)
    other = GRPOTrainer(make_policy(len(task.tokenizer), seed=1), task, SETTINGS)
    other.load(tmp_path / "old")
    assert torch.equal(other.policy.lm_head.weight, trainer.policy.lm_head.weight)


def test_a_compiled_reference_of_the_policy_itself_is_a_copy(make_policy, task):
    policy = make_policy(len(task.tokenizer))
    trainer = GRPOTrainer(compiled(policy), task, SETTINGS, policy)
    list(trainer.run(1))
    assert not torch.equal(trainer.ref_policy.lm_head.weight, policy.lm_head.weight)


# --- of a class of one's own --------------------------------------------------------------

def test_a_policy_of_ones_own_is_finished_and_resumed(task, tmp_path):
    size = len(task.tokenizer)
    straight = GRPOTrainer(OwnPolicy(size, nn.Dropout(0.3)), task, SETTINGS)
    list(straight.run())
    trainer = GRPOTrainer(OwnPolicy(size, nn.Dropout(0.3)), task, SETTINGS)
    run = RunFolder.create(tmp_path / "run", trainer)
    for metrics in trainer.run(2):
        run.record(metrics)
    run.save(trainer)
    again = RunFolder.open(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"the run's policy is a .*OwnPolicy, which is yours"):
        again.new_trainer()
    resumed = again.new_trainer(policy=OwnPolicy(size, nn.Dropout(0.3), seed=1))
    list(resumed.run())
    for one, other in zip(timeless(resumed.history), timeless(straight.history)):
        assert one == pytest.approx(other, abs=1e-5)
    again.finish(resumed)
    path = tmp_path / "run" / "policy.safetensors"
    with pytest.raises(CheckpointError, match=r"holds the weights of a .*OwnPolicy.*policy=made"):
        load_policy(path)
    made = OwnPolicy(size, nn.Dropout(0.3), seed=2)
    assert load_policy(path, "sort", made) is made
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), straight.policy.parameters()))
    with pytest.raises(CheckpointError, match=r"is \(.*allowed is"):
        load_policy(path, policy=OwnPolicy(size + 1, nn.Dropout(0.3)))


class Unsaveable(OwnPolicy):
    def get_extra_state(self):
        return {"a": "dictionary"}

    def set_extra_state(self, state):
        pass


def test_what_cannot_be_saved_is_refused_before_any_training(task, tmp_path):
    trainer = GRPOTrainer(Unsaveable(len(task.tokenizer)), task, SETTINGS)
    with pytest.raises(TypeError, match=r"^policy: Unsaveable's state_dict holds a dict called "
                                        r"_extra_state.*register_buffer"):
        RunFolder.create(tmp_path / "run", trainer)
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(("change", "message"), [
    (lambda policy: policy.forward, r"^policy: got a method, must be a torch\.nn\.Module"),
    (lambda policy: setattr(policy, "new_cache", None) or policy,
     r"^policy: OwnPolicy has no method new_cache\(batch, length\)"),
    (lambda policy: setattr(policy, "forward", lambda tokens: None) or policy,
     r"^policy: OwnPolicy\.forward does not take \(tokens, mask, cache\)")])
def test_what_a_policy_lacks_is_said_when_the_trainer_is_made(task, change, message):
    with pytest.raises(TypeError, match=message):
        GRPOTrainer(change(OwnPolicy(len(task.tokenizer))), task, SETTINGS)


# --- train mode ---------------------------------------------------------------------------

ODD = [[nn.Dropout(0.5)], [ByToken()], [nn.AlphaDropout(0.2)]]


@pytest.mark.parametrize("after", ODD, ids=lambda after: type(after[0]).__name__)
@pytest.mark.parametrize("mode", [True, False])
def test_ratios_of_a_first_update_are_1_and_the_mode_stays(task, after, mode):
    policy = OwnPolicy(len(task.tokenizer), *copy.deepcopy(after)).train(mode)
    policy.after[0].train()  # whatever the mode of the whole
    modes = [module.training for module in policy.modules()]
    buffers = copy.deepcopy(dict(policy.named_buffers()))
    trainer = GRPOTrainer(policy, task, GRPOConfig(**asdict(SETTINGS) | {"minibatches": 1}))
    for metrics in trainer.run(3):
        assert (metrics.ratio_min, metrics.ratio_max) == pytest.approx((1, 1), abs=1e-4)
        if metrics.step == 1:
            assert metrics.kl == pytest.approx(0, abs=1e-6)
    assert [module.training for module in policy.modules()] == modes
    assert all(torch.equal(buffers[name], buffer) for name, buffer in policy.named_buffers())


@pytest.mark.parametrize("after", ODD, ids=lambda after: type(after[0]).__name__)
def test_sampling_scoring_and_evaluating_are_in_eval_mode(task, after, sample):
    policy = OwnPolicy(len(task.tokenizer), *copy.deepcopy(after))
    drawn = sample(policy)
    for scores in (completion_log_probs(policy, drawn), offset_log_probs(policy, drawn, -1)):
        assert (scores - drawn.log_probs).abs().max() < 1e-5
    problems = task.held_out(4)
    assert evaluate(policy, task, problems).completions == evaluate(policy, task,
                                                                    problems).completions
    assert all(module.training for module in policy.modules())


def test_an_error_leaves_the_mode_as_it_was(task):
    policy = OwnPolicy(len(task.tokenizer), nn.Dropout(0.5))
    trainer = GRPOTrainer(policy, task.with_reward(lambda *_: 1 / 0), SETTINGS)
    with pytest.raises(RewardError, match="ZeroDivisionError"):
        trainer.step()
    assert all(module.training for module in policy.modules())


def test_a_recurrent_layer_keeps_the_mode_that_its_backward_pass_needs():
    both = nn.ModuleList([nn.GRU(4, 4), nn.GRU(4, 4, 2, dropout=0.5)])
    with eval_mode(both):
        assert [layer.training for layer in both] == [True, False]
    assert [layer.training for layer in both] == [True, True]


@pytest.mark.parametrize(("after", "cause"), [
    ([AlwaysNoisy()], "answers differently each time"),
    ([ByToken(track_running_stats=False)], "depend on the rows beside it")])
def test_what_eval_mode_does_not_switch_off_is_told_once(task, after, cause):
    trainer = GRPOTrainer(OwnPolicy(len(task.tokenizer), *after), task, SETTINGS)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        list(trainer.run(3))
    told = [str(w.message) for w in heard if "ratios go from" in str(w.message)]
    assert len(told) == 1 and re.search(rf"must be 1; .*{cause}", told[0])


def test_a_sampler_of_another_policy_is_told(make_policy, task):
    other = make_policy(len(task.tokenizer), seed=7)
    trainer = GRPOTrainer(make_policy(len(task.tokenizer)), task, SETTINGS,
                          sampler=lambda policy, *a, **o: sample_groups(other, *a, **o))
    with pytest.warns(UserWarning, match="not this policy's") as heard:
        list(trainer.run(2))
    assert len(heard) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_not_told(task, dtype):
    policy = OwnPolicy(len(task.tokenizer)).to(dtype)
    trainer = GRPOTrainer(policy, task, SETTINGS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(trainer.run(3))


# --- nothing to train by ------------------------------------------------------------------

@pytest.mark.parametrize("inside", [torch.no_grad, torch.inference_mode])
def test_a_step_without_gradients_is_refused_with_its_cause(make_policy, task, inside):
    trainer = GRPOTrainer(make_policy(len(task.tokenizer)), task, SETTINGS)
    before = trainer.generator.get_state()
    with inside(), pytest.raises(RuntimeError, match=r"^step: .*inside torch\.no_grad\(\) or"):
        list(trainer.run())
    assert torch.equal(trainer.generator.get_state(), before) and not trainer.half_updated
    list(trainer.run(1))
    with inside(), pytest.raises(RuntimeError, match=r"^pretrain: was called inside"):
        next(pretrain(task, PretrainConfig(skill_steps=1)))
    value_model = ValueModel(make_policy(len(task.tokenizer)))
    with inside(), pytest.raises(RuntimeError, match=r"^update: was called inside"):
        Critic(value_model, 0.1, 1.0).update(trainer.rollouts, trainer.rollouts.mask)


@pytest.mark.parametrize("wrapped", [lambda policy: policy, compiled])
def test_what_is_frozen_is_refused_with_its_cause(make_policy, task, wrapped):
    frozen = make_policy(len(task.tokenizer)).requires_grad_(False)
    with pytest.raises(ValueError, match=r"^policy: all its parameters are frozen"):
        GRPOTrainer(wrapped(frozen), task, SETTINGS)


def test_a_frozen_value_model_is_refused_with_its_cause(make_policy, task):
    policy = make_policy(len(task.tokenizer))
    config = GRPOConfig(algorithm="ppo", prompts_per_step=4, group_size=4, eval_every=0)
    with pytest.raises(ValueError, match=r"^value_model: all its parameters are frozen"):
        GRPOTrainer(policy, task, config, value_model=ValueModel(policy).requires_grad_(False))


def test_a_policy_made_in_inference_mode_is_refused_with_its_cause(task):
    with torch.inference_mode():
        policy = OwnPolicy(len(task.tokenizer))
    with pytest.raises(ValueError, match=r"^policy: was made inside torch\.inference_mode"):
        GRPOTrainer(policy, task, SETTINGS)


def test_a_reference_that_shares_its_weights_is_refused_with_its_cause(make_policy, task):
    policy, other = make_policy(len(task.tokenizer)), make_policy(len(task.tokenizer))
    other.model = policy.model
    with pytest.raises(ValueError, match=r"^ref_policy: shares weights with policy"):
        GRPOTrainer(policy, task, SETTINGS, other)
    assert all(p.requires_grad for p in policy.parameters())


class Detached(OwnPolicy):
    def forward(self, tokens, mask=None, cache=None):
        with torch.no_grad():
            return super().forward(tokens, mask, cache)


def test_logits_without_gradient_are_refused_with_their_cause_and_leave_no_trace(task):
    trainer = GRPOTrainer(Detached(len(task.tokenizer)), task, SETTINGS)
    before = trainer.generator.get_state()
    with pytest.raises(RuntimeError, match=r"^loss: depends on no weight that is trained"):
        trainer.step()
    assert torch.equal(trainer.generator.get_state(), before) and not trainer.half_updated


# --- vocabulary ---------------------------------------------------------------------------

@pytest.mark.parametrize("make", [lambda make_policy, size: make_policy(size),
                                  lambda make_policy, size: TinyPolicy(size, 8),
                                  lambda make_policy, size: compiled(OwnPolicy(size))])
def test_a_tokenizer_larger_than_the_policy_is_said_with_both_sizes(make_policy, task, make):
    size = len(task.tokenizer)
    message = rf"^tokenizer: has {size} tokens, but the policy knows {size - 1}"
    small = make(make_policy, size - 1)
    with pytest.raises(ValueError, match=message):
        GRPOTrainer(small, task, SETTINGS)
    with pytest.raises(ValueError, match=message):
        evaluate(small, task, task.held_out(2))
    with pytest.raises(ValueError, match=rf"^prompts: got token {size - 1}, must be below"):
        sample_groups(small, [[3], [4, size - 1]], 2, max_new_tokens=2)
    GRPOTrainer(make(make_policy, size), task, SETTINGS)
    GRPOTrainer(make(make_policy, size + 1), task, SETTINGS)


RETURNS = [
    (lambda logits: logits[:, -1], ValueError, r"returned shape \(2, \d+\) for tokens \(2, 3\)"),
    (lambda logits: logits[:, :-1], ValueError, r"returned shape \(2, 2, \d+\) for tokens"),
    (lambda logits: logits[:1], ValueError, r"must be \(2, 3, V\)"),
    (lambda logits: logits.transpose(1, 2), ValueError, r"must be \(2, 3, V\)"),
    (lambda logits: (logits, None), TypeError, "returned a tuple, must be a tensor of logits"),
    (lambda logits: None, TypeError, "returned a NoneType"),
    (lambda logits: logits.detach().numpy(), TypeError, "returned a ndarray"),
    (lambda logits: logits.long(), ValueError, "returned torch.int64"),
]


@pytest.mark.parametrize(("change", "error", "says"), RETURNS)
def test_a_policy_that_returns_something_else_is_told_what(task, change, error, says):
    class Own(OwnPolicy):
        def forward(self, tokens, mask=None, cache=None):
            return change(super().forward(tokens, mask, cache))

    with pytest.raises(error, match=r"policy: Own\.forward returned") as told:
        sample_groups(Own(len(task.tokenizer)), [[3, 4, 5], [6, 7]], 2, max_new_tokens=3)
    assert told.match(says)


def test_a_policy_that_can_never_say_the_end_is_told_so(task):
    class Own(OwnPolicy):
        def forward(self, tokens, mask=None, cache=None):
            return super().forward(tokens, mask, cache)[..., :4]

    policy = Own(len(task.tokenizer))
    with pytest.raises(ValueError, match="policy: returned logits of 4 tokens, must be more than "
                                         "eos_id, 4"):
        sample_groups(policy, [[3]], 2, max_new_tokens=3, eos_id=4)
    sample_groups(policy, [[3]], 2, max_new_tokens=3, eos_id=3)
