"""The base model: a policy trained from scratch on a task's examples, in two stages.

First the skill (worked traces), then the habit that buries it (answering at once, skipping
steps). RL is to bring the skill out again; ``one_step_accuracy`` is the evidence that it is
there. Real pre-training has a corpus that is not about the task.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from grpo_lib.objective import aggregate
from grpo_lib.policy import token_log_probs
from grpo_lib.support.checks import check_number, check_whole, settle
from grpo_lib.support.modules import check_gradients_on, check_vocabulary, in_eval_mode
from grpo_lib.support.optim import ADAMW
from grpo_lib.tasks.base import Task
from grpo_lib.tokenizer import pad
from grpo_lib.transformer import PolicyConfig, TransformerPolicy

READY = 0.97  # one-step accuracy below which RL may not take off


@dataclass(frozen=True)
class PretrainConfig:
    """The recipe. Muon (kellerjordan.github.io/posts/muon) trains the blocks' matrices, AdamW
    the rest; both rates warm up, then fall in a line to a tenth."""

    skill_steps: int = 240  # batches of stage 1
    habit_steps: int = 60  # batches of stage 2, at a tenth of the rates
    batch_size: int = 128  # examples in a batch
    skill_share: float = 0.92  # share of worked traces in stage 1; the rest shows the habit
    muon_lr: float = 0.03
    adamw_lr: float = 0.01
    warmup_steps: int = 20
    habit_rate: float = 0.1  # rates of stage 2, as a share of stage 1's
    seed: int = 0

    def __post_init__(self):
        for name, least in (("skill_steps", 1), ("batch_size", 1), ("warmup_steps", 1),
                            ("habit_steps", 0), ("seed", 0)):
            settle(self, **{name: check_whole(name, getattr(self, name), least)})
        settle(self, skill_share=check_number("skill_share", self.skill_share, least=0, most=1))
        for name in ("muon_lr", "adamw_lr", "habit_rate"):
            settle(self, **{name: check_number(name, getattr(self, name), above=0)})

    def to_dict(self) -> dict:
        return asdict(self)


def pretrain(task: Task, config: PretrainConfig, policy_config: PolicyConfig | None = None,
             device: torch.device | str = "cpu") -> Iterator[tuple[int, float, TransformerPolicy]]:
    """Train a policy from scratch, yielding (step, loss, policy) after every batch. Weights and
    examples are drawn on the CPU, so that they are the same on every device."""
    if policy_config is None:
        policy_config = PolicyConfig(len(task.tokenizer), context_length=task.context_length)
    check_gradients_on("pretrain")
    policy = TransformerPolicy(policy_config, torch.Generator().manual_seed(config.seed)).to(device)
    check_vocabulary(policy, task.tokenizer)
    rng = random.Random(config.seed)
    step = 0
    for steps, share, rate in ((config.skill_steps, config.skill_share, 1.0),
                               (config.habit_steps, 0.0, config.habit_rate)):
        optimizers = make_optimizers(policy, config, rate)
        for at in range(steps):
            factor = min(1.0, (at + 1) / config.warmup_steps) * (1 - 0.9 * at / steps)
            for optimizer, base in optimizers:
                optimizer.param_groups[0]["lr"] = base * factor
                optimizer.zero_grad(set_to_none=True)
            loss = example_loss(policy, task, draw_examples(task, config.batch_size, share, rng))
            if not loss.isfinite():
                raise FloatingPointError(f"loss: got {loss.item()} at step {step + 1}; that step "
                                         f"was not taken")
            loss.backward()
            for optimizer, _ in optimizers:
                optimizer.step()
            step += 1
            yield step, loss.item(), policy


def make_optimizers(policy: TransformerPolicy, config: PretrainConfig, rate: float):
    """[(optimizer, its rate)]: Muon for the matrices of the blocks, AdamW for all else."""
    matrices = [p for p in policy.model.layers.parameters() if p.dim() == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in policy.parameters() if id(p) not in chosen]
    return [(torch.optim.Muon(matrices, weight_decay=0.0), rate * config.muon_lr),
            (torch.optim.AdamW(others, **ADAMW), rate * config.adamw_lr)]


def draw_examples(task: Task, count: int, skill_share: float, rng: random.Random
                  ) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, completion ids with end-of-sequence) of ``count`` training problems."""
    examples = []
    for problem in task.problems(count, rng):
        style = "skill" if rng.random() < skill_share else "habit"
        completion = task.tokenizer.encode(task.example(problem, rng, style))
        prompt = task.tokenizer.encode(problem.prompt)
        examples.append((prompt, [*completion, task.tokenizer.eos_id]))
    return examples


def example_loss(policy: TransformerPolicy, task: Task, examples) -> Tensor:
    """Mean negative log-prob of the completions' tokens; prompts are context only."""
    device = next(policy.parameters()).device
    tokens, mask = pad([prompt + completion for prompt, completion in examples], "right")
    prompts = torch.tensor([len(prompt) for prompt, _ in examples])[:, None]
    counts = mask[:, 1:] * (torch.arange(1, tokens.shape[1]) >= prompts)
    tokens, counts = tokens.to(device), counts.to(device)
    log_probs = token_log_probs(policy(tokens[:, :-1]), tokens[:, 1:])
    return -aggregate(log_probs, counts, "token_mean")


@torch.no_grad()
@in_eval_mode
def one_step_accuracy(policy: TransformerPolicy, task: Task, count: int = 1000,
                      seed: int = 0) -> float | None:
    """How often the task's probe is answered rightly, greedily: the skill, measured.

    None where the task has no probe.
    """
    count = check_whole("count", count, 1)
    rng = random.Random(seed)
    probes = [task.probe(rng) for _ in range(count)]
    if None in probes:
        return None
    texts, answers = zip(*probes)
    tokens, mask = pad([task.tokenizer.encode(text) for text in texts], "left")
    device = next(policy.parameters()).device
    chosen = policy(tokens.to(device), mask.to(device))[:, -1].argmax(-1).tolist()
    return sum(task.tokenizer.decode([i]) == a for i, a in zip(chosen, answers)) / count
