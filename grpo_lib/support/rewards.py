"""From what reward functions and verifiers return to numbers: one for each completion.

A function is called once for each completion. What it returns may be of any number type. None
means that a reward abstains from this completion, as in TRL; in tensors that is nan. Functions
may be ``async def``: the calls of a batch are then awaited together.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import functools
import inspect
import math
import reprlib
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from grpo_lib.support.checks import check_number, one_number


class RewardError(RuntimeError):
    """A reward function or verifier has raised an error, which is the ``__cause__``."""


class Scores(NamedTuple):
    """What a task says of a batch: (N, G) each, nan where a reward abstained."""

    rewards: Tensor
    grades: Tensor  # 1 where right
    parts: dict[str, Tensor]  # several rewards by name, before they are weighed; else empty

    @staticmethod
    def join(scores: Sequence[Scores]) -> Scores:
        """Those of several batches as one."""
        return Scores(*(torch.cat(field) for field in list(zip(*scores))[:2]),
                      {name: torch.cat([s.parts[name] for s in scores])
                       for name in scores[0].parts})

    def groups(self, which: Tensor) -> Scores:
        """Those of some groups: indices (n,)."""
        return Scores(self.rewards[which], self.grades[which],
                      {name: part[which] for name, part in self.parts.items()})


def check_scores(said: str, scores: object, shape: tuple[int, int], abstains: bool) -> Tensor:
    """The scores as a tensor of floating-point numbers, whatever number type they have. TypeError,
    ValueError unless they are (N, G), of finite numbers (but nan where one may abstain)."""
    if not isinstance(scores, Tensor) or scores.is_complex():
        raise TypeError(f"{said} returned {brief(scores)}, must be a tensor of shape {shape}")
    if not scores.is_floating_point():
        scores = scores.to(torch.get_default_dtype())
    name = said.rpartition(".")[2]
    if scores.shape != shape:
        raise ValueError(f"{name}: got shape {tuple(scores.shape)}, must be one number for each "
                         f"completion, {shape}")
    wrong = scores.isinf() if abstains else ~scores.isfinite()
    if wrong.any():
        n, g = wrong.nonzero()[0].tolist()
        raise ValueError(f"{name}: got {scores[n, g].item()} for prompt {n}, completion {g}; must "
                         f"be finite numbers (to abstain, Task.reward returns None)")
    return scores


def scores_of(functions: Mapping[str, Callable], problems: Sequence, completions: Sequence[str],
              finished: Sequence[bool], abstains: bool) -> list[list[float]]:
    """Each function's numbers, one for each completion; nan where it abstained (None).

    ``functions``: by what an error calls them. A completion that was cut off has no final
    answer: it is not shown to a function, and gets 0. TypeError: not one number. ValueError: not
    finite. RewardError: the function has raised something.
    """
    size, rest = divmod(len(completions), len(problems))
    if rest or len(finished) != len(completions):
        raise ValueError(f"completions: got {len(completions)} (finished: {len(finished)}), "
                         f"allowed is a multiple of the {len(problems)} problems")
    calls = [Call(name, function, problems[row // size], completions[row])
             for name, function in functions.items() for row in range(len(completions))
             if finished[row]]
    values = iter([number_from(call, value, abstains)
                   for call, value in zip(calls, called(calls))])
    return [[next(values) if done else 0.0 for done in finished] for _ in functions]


class Call(NamedTuple):
    """A function that is asked about one completion."""

    name: str
    function: Callable
    problem: object
    completion: str

    def about(self) -> str:
        """Which completion, of which problem."""
        prompt = getattr(self.problem, "prompt", self.problem)
        return f"for the completion {brief(self.completion)} of the problem {brief(prompt)}"


def called(calls: Sequence[Call]) -> list:
    """What the functions return, awaited where that is needed, all together."""
    values: list = []
    try:
        for call in calls:
            with named(call):
                values.append(call.function(call.problem, call.completion))
    except BaseException:
        for value in values:
            if inspect.iscoroutine(value):
                value.close()  # nobody will await it
        raise
    if any(inspect.isawaitable(value) for value in values):
        return wait_for(gathered(calls, values))
    return values


async def gathered(calls: Sequence[Call], values: Sequence) -> list:
    """The values, with those that have to be awaited awaited at the same time."""
    async def settled(call, value):
        with named(call):
            return await value if inspect.isawaitable(value) else value

    tasks = [asyncio.ensure_future(settled(*pair)) for pair in zip(calls, values)]
    try:
        return await asyncio.gather(*tasks)
    finally:  # after an error, or Ctrl-C, nobody waits for the others
        for task in tasks:
            task.cancel()


@contextmanager
def named(call: Call) -> Iterator[None]:
    """RewardError that says which completion an error came from."""
    try:
        yield
    except (RewardError, NotImplementedError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise RewardError(f"{call.name} raised {what} ({call.about()})") from error


def number_from(call: Call, value: object, abstains: bool) -> float:
    """What a function returned as a float; nan where it abstained."""
    if value is None and abstains:
        return math.nan
    number = one_number(value)
    if number is None:
        hint = ""
        if inspect.isgenerator(value) or inspect.isasyncgen(value):
            hint = " (a function with yield returns a generator; use return)"
        elif value is None:
            hint = " (a verifier has to decide; only a reward may abstain with None)"
        raise TypeError(f"{call.name} returned {brief(value)}, must be one number{hint} "
                        f"({call.about()})")
    if not abs(number) <= torch.finfo(torch.get_default_dtype()).max:
        raise ValueError(f"{call.name} returned {number!r}, must be a finite number that "
                         f"{torch.get_default_dtype()} holds ({call.about()})")
    return float(number)


def brief(value: object) -> str:
    """``repr``, with what is long cut short in its middle."""
    shorten = reprlib.Repr()
    shorten.maxstring = shorten.maxother = 200
    return " ".join(shorten.repr(value).split())


# --- several rewards ----------------------------------------------------------------------------

def reward_functions(reward_funcs: Mapping[str, Callable] | Sequence[Callable]
                     ) -> dict[str, Callable]:
    """Functions by their names. TypeError, ValueError: not functions, or two of one name."""
    if isinstance(reward_funcs, (str, Set)) or not isinstance(reward_funcs, Iterable):
        raise TypeError(f"reward: got {brief(reward_funcs)}, must be a function (problem, "
                        f"completion) -> number, or several, as a list or a dict of name: function")
    if not isinstance(reward_funcs, Mapping):
        pairs = [(function_name(function), function) for function in reward_funcs]
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"reward: got two functions with the name {twice[0]!r}; metrics need "
                             f"different names, which a dict of name: function gives")
        reward_funcs = dict(pairs)
    for name, function in reward_funcs.items():
        if not isinstance(name, str) or not name or not callable(function):
            raise TypeError(f"reward: got {name!r}: {brief(function)}, must be a function "
                            f"(problem, completion) -> number, or several by name")
    if not reward_funcs:
        raise ValueError("reward: got none, must be one function or more")
    return dict(reward_funcs)


def function_name(function: object) -> str:
    """What a function is called, as TRL does: a partial by its function, an object by its class."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def check_weights(reward_weights: Sequence[float] | None, names: Sequence[str]) -> list[float]:
    """A number for each reward; None: 1 each."""
    if reward_weights is None:
        return [1.0] * len(names)
    try:
        given = list(reward_weights)
    except TypeError:
        given = [reward_weights]
    if len(given) != len(names) or isinstance(reward_weights, (str, Mapping)):
        raise ValueError(f"reward_weights: got {brief(reward_weights)}, must be one number for "
                         f"each of the {len(names)} rewards ({', '.join(names)})")
    return [float(check_number("reward_weights", weight)) for weight in given]


