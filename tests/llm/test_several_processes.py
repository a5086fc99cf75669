"""A model of transformers, with adapters and without, trained by several processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import PATIENCE

# Without torchrun: the same on one process. (folder of the model, file for what came of it)
SCRIPT = '''
import json, sys
from dataclasses import asdict
import torch
from grpo_lib import ChainTask, GRPOConfig, GRPOTrainer
from grpo_lib.bridges.huggingface import HuggingFacePolicy, HuggingFaceTokenizer, InstructionTask
from grpo_lib.support.processes import joined, leave

with joined("cpu") as (processes, device):
    found = {}
    for rank in (None, 4):
        policy = HuggingFacePolicy.from_pretrained(sys.argv[1], lora_rank=rank,
                                                   dtype=torch.float64).double()
        ends = HuggingFaceTokenizer.of(policy).tokenizer
        task = InstructionTask(ChainTask(2, 3), HuggingFaceTokenizer(ends, eos_ids=range(1, 60)),
                               max_new_tokens=12).with_reward(lambda p, text: len(text) % 5 / 4)
        config = GRPOConfig(steps=3, prompts_per_step=4, group_size=4, micro_batch_size=3,
                            beta=0.1, eval_every=0, learning_rate=1e-3)
        trainer = GRPOTrainer(policy, task, config, policy.reference(), processes=processes)
        found[str(rank)] = [asdict(m) for m in trainer.run()]
    if processes.rank == 0:
        with open(sys.argv[2], "w") as file:
            json.dump(found, file)
leave(0)
'''


def test_the_metrics_are_those_of_one(saved, tmp_path):
    (tmp_path / "run.py").write_text(SCRIPT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore",
                                "PYTHONPATH": str(Path(__file__).parents[2])}
    results = []
    for launch in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]):
        out = tmp_path / f"{len(results)}.json"
        done = subprocess.run([sys.executable, *launch, str(tmp_path / "run.py"), str(saved),
                               str(out)], env=environment, capture_output=True, text=True,
                              timeout=PATIENCE)
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(json.loads(out.read_text()))
    one, two = results
    for kind in ("None", "4"):
        assert max(m["grad_norm"] for m in one[kind]) > 0
        for wanted, got in zip(one[kind], two[kind], strict=True):
            for name, value in wanted.items():
                if not name.startswith("seconds"):
                    same = None if value is None else pytest.approx(value, rel=1e-5, abs=1e-7)
                    assert got[name] == same, (kind, wanted["step"], name)
