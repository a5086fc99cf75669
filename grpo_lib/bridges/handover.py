"""The way on to TRL's GRPOTrainer: a task's verifier as its reward function, a ``GRPOConfig`` in
its words (``translation``), and a training script with accelerate's configurations (``templates``).

What goes beyond a machine (sharded weights, rollouts by vLLM) is TRL's; ``python -m grpo_lib
handover`` writes what it needs. Nothing here imports TRL.

Run, against TRL 1.16: the losses, the reward, the script on one and two CPU processes. Written to
its documentation and not run: FSDP, DeepSpeed, vLLM, any GPU.
"""

from __future__ import annotations

import inspect
import math
import random
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from string import Template

from grpo_lib.bridges.translation import Line, as_table, translate, trl_arguments
from grpo_lib.config import GRPOConfig, config_line
from grpo_lib.support.checkpoint import as_path, new_folder
from grpo_lib.support.checks import check_whole
from grpo_lib.support.rewards import check_weights, scores_of
from grpo_lib.tasks import TASKS, Problem, Task

__all__ = ["Line", "as_code", "as_table", "cautions", "translate", "trl_arguments", "trl_dataset",
           "trl_reward", "trl_rewards", "trl_tokenizer", "write_handover"]
# what is written: as it stands (accelerate's files, which are TRL's own but for what their comments
# say), or with its $names filled in (.template)
TEMPLATES = Path(__file__).parent / "templates"
OVERLONG = '''    from trl.rewards import get_soft_overlong_punishment
    rewards.append(get_soft_overlong_punishment(MAX_NEW_TOKENS, {cache}))
    weights.append(1.0)
'''


def trl_rewards(task: Task, eos_id: int | Sequence[int] | None = None
                ) -> tuple[list[Callable], list[float]]:
    """(reward_funcs, reward_weights) for TRL's GRPOTrainer and GRPOConfig: a function for each of
    the task's rewards, under the same names."""
    if not task.reward_funcs:
        return [trl_reward(task, eos_id)], [1.0]
    functions = [as_trl(function, name, eos_id) for name, function in task.reward_funcs.items()]
    return functions, check_weights(task.reward_weights, list(task.reward_funcs))


def trl_reward(task: Task, eos_id: int | Sequence[int] | None = None) -> Callable:
    """The task's reward as TRL calls a reward function; of several rewards (``trl_rewards``) their
    weighted sum.

    TRL gives ``prompts``, ``completions`` (texts, or lists of messages), ``completion_ids`` and
    the dataset's columns, of which "problem" and "answer" are used (``trl_dataset`` has them), and
    wants a list of numbers, or None where the reward abstains. ``eos_id``: a completion that does
    not end in one of these was cut off and gets 0, as here; None: it is judged as it stands.
    """
    return as_trl(task.reward, f"{task.name}_reward", eos_id)


def as_trl(function: Callable, name: str, eos_id: int | Sequence[int] | None) -> Callable:
    """A function (problem, completion) -> number, as TRL calls it; ``name`` is that in its log."""
    ends = None if eos_id is None else {eos_id} if isinstance(eos_id, int) else set(eos_id)

    def reward(prompts, completions, completion_ids=None, *, problem, answer, **columns):
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        finished = [True] * len(texts)
        if ends is not None and completion_ids is not None:
            finished = [len(ids) > 0 and int(ids[-1]) in ends for ids in completion_ids]
        [scores] = scores_of({f"reward: {name}": function},
                             [Problem(p, a) for p, a in zip(problem, answer)],
                             [" ".join(text.split()) for text in texts], finished, abstains=True)
        return [None if math.isnan(score) else score for score in scores]

    reward.__name__ = name
    return reward


def trl_dataset(task: Task, count: int, *, seed: int = 0, chat: bool = True,
                split: str = "train") -> list[dict]:
    """Rows for ``datasets.Dataset.from_list``: prompt, problem, answer.

    ``chat``: the problem in words, as a user's message; else the task's own prompt.
    """
    problems = (task.held_out(count) if split == "held_out"
                else task.problems(count, random.Random(seed), split))
    return [{"prompt": [{"role": "user", "content": task.instruction(p)}] if chat else p.prompt,
             "problem": p.prompt, "answer": p.answer} for p in problems]


