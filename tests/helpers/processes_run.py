"""What tests/support/test_processes.py starts by torchrun: many short runs; the first process
writes what came of them. Without torchrun: the same on one process."""

import json
import sys
from dataclasses import asdict

import torch

from grpo_lib import ChainTask, GRPOConfig, GRPOTrainer, SortTask, load_base_model
from grpo_lib.policy import TinyPolicy
from grpo_lib.support.processes import joined, leave
from grpo_lib.transformer import PolicyConfig, TransformerPolicy

SHARED = {"steps": 4, "prompts_per_step": 5, "group_size": 4, "eval_every": 3,
          "eval_problems": 7, "beta": 0.05, "num_iterations": 2}
RUNS = {
    "default": {}, "micro-batches": {"micro_batch_size": 3, "minibatches": 3},
    "sequence mean": {"aggregation": "sequence_mean"},
    "entropy bonus": {"entropy_coef": 0.01},
    **{name: {"algorithm": name} for name in ("dapo", "dr_grpo", "gspo", "rloo", "maxrl")},
    "batch": {"scale": "batch", "baseline": "batch", "minibatches": 4},
    "few groups": {"algorithm": "dapo", "max_num_gen_batches": 1, "minibatches": 6,
                   "learning_rate": 5e-3},  # dynamic sampling leaves 1 to 4 of 5 groups
    "cut off": {"mask_truncated_completions": True, "aggregation": "nonempty_sequence_mean",
                "micro_batch_size": 2, "minibatches": 2},  # of rows, some with no end
    "tiny": {"steps": 3, "eval_every": 1, "eval_problems": 2}}  # fewer than processes


# by three processes, which share nothing evenly
BY_THREE = ("default", "micro-batches", "batch", "few groups", "cut off", "tiny")


def run(name, processes):
    config = GRPOConfig(**SHARED | RUNS[name])
    if name == "tiny":  # it has no cache and no context
        task = SortTask(2, 3)
        torch.manual_seed(0)
        policy = TinyPolicy(len(task.tokenizer), 8).double()
    elif name == "default":  # other ranks may start from other weights: the first one's count
        task = SortTask(2, 3)
        policy = TransformerPolicy(PolicyConfig(len(task.tokenizer), init_std=0.3),
                                   torch.Generator().manual_seed(processes.rank)).double()
    else:
        # a reward that groups differ in: where none does, gradients are rounding, which AdamW's
        # first steps blow up
        task = ChainTask(3, 5).with_reward(lambda problem, text: len(text) % 7 / 6)
        if name == "cut off":
            task.max_new_tokens = 5
        policy = load_base_model("chain").double()
    trainer = GRPOTrainer(policy, task, config, processes=processes)
    notices = []
    trainer.tell = notices.append  # "tiny" and "default" start from nothing, and may be told so
    history = [asdict(m) for m in trainer.run()]
    assert all("taught the policy nothing" in text for text in notices), notices
    weights = torch.cat([p.detach().flatten() for p in trainer.policy.parameters()])
    others = processes.gather(weights[None])
    # now: processes with weights of their own end up waiting for one another
    assert (others == weights).all(), f"{name}: not all hold the same weights"
    return {"history": history, "weights": weights.sum().item(), "norm": weights.norm().item(),
            "rows": len(others)}


if __name__ == "__main__":
    with joined("cpu") as (processes, _):
        names = BY_THREE if processes.size == 3 else RUNS
        found = {name: run(name, processes) for name in names}
        if processes.rank == 0:
            with open(sys.argv[1], "w") as file:
                json.dump(found, file)
    leave(0)
