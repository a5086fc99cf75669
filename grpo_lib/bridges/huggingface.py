"""A causal language model from transformers as a policy, with its tokenizer and chat template.

    policy = HuggingFacePolicy.from_pretrained("Qwen/Qwen2.5-0.5B-Instruct", lora_rank=16)
    task = InstructionTask(ChainTask(3, 5), HuggingFaceTokenizer.of(policy), max_new_tokens=160)
    GRPOTrainer(policy, task, GRPOConfig(micro_batch_size=8), policy.reference())

Needs the ``llm`` extra. Everything else is the library's: the same sampling, loss and trainer.
Left out: dropout (old and new log-probs must be of one function), gradient checkpointing.
"""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from grpo_lib.rollout import Rollouts, check_sampling, shard
from grpo_lib.support.checks import explain_out_of_memory, usable_device
from grpo_lib.support.installed import install_command
from grpo_lib.support.modules import (
    check_vocabulary,
    in_eval_mode,
    named_weights,
    plain_name,
    unwrapped,
)
from grpo_lib.tasks.base import Problem, Task
from grpo_lib.tokenizer import PAD, pad
from grpo_lib.transformer import token_positions


def need(*packages: str) -> None:
    """ImportError, in one line, for what the ``llm`` extra would have brought."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{', '.join(missing)}: not installed; {install_command('llm')} brings "
                          f"what real language models need")


def loaded(load: Callable, name: str | Path, what: str, **options):
    """``load(name, **options)``, with one clear line for what commonly goes wrong."""
    name = at_home(name)
    if name.startswith((".", "/")) and not Path(name).is_dir():
        raise OSError(f"{name}: no such folder; allowed are a folder with a model in it and a "
                      f"model's name on the hub, like Qwen/Qwen2.5-0.5B-Instruct")
    try:
        return load(name, **options)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise
        if Path(name).is_dir():
            raise OSError(f"{name}: holds no {what} that transformers can load "
                          f"({first_line(error)})") from None
        if isinstance(error, ImportError):  # a model that needs a package of its own
            raise ImportError(f"{name}: {first_line(error)}") from None
        causes, at = set(), error
        while at is not None:
            causes |= {kind.__name__ for kind in type(at).__mro__}
            at = at.__cause__ or at.__context__
        if "GatedRepoError" in causes or "gated repo" in str(error):
            raise OSError(f"{name}: its owners ask you to accept their terms on its page on the "
                          f"hub, and to log in (hf auth login)") from None
        if "RepositoryNotFoundError" in causes or "not a valid model identifier" in str(error):
            raise OSError(f"{name}: the hub has no such model, or it needs a login "
                          f"(hf auth login); check the name") from None
        if not isinstance(error, OSError):
            raise OSError(f"{name}: holds no {what} that the installed transformers can load; a "
                          f"newer one may ({first_line(error)})") from None
        raise OSError(f"{name}: could not be fetched from the hub and is not in the cache; check "
                      f"the network, or give a folder that holds the model "
                      f"({first_line(error)})") from None


def at_home(name: str | Path) -> str:
    """A model's name or folder, of which a ~ at the start is the home folder."""
    return str(Path(name).expanduser()) if str(name).startswith("~") else str(name)


def load_model(name: str | Path, **options) -> nn.Module:
    """A causal LM with all its weights. OSError: some are missing, or of another shape, which
    transformers would fill with random numbers."""
    from transformers import AutoModelForCausalLM

    model, about = loaded(AutoModelForCausalLM.from_pretrained, name, "language model",
                          output_loading_info=True, **options)
    wrong = sorted(about["missing_keys"]) + [key for key, *_ in about["mismatched_keys"]]
    if wrong:
        raise OSError(f"{name}: {len(wrong)} weights of this language model are missing or of "
                      f"another shape ({', '.join(wrong[:3])}); the checkpoint is incomplete, or "
                      f"of another kind of model")
    return model


def can_be_loaded(name: str) -> bool:
    """Whether a model is there: in the cache, or on a hub that answers."""
    need("transformers")
    from transformers import AutoConfig

    try:
        loaded(AutoConfig.from_pretrained, name, "configuration")
    except OSError:
        return False
    return True


def quiet() -> None:
    """No progress bars and no hints of transformers, in this process."""
    need("transformers")
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__


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
        with torch.autocast(tokens.device.type, self.autocast or torch.bfloat16,
                            enabled=self.autocast is not None):
            logits = self.model(input_ids=tokens, **options).logits
        return logits if logits.dtype == torch.float64 else logits.float()

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
        self.model.save_pretrained(Path(folder).expanduser())


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


def adapters(rank: int, alpha: int | None = None):
    """peft's LoraConfig: on all linear layers but the last, scaled by alpha / rank (2 if alpha is
    None), no dropout."""
    need("peft")
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=alpha or 2 * rank, target_modules="all-linear",
                      lora_dropout=0.0, task_type="CAUSAL_LM")


