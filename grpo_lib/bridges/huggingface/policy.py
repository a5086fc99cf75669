"""A causal language model from transformers, met as ``Policy`` wants it."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from grpo_lib.bridges.huggingface.loading import (
    at_home,
    load_model,
    need,
    with_lora,
    with_trained_adapters,
)
from grpo_lib.support.checkpoint import as_path
from grpo_lib.support.checks import explain_out_of_memory, usable_device
from grpo_lib.support.modules import named_weights, plain_name, unwrapped
from grpo_lib.transformer import token_positions

OTHER_LAYERS = ("conv", "linear", "mamba", "recurrent")  # transformers 5.0 knows by name alone


class HuggingFaceCache:
    """The keys and values of a transformers model, in the manner of ``KVCache``."""

    def __init__(self, past, mask: Tensor):
        self.past, self.mask = past, mask  # mask (B, seen), 1 on real tokens

    def extend(self, mask: Tensor) -> Tensor:
        """Count more tokens (B, t) in; their positions (B, t)."""
        seen = self.mask.shape[1]
        self.mask = torch.cat((self.mask, mask), 1)
        return token_positions(self.mask)[:, seen:]

    def repeat(self, times: int, length: int) -> HuggingFaceCache:
        """Every row ``times`` times in a row; the cache itself must not be used any more."""
        self.past.batch_repeat_interleave(times)
        return HuggingFaceCache(self.past, self.mask.repeat_interleave(times, 0))

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but ``rows`` (indices)."""
        self.past.batch_select_indices(rows)
        self.mask = self.mask[rows]


