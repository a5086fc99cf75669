"""Real language models, made tiny and from a config; left out where the ``llm`` extra is not."""

import importlib.util
import os

import pytest

HERE = all(importlib.util.find_spec(name) for name in ("transformers", "peft"))
TRL = importlib.util.find_spec("trl") is not None  # there is none for Python 3.10
collect_ignore_glob = [] if HERE else ["test_*.py"]
collect_ignore = [] if TRL else ["test_handover.py", "test_trl_trainer.py"]
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded, and nobody is asked
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

CHAT = ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}")


def pytest_report_header():
    if not HERE:
        return "tests/llm: left out, transformers or peft is missing (pip install -e '.[llm]')"
    if not TRL:
        return "tests/llm: what needs TRL is left out; it is for Python 3.11 and newer"


@pytest.fixture(scope="session")
def trained_tokenizer():
    """Makes a byte-level BPE tokenizer, trained on instructions of the chain task."""
    import random

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from grpo_lib import ChainTask

    task, rng = ChainTask(2, 3), random.Random(0)
    texts = [task.instruction(p) + " " + task.example(p, rng, "skill")
             for p in task.problems(200, rng)]

    def make(chat=True, pad=True, eos=True):
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
        bpe.train_from_iterator(texts, trainers.BpeTrainer(
            vocab_size=300, special_tokens=special, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=bpe, **({"pad_token": "<|pad|>"} if pad else {}),
            **({"eos_token": "<|end|>"} if eos else {}))
        tokenizer.chat_template = CHAT if chat else None
        return tokenizer

    return make


@pytest.fixture(scope="session")
def tiny_model(trained_tokenizer):
    """Makes a model of a family from a config, with random weights that matter (float64)."""
    import torch
    import transformers

    size = len(trained_tokenizer())

    def make(family="llama", dtype=torch.float64, seed=0, **options):
        torch.manual_seed(seed)
        shape = {"vocab_size": size, "initializer_range": 0.2, "bos_token_id": None,
                 "eos_token_id": 1, "pad_token_id": 0}
        if family == "gpt2":
            config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256,
                                             **shape | options)
        else:
            kind = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config,
                    "mistral": transformers.MistralConfig}[family]
            config = kind(hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                          num_key_value_heads=2, intermediate_size=48,
                          max_position_embeddings=256, **shape | options)
        return transformers.AutoModelForCausalLM.from_config(config).to(dtype)

    return make


@pytest.fixture(scope="session")
def saved(tmp_path_factory, tiny_model, trained_tokenizer):
    """A folder with a model and its tokenizer, as a hub would give them."""
    import torch

    folder = tmp_path_factory.mktemp("model")
    tiny_model("qwen2", torch.float32).save_pretrained(folder)
    trained_tokenizer().save_pretrained(folder)
    return folder