def with_lora(model: nn.Module, rank: int, alpha: int | None = None, seed: int = 0) -> nn.Module:
    """The model with adapters W + alpha / rank * B A on all its linear layers (2106.09685 Eq. 3),
    B = 0 at first, A drawn from ``seed``."""
    from peft import get_peft_model

    chosen = adapters(rank, alpha)
    chosen.fan_in_fan_out = getattr(model.config, "model_type", "") == "gpt2"
    with warnings.catch_warnings(), torch.random.fork_rng([]):
        warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
        torch.manual_seed(seed)
        return get_peft_model(model, chosen)


def with_trained_adapters(folder: str | Path, dtype: torch.dtype) -> tuple[nn.Module, str]:
    """The model that a folder's adapters belong to, with them on it; and its name."""
    from peft import PeftConfig, PeftModel

    name = loaded(PeftConfig.from_pretrained, folder, "adapter").base_model_name_or_path
    model = load_model(name, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
        return loaded(lambda at: PeftModel.from_pretrained(model, at, is_trainable=True), folder,
                      "adapter"), name


def computes_in_bf16(device: torch.device | str) -> bool:
    """Whether bfloat16 is in the device's hardware (a T4 only imitates it)."""
    return (torch.device(device).type == "cuda" and torch.cuda.is_available()
            and torch.cuda.get_device_capability(device) >= (8, 0))


class HuggingFaceTokenizer:
    """A tokenizer of transformers, as tasks and trainer want it.

    ``chat``: prompts go through its chat template as a user's message, after ``system`` if that
    is given; False: they stay as they are. ``eos_ids``: what ends a completion, several where the
    model says so (the end of a turn and the end of a text). A pad token is not needed: masks tell
    padding.

    ValueError: no end-of-sequence token; with ``chat``, no chat template.
    """

    def __init__(self, tokenizer, *, chat: bool = True, system: str | None = None,
                 eos_ids: Sequence[int] = ()):
        self.tokenizer, self.chat, self.system = tokenizer, chat, system
        own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.eos_id = tuple(dict.fromkeys([*own, *eos_ids]))
        if not self.eos_id:
            raise ValueError("tokenizer: has no end-of-sequence token, so no completion would ever "
                             "end; set tokenizer.eos_token to the token that ends an answer")
        if chat and not getattr(tokenizer, "chat_template", None):
            raise ValueError("tokenizer: has no chat template (a base model's, perhaps); take an "
                             "instruct model, or chat=False, which gives prompts as they are")
        self.words = Words(tokenizer)

    @classmethod
    def of(cls, policy: HuggingFacePolicy | str | Path, **options) -> HuggingFaceTokenizer:
        """The tokenizer that belongs to a model."""
        need("transformers")
        from transformers import AutoTokenizer

        policy = unwrapped(policy)
        known = isinstance(policy, HuggingFacePolicy)
        policy = policy if known else at_home(policy)
        tokenizer = loaded(AutoTokenizer.from_pretrained, policy.name if known else policy,
                           "tokenizer")
        ends = end_ids(policy.model if known else policy, tokenizer)
        made = cls(tokenizer, eos_ids=ends, **options)
        if known:
            check_vocabulary(policy, made)
        return made

    def __len__(self) -> int:
        return len(self.tokenizer)

    @property
    def tokens_in_texts(self) -> int:
        """How many tokens a model must know. A special one that was added, for padding say, and
        that ends nothing, need not be among them: a prompt that has it is refused."""
        added = set(self.tokenizer.all_special_ids) - set(self.eos_id)
        return 1 + max(set(self.tokenizer.get_vocab().values()) - added)

    def encode(self, text: str) -> list[int]:
        """The token ids that the model continues."""
        if not self.chat:
            return self.tokenizer(text)["input_ids"]
        messages = [{"role": "user", "content": text}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True,
                                                  tokenize=True, return_dict=True)["input_ids"]

    def decode_rows(self, tokens: Tensor, mask: Tensor) -> list[str]:
        """Texts of a batch: tokens (B, T), mask (B, T). What ends a completion is left out; any
        other special token stays visible, so that no verifier overlooks it."""
        rows = [[i for i, counts in zip(row, row_mask) if counts and i not in self.eos_id]
                for row, row_mask in zip(tokens.tolist(), mask.tolist())]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=False)


def end_ids(model: nn.Module | str | Path, tokenizer) -> list[int]:
    """The tokens that end a completion, as TRL's trainer and ``generate`` take them: the
    tokenizer's own end-of-sequence, and those of the model's generation settings."""
    from transformers import AutoConfig, GenerationConfig

    if isinstance(model, nn.Module):
        settings = getattr(model, "generation_config", None)
    else:
        try:
            settings = GenerationConfig.from_pretrained(at_home(model))
        except OSError:  # the model comes without: then those of its configuration count
            settings = loaded(AutoConfig.from_pretrained, model, "configuration")
    ends = getattr(settings, "eos_token_id", None)
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return list(dict.fromkeys([*own, *([] if ends is None else [ends] if isinstance(ends, int)
                                       else ends)]))


