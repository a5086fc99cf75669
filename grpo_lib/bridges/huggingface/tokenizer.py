"""A tokenizer of transformers, and a task that is put to its model in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from grpo_lib.bridges.huggingface.loading import at_home, loaded, need
from grpo_lib.bridges.huggingface.policy import HuggingFacePolicy
from grpo_lib.support.modules import check_vocabulary, unwrapped
from grpo_lib.tasks.base import Problem, Task


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
        self.eos_id = tuple(own_end_and(tokenizer, eos_ids))
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
        name, model = (policy.name, policy.model) if known else (policy, policy)
        tokenizer = loaded(AutoTokenizer.from_pretrained, name, "tokenizer")
        made = cls(tokenizer, eos_ids=end_ids(model, tokenizer), **options)
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


def own_end_and(tokenizer, others: Iterable[int]) -> list[int]:
    """The tokenizer's own end-of-sequence, if it has one, and others; each once."""
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return list(dict.fromkeys([*own, *others]))


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
    return own_end_and(tokenizer, [] if ends is None else [ends] if isinstance(ends, int) else ends)


class Words(Sequence):
    """The text of each token by its id, for the token X-ray."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.tokenizer)

    def __getitem__(self, token: int) -> str:
        return self.tokenizer.decode([token])


def on_single_spaced(function: Callable, problem: Problem, completion: str):
    """A verifier's or reward's answer, in which any white space counts as one space."""
    return function(problem, " ".join(completion.split()))


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
            name: partial(on_single_spaced, function)
            for name, function in task.reward_funcs.items()}

    def problem(self, rng) -> Problem:
        return self.task.problem(rng)

    def correct(self, problem: Problem, completion: str) -> bool:
        return on_single_spaced(self.task.correct, problem, completion)

    def reward(self, problem: Problem, completion: str) -> float:
        return on_single_spaced(self.task.reward, problem, completion)

    def instruction(self, problem: Problem) -> str:
        return self.task.instruction(problem) if self.tokenizer.chat else problem.prompt

    def describe(self, problem: Problem) -> str:
        return self.task.describe(problem)

    def encode(self, problem: Problem) -> list[int]:
        return self.tokenizer.encode(self.instruction(problem))