class HuggingFacePolicy(nn.Module):
    """A causal LM of transformers, met as ``Policy`` wants it. Logits are float32 or wider.

    ``autocast``: the dtype of the matrix products, torch.bfloat16 for instance, under weights of
    another; None: that of the weights. ``name``: where it came from. With a cache only the
    logits after the last token are returned, (B, 1, V): sampling needs no others.
    """

    def __init__(self, model: nn.Module, *, autocast: torch.dtype | None = None,
                 name: str | None = None):
        super().__init__()
        self.model, self.autocast = model, autocast
        self.name = name or getattr(model.config, "name_or_path", "") or type(model).__name__
        trained = {n: p for n, p in self.named_parameters() if p.requires_grad}
        self.saved = [plain_name(name) for name in trained]
        changes = [p for n, p in trained.items() if ".lora_B." in n]
        self.without_adapters_the_same = bool(changes) and not any(p.any() for p in changes)
        if any(p.dtype in (torch.float16, torch.bfloat16) for p in trained.values()):
            warnings.warn("model: its weights are of 16 bits, in which most of a small step is "
                          "rounded away; train them in float32 (autocast multiplies in bfloat16 "
                          "all the same), or adapters", stacklevel=2)
        forward = unwrapped(getattr(model, "get_base_model", lambda: model)()).forward
        names = inspect.signature(forward).parameters  # "cache" since transformers 5.2x
        self._cache = next((n for n in ("cache", "past_key_values") if n in names), None)
        self.eval()

    @classmethod
    def from_pretrained(cls, name: str | Path, *, lora_rank: int | None = None,
                        lora_alpha: int | None = None, dtype: torch.dtype = torch.float32,
                        autocast: torch.dtype | str | None = "auto",
                        device: torch.device | str = "cpu") -> HuggingFacePolicy:
        """A model by its name on the hub, or from a folder (also one with adapters only, which
        then go on being trained).

        ``lora_rank``: train low-rank adapters (2106.09685) on all linear layers and leave the
        weights as they are, by peft; lora_alpha defaults to twice the rank. ``autocast`` "auto":
        bfloat16 on a CUDA device that computes in it (Ampere or newer), else none.
        ImportError, OSError: an extra, the model or the network is missing; says what to do.
        ValueError: the device cannot be used; new adapters on top of others.
        """
        device, name = usable_device(device), at_home(name)
        trained = (Path(name) / "adapter_config.json").is_file()
        need("transformers", *(["peft"] if lora_rank is not None or trained else []))
        if lora_rank is not None and trained:
            raise ValueError(f"lora_rank: got {lora_rank}, but {name} holds adapters already, "
                             f"which are trained on; allowed is None")
        with explain_out_of_memory(lambda: (
                f"loading {name}", "a smaller model needs less, and adapters on one in "
                "dtype=torch.bfloat16 (all of whose weights cannot be trained so)")):
            if trained:
                model, name = with_trained_adapters(name, dtype)
            else:
                model = load_model(name, dtype=dtype)
            if lora_rank is not None:
                model = with_lora(model, lora_rank, lora_alpha)
            if autocast == "auto":
                autocast = torch.bfloat16 if computes_in_bf16(device) else None
            return cls(model, autocast=autocast, name=str(name)).to(device)

    @property
    def config(self):
        """The model's configuration."""
        return self.model.config

    def train(self, mode: bool = True) -> HuggingFacePolicy:
        """Without effect: dropout stays off, since a ratio of two log-probs is to tell the change
        of the policy and not of the dice."""
        return super().train(False)

    def new_cache(self, batch: int, length: int) -> HuggingFaceCache:
        from transformers import DynamicCache

        self.check_length(length)
        device, past = next(self.parameters()).device, DynamicCache(config=self.config)
        kinds = {type(layer) for layer in past.layers}
        layers = getattr(self.config, "layer_types", None) or []
        if self._cache is None or not all(
                hasattr(kind, "batch_repeat_interleave") for kind in kinds) or any(
                part in layer for layer in layers for part in OTHER_LAYERS):
            raise ValueError(f"policy: {type(self.model).__name__} keeps more than keys and values "
                             f"of the text, which sample_groups cannot share in a group; allowed "
                             f"is GRPOTrainer(sampler=generate_groups)")
        return HuggingFaceCache(past, torch.zeros(batch, 0, dtype=torch.long, device=device))

    def check_length(self, length: int) -> None:
        """ValueError if the model cannot read so many tokens."""
        longest = getattr(self.config, "max_position_embeddings", None)
        if longest is not None and length > longest:
            raise ValueError(f"length: prompt and completion need {length} tokens, allowed are "
                             f"{longest} (the model's max_position_embeddings)")

    def forward(self, tokens: Tensor, mask: Tensor | None = None,
                cache: HuggingFaceCache | None = None) -> Tensor:
        """tokens (B, T), mask (B, T) -> logits (B, T, V), or (B, 1, V) with a cache."""
        mask = torch.ones_like(tokens) if mask is None else mask.long()
        options: dict = {"attention_mask": mask, "position_ids": token_positions(mask),
                         "use_cache": False}
        if cache is not None:
            positions = cache.extend(mask)
            options = {"attention_mask": cache.mask, "position_ids": positions,
                       self._cache: cache.past, "use_cache": True, "logits_to_keep": 1}
        with self.products_in_autocast(tokens):
            logits = self.model(input_ids=tokens, **options).logits
        return logits if logits.dtype == torch.float64 else logits.float()

    def products_in_autocast(self, tokens: Tensor) -> torch.autocast:
        """Matrix products in the dtype of ``autocast``, if there is one, on the tokens' device."""
        return torch.autocast(tokens.device.type, self.autocast or torch.bfloat16,
                              enabled=self.autocast is not None)

    def reference(self) -> Reference | None:
        """The policy before training, for ``GRPOTrainer(ref_policy=)``: with fresh adapters, the
        same weights without them, at no cost in memory. Else (all weights, or adapters that have
        been trained before) None: the trainer then makes a frozen copy."""
        return Reference(self) if self.without_adapters_the_same else None

    def state_dict(self, *args, **kwargs) -> dict[str, Tensor]:
        """What is trained: with adapters, those alone; tied weights once."""
        parameters = named_weights(self)
        return {name: parameters[name].detach() for name in self.saved}

    def load_state_dict(self, state: dict[str, Tensor], *args, **kwargs) -> None:
        parameters = named_weights(self)
        with torch.no_grad():
            for name in self.saved:
                parameters[name].copy_(state[name])

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the model, or its adapters, as transformers and peft read them."""
        self.model.save_pretrained(as_path(folder))


class Reference(nn.Module):
    """A policy with its adapters switched off. It holds no weights of its own."""

    def __init__(self, policy: HuggingFacePolicy):
        super().__init__()
        self._policy = (policy,)  # in a tuple, so that it is no submodule

    def new_cache(self, batch: int, length: int) -> HuggingFaceCache:
        return self._policy[0].new_cache(batch, length)

    def forward(self, tokens, mask=None, cache=None):
        with self._policy[0].model.disable_adapter():
            return self._policy[0](tokens, mask, cache)


def computes_in_bf16(device: torch.device | str) -> bool:
    """Whether bfloat16 is in the device's hardware (a T4 only imitates it)."""
    return (torch.device(device).type == "cuda" and torch.cuda.is_available()
            and torch.cuda.get_device_capability(device) >= (8, 0))