class Words(Sequence):
    """The text of each token by its id, for the token X-ray."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.tokenizer)

    def __getitem__(self, token: int) -> str:
        return self.tokenizer.decode([token])


class InstructionTask(Task):
    """A task, put to a language model in words, with the same verifier.

    ``task`` says the words (``Task.instruction``; with a tokenizer that has no chat, the prompt
    itself) and judges the answer, in which any white space counts as one space.
    """

    def __init__(self, task: Task, tokenizer: HuggingFaceTokenizer, *, max_new_tokens: int):
        self.task, self.tokenizer, self.max_new_tokens = task, tokenizer, max_new_tokens
        self.name, self.holds_out = task.name, task.holds_out
        self.reward_weights = task.reward_weights
        self.reward_funcs = task.reward_funcs and {
            name: partial(self._with_spaces, function)
            for name, function in task.reward_funcs.items()}

    def problem(self, rng) -> Problem:
        return self.task.problem(rng)

    def correct(self, problem: Problem, completion: str) -> bool:
        return self.task.correct(problem, " ".join(completion.split()))

    def reward(self, problem: Problem, completion: str) -> float:
        return self.task.reward(problem, " ".join(completion.split()))

    @staticmethod
    def _with_spaces(function: Callable, problem: Problem, completion: str):
        return function(problem, " ".join(completion.split()))

    def instruction(self, problem: Problem) -> str:
        return self.task.instruction(problem) if self.tokenizer.chat else problem.prompt

    def describe(self, problem: Problem) -> str:
        return self.task.describe(problem)

    def encode(self, problem: Problem) -> list[int]:
        return self.tokenizer.encode(self.instruction(problem))


@torch.no_grad()
@in_eval_mode
def generate_groups(policy: HuggingFacePolicy, prompts: Sequence[Sequence[int]], group_size: int,
                    *, max_new_tokens: int, temperature: float = 1.0,
                    generator: torch.Generator | None = None, eos_id: int | Sequence[int],
                    device: torch.device | str = "cpu", part: tuple[int, int] = (0, 1),
                    rows_at_once: int = 16) -> Rollouts:
    """``sample_groups`` by transformers' own ``generate``: ``GRPOTrainer(sampler=)``.

    The model's default generation settings (top-p, top-k, repetition penalty) are set aside: they
    would sample from another distribution than the one that is scored. Random numbers are
    torch's own, seeded from ``generator``; other numbers than ``sample_groups`` draws. log_probs
    are computed afterwards, ``rows_at_once`` completions at a time.
    """
    from transformers import GenerationConfig

    policy = unwrapped(policy)
    group_size, max_new_tokens, temperature = check_sampling(policy, prompts, group_size,
                                                             max_new_tokens, temperature)
    ends = [eos_id] if isinstance(eos_id, int) else list(eos_id)
    chosen = shard(len(prompts), part)
    tokens, prompt_mask = (t[chosen].repeat_interleave(group_size, 0).to(device)
                           for t in pad(prompts, "left"))
    policy.check_length(tokens.shape[1] + max_new_tokens)
    seed = torch.randint(2**62, (part[1],), generator=generator)[part[0]].item()
    how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    plain = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=PAD,
                             **(how if temperature > 0 else {"do_sample": False}))
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices), generation_config(policy.model, plain):
        torch.manual_seed(seed)
        with torch.autocast(tokens.device.type, policy.autocast or torch.bfloat16,
                            enabled=policy.autocast is not None):
            tokens = policy.model.generate(input_ids=tokens, attention_mask=prompt_mask,
                                           generation_config=plain)
    completions = tokens[:, prompt_mask.shape[1] :]
    ended = torch.isin(completions, torch.tensor(ends, device=completions.device))
    dtype = torch.promote_types(next(policy.parameters()).dtype, torch.float32)  # of the logits
    mask = (ended.long().cumsum(1) - ended.long() == 0).to(dtype)
    rollouts = Rollouts(torch.cat((tokens[:, : prompt_mask.shape[1]],
                                   completions.masked_fill(mask == 0, PAD)), 1), prompt_mask,
                        mask, torch.zeros_like(mask), ended.any(1), group_size, temperature)
    if temperature == 0:
        return rollouts
    return rollouts.scored_by(policy, rows_at_once)


@contextmanager
def generation_config(model: nn.Module, config):
    """``generate`` fills what a config leaves open from the model's own: not here."""
    model = getattr(model, "get_base_model", lambda: model)()
    before, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = before


def warn_without_pad(tokenizer) -> None:
    """For what needs a pad token (TRL's trainer does; this library does not)."""
    if tokenizer.pad_token_id is None:
        warnings.warn("tokenizer: has no pad token; its end-of-sequence token is used for padding, "
                      "which the mask leaves out", stacklevel=2)
        tokenizer.pad_token = tokenizer.eos_token