def trl_tokenizer(model: str, chat: bool = True):
    """The model's tokenizer as TRL's trainer wants it, padding token and all.

    OSError: it cannot be loaded. ValueError: no end-of-sequence token; with ``chat``, no chat
    template.
    """
    from grpo_lib.bridges.huggingface import HuggingFaceTokenizer

    tokenizer = HuggingFaceTokenizer.of(model, chat=chat).tokenizer
    if tokenizer.eos_token_id is None:  # ours can do with those of the model's settings
        raise ValueError("tokenizer: has no end-of-sequence token; TRL needs one, so set "
                         "tokenizer.eos_token to the token that ends an answer")
    if tokenizer.pad_token_id is None:
        warnings.warn("tokenizer: has no pad token; its end-of-sequence token is used for padding, "
                      "which the mask leaves out", stacklevel=2)
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def cautions(config: GRPOConfig, max_new_tokens: int, lora_rank: int | None = None) -> list[str]:
    """What translates, and is probably not meant for a real language model."""
    usual, how = (1e-5, "all weights") if lora_rank is None else (1e-4, "adapters")
    found = []
    if config.learning_rate > 3 * usual:
        found.append(f"learning_rate = {config.learning_rate:g}: a toy's; for {how} of a language "
                     f"model about {usual:g} is usual")
    if config.micro_batch_size is None:
        rows = config.prompts_per_step * config.group_size // config.minibatches
        found.append(f"micro_batch_size = None: {rows} completions go through the model at once; "
                     f"with {max_new_tokens} tokens each and a vocabulary of 150,000 the logits "
                     f"alone take {rows * max_new_tokens * 150_000 * 4 / 1e9:.0f} GB; 8 is a start")
    return found


def as_code(task: Task) -> str:
    """How a built-in task is made anew: its class with its arguments.

    ValueError: it is not built in, or was changed after it was made (``with_reward``), so that
    no line of code would make it again.
    """
    kind = type(task)
    names = list(inspect.signature(kind).parameters)
    if kind in TASKS.values() and all(hasattr(task, name) for name in names):
        arguments = {name: getattr(task, name) for name in names}
        if vars(kind(**arguments)) == vars(task):
            inside = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            return f"{kind.__name__}({inside})"
    raise ValueError(f"task: got a {kind.__name__} that is not built in, or was changed; allowed "
                     f"is one of {', '.join(kind.__name__ for kind in TASKS.values())} as it was "
                     f"made (write another task in a file, and import it in train.py)")


def write_handover(folder: Path | str, task: Task, model: str, config: GRPOConfig,
                   max_new_tokens: int, *, chat: bool = True, lora_rank: int | None = None,
                   command: str | None = None) -> list[Line]:
    """Write train.py, accelerate's configurations and a README into a new folder.

    ``model``: a name on the hub, or a folder. ``chat``: problems go in words through its chat
    template; False: the task's own prompts.
    ``lora_rank``: train adapters, as ``HuggingFacePolicy.from_pretrained(lora_rank=)`` does; None:
    all weights. ``command``: what made it, to be named in train.py.
    Returns the translation; what is ``lost``, and the ``cautions``, should be told.
    FileExistsError: the folder is not empty. ValueError: the task is not built in (``as_code``),
    or the batch cannot be dealt out (``translate``).
    """
    if lora_rank is not None:
        lora_rank = check_whole("lora_rank", lora_rank, 1)
    if as_path(model).is_dir():  # the script may be started anywhere
        model = str(as_path(model).resolve())
    made, lines = as_code(task), translate(config, max_new_tokens)
    share = config.choices.overlong_share
    careful = "".join(f"- {line}\n" for line in cautions(config, max_new_tokens, lora_rank))
    values = {
        "train.py": {
            "title": f"GRPO on {model} by TRL, with grpo_lib's task {task.name!r} and its "
                     f"verifier.",
            "written": f"Written by: python -m grpo_lib handover {command}\n" if command else "",
            "model": repr(model), "lora_rank": lora_rank, "task": made, "chat": chat,
            "settings": config_line(config), "max_new_tokens": max_new_tokens,
            "overlong": OVERLONG.format(cache=max(1, round(share * max_new_tokens)))
            if share else ""},
        "README.md": {
            "task": task.name, "model": model, "table": as_table(lines),
            "cautions": careful and f"Look at these first:\n\n{careful}\n"}}
    folder = new_folder(folder)
    for path in TEMPLATES.iterdir():
        text, name = path.read_text(encoding="utf-8"), path.name.removesuffix(".template")
        if name != path.name:
            text = Template(text).substitute(values[name])
        (folder / name).write_text(text, encoding="utf-8")
    return lines
