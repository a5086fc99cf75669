"""A ``TransformerPolicy`` as a Llama checkpoint with its tokenizer.

The block, its weight names and its constants are Llama's, so that this is a renaming of settings.
Needs the ``llm`` extra.
"""

from __future__ import annotations

import re
from pathlib import Path

from grpo_lib.bridges.huggingface import need
from grpo_lib.support.checkpoint import new_folder
from grpo_lib.support.modules import unwrapped, weights_of
from grpo_lib.tokenizer import EOS, PAD, Tokenizer
from grpo_lib.transformer import TransformerPolicy

# ours: LlamaConfig's
SAME = {"vocab_size": "vocab_size", "d_model": "hidden_size", "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads", "d_hidden": "intermediate_size",
        "context_length": "max_position_embeddings", "norm_eps": "rms_norm_eps",
        "init_std": "initializer_range"}
# what a TransformerPolicy is, in LlamaConfig's words
ALWAYS = {"tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
          "hidden_act": "silu", "attention_dropout": 0.0}


def llama(policy: TransformerPolicy):
    """The same model as transformers' LlamaForCausalLM, with a copy of the weights."""
    need("transformers")
    from transformers import LlamaConfig, LlamaForCausalLM

    policy = unwrapped(policy)
    if not isinstance(policy, TransformerPolicy):
        raise TypeError(f"policy: got a {type(policy).__name__}, allowed is a TransformerPolicy "
                        f"(a HuggingFacePolicy has save_pretrained)")
    ours = policy.config
    config = LlamaConfig(**{theirs: getattr(ours, name) for name, theirs in SAME.items()},
                         **ALWAYS, num_key_value_heads=ours.n_heads,
                         head_dim=ours.d_model // ours.n_heads,
                         rope_parameters={"rope_type": "default", "rope_theta": ours.rope_theta},
                         pad_token_id=PAD, eos_token_id=EOS, bos_token_id=None)
    model = LlamaForCausalLM(config).to(policy.lm_head.weight.dtype)
    model.load_state_dict(weights_of(policy))
    model.config.dtype = policy.lm_head.weight.dtype
    return model.eval()


def fast_tokenizer(tokenizer: Tokenizer):
    """The same tokenizer as transformers' PreTrainedTokenizerFast."""
    need("transformers", "tokenizers")
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = "|".join(map(re.escape, sorted(tokenizer.words, key=len, reverse=True)))
    made = tokenizers.Tokenizer(models.WordLevel({w: i for i, w in enumerate(tokenizer.words)}))
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(r"\s+"), "removed"),
        pre_tokenizers.Split(tokenizers.Regex(words), "isolated")])
    # words are put apart by a space, but for one after "=", as Tokenizer.decode does
    made.decoder = decoders.Sequence([
        decoders.WordPiece(cleanup=False), decoders.Fuse(),
        decoders.Replace(tokenizers.Regex("= "), "=")])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=tokenizer.words[PAD], eos_token=tokenizer.words[EOS],
        padding_side="left", clean_up_tokenization_spaces=False)


def export_llama(policy: TransformerPolicy, tokenizer: Tokenizer, folder: Path | str) -> Path:
    """Write config.json, model.safetensors and the tokenizer's files into a new folder, which
    ``AutoModelForCausalLM.from_pretrained(folder)`` loads. FileExistsError: not empty."""
    model, fast = llama(policy), fast_tokenizer(tokenizer)
    if policy.config.vocab_size != len(tokenizer):
        raise ValueError(f"tokenizer: knows {len(tokenizer)} words, allowed are the "
                         f"{policy.config.vocab_size} of the policy")
    folder = new_folder(folder)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
