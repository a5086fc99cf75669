"""TRL's GRPOTrainer, whole, against ours on the same model, completions and settings: rewards,
advantages, the loss and the gradient of both passes over a batch, and what the optimizer does.

TRL keeps log-probs in float32. AdamW's first step is the sign of a gradient, so that what differs
by rounding would move weights that have next to none: the second pass therefore starts, here too,
from the weights that TRL had then.
"""

import copy
import statistics
import warnings

import pytest
import torch

from grpo_lib import ChainTask, GRPOConfig, GRPOTrainer, Problem, Rollouts
from grpo_lib.bridges.handover import trl_arguments, trl_dataset, trl_reward
from grpo_lib.bridges.huggingface import HuggingFacePolicy, HuggingFaceTokenizer, InstructionTask

MAX_NEW_TOKENS = 24
SETTINGS = {"steps": 1, "prompts_per_step": 6, "group_size": 8, "minibatches": 1,
            "num_iterations": 2, "learning_rate": 1e-2, "max_grad_norm": 1e9, "eval_every": 0}
CASES = [(*case, {}) if len(case) == 4 else case for case in (
    ("llama", "grpo", 0.0, None), ("llama", "grpo", 0.2, None), ("llama", "dapo", 0.0, 12),
    ("llama", "dr_grpo", 0.2, 6), ("gpt2", "grpo", 0.0, 16), ("gpt2", "dapo", 0.2, None),
    ("qwen2", "gspo", 0.0, None), ("qwen2", "cispo", 0.2, 24), ("llama", "sapo", 0.0, None),
    ("mistral", "grpo", 0.1, 8), ("llama", "grpo", 0.0, None, {"scale": "batch"}),
    ("llama", "dapo", 0.0, None, {"entropy_coef": 0.05, "top_entropy_quantile": 0.5}),
    ("llama", "grpo", 0.0, 12,
     {"epsilon": 0.02, "delta": 1.03, "off_policy_mask_threshold": 0.002}),
    ("qwen2", "gspo", 0.1, None, {"temperature": 0.7}))]


class EasyTask(ChainTask):
    """Rewards that random weights can earn; no special token has the letter in its name, since
    TRL does not show those to a reward function, and ours does."""

    def reward(self, problem, completion):
        return 1 + completion.count("o") / 2


def easy_tokenizer(trained_tokenizer):
    """Its end of an answer is a letter."""
    tokenizer = trained_tokenizer()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(70)
    return tokenizer


