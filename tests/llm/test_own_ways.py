"""transformers models that are compiled, have dropout, or too few tokens; rows with a tool's
tokens in them; a run's folder from beginning to end."""

from dataclasses import replace

import pytest
import torch

from grpo_lib.bridges import huggingface as room
from grpo_lib.bridges.huggingface import (
    HuggingFacePolicy,
    HuggingFaceTokenizer,
    InstructionTask,
    generate_groups,
)
from grpo_lib.config import GRPOConfig
from grpo_lib.rollout import completion_log_probs, sample_groups
from grpo_lib.support.checkpoint import CheckpointError, load_tensors
from grpo_lib.support.run_folder import RunFolder
from grpo_lib.tasks import ChainTask
from grpo_lib.training import GRPOTrainer

SETTINGS = GRPOConfig(steps=2, prompts_per_step=2, group_size=3, eval_every=0, minibatches=1,
                      learning_rate=0.01)
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17]]
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


@pytest.fixture
def task(trained_tokenizer):
    ends = HuggingFaceTokenizer(trained_tokenizer(), eos_ids=range(1, 60))
    return InstructionTask(ChainTask(2, 3), ends, max_new_tokens=8).with_reward(
        lambda problem, text: float(len(text) % 2))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "mistral"])
@pytest.mark.parametrize("sampler", [sample_groups, generate_groups])
def test_rows_with_a_tools_tokens_are_scored_as_if_each_were_alone(tiny_model, family, sampler):
    policy = HuggingFacePolicy(tiny_model(family))
    options = {"max_new_tokens": 5, "eos_id": list(range(1, 60)), "generator": seeded()}
    first = sampler(policy, PROMPTS, 3, **options)
    answer = 60 + torch.arange(27).view(9, 3)
    there = torch.cat((first.prompt_mask, first.attended, torch.ones_like(answer)), 1) > 0
    texts = [row[seen].tolist()
             for row, seen in zip(torch.cat((first.tokens, answer), 1), there)]
    drawn = first.followed_by(answer, sampler(policy, texts, 1, **options))
    scores = completion_log_probs(policy, drawn)
    assert (scores - drawn.log_probs).abs().max() < 1e-12
    for row, counts in enumerate(drawn.mask > 0):
        seen = drawn.attended[row]
        prompt = drawn.tokens[row, : drawn.prompt_length][drawn.prompt_mask[row] > 0]
        text = torch.cat((prompt, drawn.completions[row][seen]))
        alone = policy(text[None])[0, :-1].log_softmax(-1).gather(1, text[1:, None])[:, 0]
        alone = alone[len(prompt) - 1 :][counts[seen]]
        assert (scores[row][counts] - alone).abs().max() < 1e-12


@pytest.mark.release
@pytest.mark.parametrize("inside", [False, True])
def test_a_compiled_model_is_trained_saved_finished_and_resumed_as_without(tiny_model, task, inside,
                                                                           tmp_path, monkeypatch):
    monkeypatch.setattr("grpo_lib.support.run_folder.get_task", lambda name: task)

    def made(compiled, seed=0):
        def change(module):
            return torch.compile(module, backend="eager") if compiled else module

        model = tiny_model(seed=seed)
        return HuggingFacePolicy(change(model)) if inside else change(HuggingFacePolicy(model))

    weights = []
    for compiled in (False, True):
        trainer = GRPOTrainer(made(compiled), task, SETTINGS)
        run = RunFolder.create(tmp_path / str(compiled), trainer, save_every=1)
        for metrics in trainer.run(1):
            run.record(metrics)
        run.save(trainer)
        again = RunFolder.open(run.path)
        with pytest.raises(CheckpointError, match="HuggingFacePolicy, which is yours to make"):
            again.new_trainer()
        resumed = again.new_trainer(policy=made(compiled, seed=3))
        for metrics in resumed.run():
            assert metrics.ratio_min == pytest.approx(1) == metrics.ratio_max
            again.record(metrics)
        again.finish(resumed)
        weights.append(load_tensors(run.checkpoint_at(2), "trainer")[0])
        finished = HuggingFacePolicy.from_pretrained(run.path / "policy", dtype=torch.float64)
        for a, b in zip(finished.parameters(), resumed.policy.parameters()):
            assert (a - b).abs().max() < 1e-9
    assert weights[0].keys() == weights[1].keys()
    assert all((a.double() - b.double()).abs().max() < 1e-9
               for a, b in zip(*(w.values() for w in weights)) if a.is_floating_point())