def weighted(parts: Mapping[str, Tensor], reward_weights: Sequence[float] | None) -> Tensor:
    """The sum of the rewards times their weights over those that did not abstain; nan where all
    did."""
    weights = check_weights(reward_weights, list(parts))
    terms = torch.stack([weight * part for weight, part in zip(weights, parts.values())])
    total = terms.nansum(0).masked_fill(terms.isnan().all(0), torch.nan)
    if total.isinf().any():
        raise ValueError(f"reward_weights: got {brief(reward_weights)}, by which the weighted sum "
                         f"of the rewards is beyond {total.dtype}")
    return total


# --- waiting for async functions ----------------------------------------------------------------

_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None
_lock = threading.Lock()


def wait_for(coroutine: Coroutine):
    """What a coroutine returns. It runs in one event loop for the whole session, in a thread of
    its own: a notebook's own loop is running already, and clients of web services must not meet
    another loop in every step. Ctrl-C cancels it."""
    future = None
    try:
        future = asyncio.run_coroutine_threadsafe(coroutine, background_loop())
        while not concurrent.futures.wait([future], 0.2).done:
            pass  # in pieces: a wait without a limit cannot be interrupted everywhere
        return future.result()
    except BaseException:
        if future is not None:
            future.cancel()
        raise


def background_loop() -> asyncio.AbstractEventLoop:
    """The session's event loop; a new one where its thread has ended, as after a fork."""
    global _loop, _thread
    with _lock:
        if _thread is None or not _thread.is_alive():
            _loop = asyncio.new_event_loop()
            _thread = threading.Thread(target=_loop.run_forever, name="grpo-rewards", daemon=True)
            _thread.start()
            atexit.unregister(end_loop)
            atexit.register(end_loop)
        return _loop


def end_loop() -> None:
    """Leave no loop open, which Python would warn of."""
    if _thread is not None and _thread.is_alive():
        _loop.call_soon_threadsafe(_loop.stop)
        _thread.join(1.0)
        if not _thread.is_alive():
            _loop.close()
