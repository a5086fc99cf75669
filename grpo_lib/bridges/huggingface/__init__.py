"""A causal language model from transformers as a policy, with its tokenizer and chat template.

    policy = HuggingFacePolicy.from_pretrained("Qwen/Qwen2.5-0.5B-Instruct", lora_rank=16)
    task = InstructionTask(ChainTask(3, 5), HuggingFaceTokenizer.of(policy), max_new_tokens=160)
    GRPOTrainer(policy, task, GRPOConfig(micro_batch_size=8), policy.reference())

Needs the ``llm`` extra. Everything else is the library's: the same sampling, loss and trainer.
Left out: dropout (old and new log-probs must be of one function), gradient checkpointing.
"""

from grpo_lib.bridges.huggingface.generation import generate_groups
from grpo_lib.bridges.huggingface.loading import (
    adapters,
    can_be_loaded,
    load_model,
    loaded,
    need,
    quiet,
    with_lora,
)
from grpo_lib.bridges.huggingface.policy import HuggingFacePolicy, Reference, computes_in_bf16
from grpo_lib.bridges.huggingface.tokenizer import HuggingFaceTokenizer, InstructionTask, end_ids

__all__ = ["HuggingFacePolicy", "HuggingFaceTokenizer", "InstructionTask", "Reference", "adapters",
           "can_be_loaded", "computes_in_bf16", "end_ids", "generate_groups", "load_model",
           "loaded", "need", "quiet", "with_lora"]