def run_trl(folder, tokenizer, config, out):
    """TRL's own run of one batch; what it sampled, and each optimizer step's loss and gradient."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig as TRLConfig
    from trl import GRPOTrainer as TRLTrainer

    seen = {"asked": [], "batch": [], "losses": [[]], "gradients": [], "weights": []}

    class Spy(TRLTrainer):
        def _generate_and_score_completions(self, inputs):
            seen["asked"].append(inputs)
            batch = super()._generate_and_score_completions(inputs)
            seen["batch"].append({k: v.clone() for k, v in batch.items() if torch.is_tensor(v)})
            return batch

        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            seen["losses"][-1].append(loss.item())
            return loss

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            seen["gradients"].append([p.grad.clone() for p in model.parameters()])
            seen["weights"].append([p.detach().clone() for p in model.parameters()])
            seen["losses"].append([])

    rows = trl_dataset(EasyTask(2, 3), 60)
    if "gpt2" in folder.name:  # TRL gives no positions, so its GPT-2 is right without padding only
        def length(row):
            return len(tokenizer.apply_chat_template(row["prompt"], tokenize=True,
                                                     return_dict=True)["input_ids"])

        common = statistics.mode(map(length, rows))
        rows = [row for row in rows if length(row) == common]
    arguments = trl_arguments(config, MAX_NEW_TOKENS) | {
        "output_dir": str(out), "use_cpu": True, "bf16": False, "save_strategy": "no",
        "model_init_kwargs": {"dtype": "auto"}, "gradient_checkpointing": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Spy(model=str(folder), args=TRLConfig(**arguments), processing_class=tokenizer,
                      reward_funcs=[trl_reward(EasyTask(2, 3), tokenizer.eos_token_id)],
                      train_dataset=Dataset.from_list(rows),
                      callbacks=[Gradients()])
        trainer.train()
    seen["weights"].append([p.detach().clone() for p in trainer.model.parameters()])
    return seen


@pytest.mark.parametrize("family, algorithm, beta, micro, more", CASES)
def test_same_rollouts_same_loss_same_gradient(tiny_model, trained_tokenizer, tmp_path, family,
                                               algorithm, beta, micro, more):
    config = GRPOConfig(**SETTINGS, algorithm=algorithm, beta=beta, micro_batch_size=micro, **more,
                        **({"dynamic_sampling": False, "overlong_share": 0.0}
                           if algorithm == "dapo" else {}))
    tokenizer = easy_tokenizer(trained_tokenizer)
    model = tiny_model(family, tie_word_embeddings=False, eos_token_id=70)
    with torch.no_grad():
        model.lm_head.weight[70] *= 4  # an end that is likely at some places
    model.save_pretrained(tmp_path / family)
    tokenizer.save_pretrained(tmp_path / family)
    trl = run_trl(tmp_path / family, tokenizer, config, tmp_path / "out")
    [asked], [batch] = trl["asked"], trl["batch"]

    class Same(InstructionTask):
        def problems(self, count, rng, split="train"):
            return [Problem(row["problem"], row["answer"]) for row in asked[:: config.group_size]]

    def same_rollouts(policy, prompts, group_size, **_):
        width = batch["prompt_ids"].shape[1]
        for row, prompt in enumerate(prompts):
            kept = batch["prompt_mask"][row * group_size].bool()
            assert batch["prompt_ids"][row * group_size][kept].tolist() == prompt
        ends = (batch["completion_ids"] == 70).long()
        mask, finished = (ends.cumsum(1) - ends == 0).double(), ends.any(1)
        counted = mask * finished[:, None] if algorithm == "dapo" else mask
        assert torch.equal(counted, batch["completion_mask"].double())
        tokens = torch.cat((batch["prompt_ids"], batch["completion_ids"]), 1)
        assert tokens.shape[1] == width + mask.shape[1]
        return Rollouts(tokens, batch["prompt_mask"], mask, torch.zeros_like(mask), finished,
                        group_size, config.temperature).scored_by(policy)

    task = Same(EasyTask(2, 3), HuggingFaceTokenizer(tokenizer), max_new_tokens=MAX_NEW_TOKENS)
    policy = HuggingFacePolicy(copy.deepcopy(model))
    trainer = GRPOTrainer(policy, task, config, sampler=same_rollouts)
    losses, gradients, weights, step = [], [], [], trainer.optimizer.step

    def step_and_compare():
        gradients.append([p.grad.clone() for p in policy.parameters()])
        step()
        weights.append([p.detach().clone() for p in policy.parameters()])
        with torch.no_grad():
            for parameter, theirs in zip(policy.parameters(), trl["weights"][len(weights)]):
                parameter.copy_(theirs)

    trainer.optimizer.step = step_and_compare
    of_step = trainer.gradient_step
    trainer.gradient_step = lambda *a, **k: losses.append(of_step(*a, **k)) or losses[-1]
    metrics = trainer.step()

    assert metrics.zero_variance_groups < 1
    assert metrics.reward_std > 0 and 0 < metrics.finished < 1
    assert torch.allclose(trainer.advantages.flatten().double(), batch["advantages"].double(),
                          rtol=0, atol=1e-5)
    if "old_per_token_logps" in batch:
        old = batch["old_per_token_logps"].double()  # TRL keeps float32
        where = batch["completion_mask"] > 0
        assert torch.allclose(trainer.rollouts.log_probs[where], old[where], rtol=0, atol=1e-5)
    assert len(gradients) == len(trl["gradients"]) == config.num_iterations
    for number in range(config.num_iterations):
        assert losses[number]["loss"] == pytest.approx(sum(trl["losses"][number]), rel=1e-5,
                                                       abs=1e-5)
        for (name, _), ours, theirs in zip(policy.named_parameters(), gradients[number],
                                           trl["gradients"][number]):
            assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max()), name
    assert losses[0]["ratio_max"] == pytest.approx(1, abs=1e-9)
    assert losses[1]["ratio_max"] > 1.001, "the second pass is off-policy"
    assert max(g.abs().max() for g in gradients[1]) > 1e-3
    for number in range(config.num_iterations):
        for ours, theirs, gradient in zip(weights[number], trl["weights"][number + 1],
                                          gradients[number]):
            clear = gradient.abs() > 1e-4 * gradient.abs().max()
            assert torch.allclose(ours[clear], theirs[clear], rtol=0,
                                  atol=0.01 * config.learning_rate)