def test_dropout_is_off_also_where_a_part_was_put_into_train_mode(tiny_model, task):
    policy = HuggingFacePolicy(tiny_model("gpt2", attn_pdrop=0.3, resid_pdrop=0.3, embd_pdrop=0.3))
    policy.model.train()  # which the policy's own ``train`` would not do
    trainer = GRPOTrainer(policy, task, SETTINGS)
    metrics = trainer.step()
    assert (metrics.ratio_min, metrics.ratio_max) == pytest.approx((1, 1), abs=1e-9)
    assert metrics.kl == pytest.approx(0, abs=1e-9)
    assert policy.model.transformer.drop.training


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_tokenizer_larger_than_the_model_is_said_with_both_sizes(tiny_model, task, family):
    tokenizer = task.tokenizer.tokenizer
    size = len(tokenizer)
    small = HuggingFacePolicy(tiny_model(family, vocab_size=size - 7))
    with pytest.raises(ValueError, match=rf"^tokenizer: has {size} tokens, but the policy knows "
                                         rf"{size - 7}"):
        GRPOTrainer(small, task, SETTINGS)
    for sampler in (sample_groups, generate_groups):
        with pytest.raises(ValueError, match=rf"^prompts: got token {size - 1}, must be below "
                                             rf"{size - 7}"):
            sampler(small, [[5, size - 1]], 2, max_new_tokens=2, eos_id=1)
    fitting = HuggingFacePolicy(tiny_model(family))
    tokenizer.add_special_tokens({"pad_token": "<added>"})  # which no text holds
    GRPOTrainer(fitting, task, SETTINGS)
    tokenizer.add_tokens(["word"])
    with pytest.raises(ValueError, match=rf"^tokenizer: has {size + 2} tokens"):
        GRPOTrainer(fitting, task, SETTINGS)


def test_a_tokenizer_of_another_model_is_refused_when_it_is_loaded(saved, tiny_model):
    policy = HuggingFacePolicy(tiny_model(vocab_size=100), name=str(saved))
    with pytest.raises(ValueError, match=r"^tokenizer: has \d+ tokens, but the policy knows 100"):
        HuggingFaceTokenizer.of(policy)


def test_adapters_that_are_not_to_be_trained_are_refused_with_their_cause(tiny_model, task):
    policy = HuggingFacePolicy(room.with_lora(tiny_model(), 2)).requires_grad_(False)
    with pytest.raises(ValueError, match=r"^policy: all its parameters are frozen.*is_trainable"):
        GRPOTrainer(policy, task, SETTINGS)


def test_adapters_have_no_reference_to_save_and_few_checkpoints(tiny_model, task, tmp_path,
                                                                monkeypatch):
    monkeypatch.setattr("grpo_lib.support.run_folder.get_task", lambda name: task)
    config = replace(SETTINGS, steps=4, beta=0.1)

    def made():
        return HuggingFacePolicy(room.with_lora(tiny_model(), 2))

    straight = GRPOTrainer(policy := made(), task, config, policy.reference())
    list(straight.run())
    trainer = GRPOTrainer(policy := made(), task, config, policy.reference())
    run = RunFolder.create(tmp_path / "run", trainer, save_total_limit=1)
    for metrics in trainer.run(2):
        run.record(metrics)
        run.save(trainer)
    assert len(list((run.path / "checkpoints").iterdir())) == 1
    resumed = RunFolder.open(run.path).new_trainer(policy=made())
    assert isinstance(resumed.ref_policy, room.Reference)
    list(resumed.run())
    for a, b in zip(resumed.policy.parameters(), straight.policy.parameters()):
        assert torch.equal(a, b)


def test_a_tilde_is_the_home_folder(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    monkeypatch.setenv("USERPROFILE", str(saved.parent))
    monkeypatch.chdir(tmp_path)
    policy = HuggingFacePolicy.from_pretrained(f"~/{saved.name}", lora_rank=2)
    HuggingFaceTokenizer.of(policy)
    HuggingFaceTokenizer.of(f"~/{saved.name}")
    policy.save_pretrained("~/adapters")
    again = HuggingFacePolicy.from_pretrained("~/adapters")
    assert again.saved and list(tmp_path.iterdir()) == []
