"""What a policy brings along as a torch module: its wrappers, its mode, its weights' names.

``torch.compile`` and DistributedDataParallel wrap a module and put a prefix before the names of
its weights; checkpoints hold the names without. In train mode, dropout and batch statistics make
a policy answer differently each time, and a ratio of two log-probs would tell the change of the
dice: so policies are sampled, scored and trained in eval mode, and are left as they were found.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

F = TypeVar("F", bound=Callable)


def unwrapped(policy):
    """The module inside ``torch.compile``'s and DistributedDataParallel's wrappers."""
    while isinstance(policy, nn.Module):
        inner = policy._modules.get("_orig_mod")  # torch.compile's
        if inner is None and isinstance(policy, (nn.parallel.DistributedDataParallel,
                                                 nn.DataParallel)):
            inner = policy.module
        if inner is None:
            break
        policy = inner
    return policy


def offers(model, method: str) -> bool:
    """Whether a module has a method that may stand for calling it. What calling it does may have
    been changed: by a subclass, a wrapper, a hook, or a forward set on the object; in the module
    itself, or in a part of it that has the method too."""
    return isinstance(model, nn.Module) and hasattr(model, method) and all(
        method in vars(type(part)) and "forward" not in vars(part)
        and not any((part._forward_pre_hooks, part._forward_hooks,
                     part._backward_pre_hooks, part._backward_hooks))
        for part in model.modules() if hasattr(part, method))


def plain_name(name: str) -> str:
    """The name of a weight, whether parts of its module are compiled or not."""
    return name.replace("_orig_mod.", "")


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module by its plain names. TypeError: something in it is no tensor."""
    state = {plain_name(name): value for name, value in unwrapped(module).state_dict().items()}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"policy: {type(unwrapped(module)).__name__}'s state_dict holds a "
                            f"{type(value).__name__} called {name}, must be tensors alone, which a "
                            f"checkpoint can hold; make it a buffer (register_buffer)")
    return state


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put the state of ``weights_of`` into a module."""
    inner = unwrapped(module)
    inner.load_state_dict({name: weights[plain_name(name)] for name in inner.state_dict()})


def named_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's parameters by their plain names."""
    return {plain_name(name): p for name, p in unwrapped(module).named_parameters()}


@contextmanager
def eval_mode(*models) -> Iterator[None]:
    """Dropout off, batch statistics fixed; afterwards each module is in the mode it was in.

    A recurrent layer without dropout stays in train mode, which changes no number and which its
    backward pass on CUDA needs.
    """
    training = [module for model in models if isinstance(model, nn.Module)
                for module in model.modules() if module.training
                and not (isinstance(module, nn.RNNBase) and module.dropout == 0)]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def in_eval_mode(function: F) -> F:
    """A function whose first argument is a policy, which is in eval mode meanwhile."""

    @functools.wraps(function)
    def called(policy, *arguments, **options):
        with eval_mode(policy):
            return function(policy, *arguments, **options)

    return cast(F, called)


def check_policy(policy) -> None:
    """TypeError, saying what to add, for what training and sampling need of a policy."""
    if not isinstance(policy, nn.Module):
        raise TypeError(f"policy: got a {type(policy).__name__}, must be a torch.nn.Module")
    inner = unwrapped(policy)
    kind = type(inner).__name__
    if not callable(getattr(inner, "new_cache", None)):
        raise TypeError(f"policy: {kind} has no method new_cache(batch, length); add one, which "
                        f"may return None")
    try:
        inspect.signature(inner.forward).bind(None, None, None)
    except TypeError:
        raise TypeError(f"policy: {kind}.forward does not take (tokens, mask, cache); add the "
                        f"arguments it lacks") from None


def check_trainable(name: str, module: nn.Module) -> None:
    """ValueError if no weight of a module could change."""
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(f"{name}: all its parameters are frozen (requires_grad is False), so "
                         f"there is nothing to train; unfreeze some, with {name}."
                         f"requires_grad_(True) for instance (adapters: is_trainable=True)")
    if any(p.is_inference() for p in trained):
        raise ValueError(f"{name}: was made inside torch.inference_mode(), whose tensors cannot be "
                         f"trained; make it outside")


def check_apart(policy: nn.Module, ref_policy: nn.Module) -> None:
    """ValueError if the reference policy has weights of its own that training would change."""
    fixed = {id(p) for p in ref_policy.parameters()}
    if any(p.requires_grad and id(p) in fixed for p in policy.parameters()):
        raise ValueError("ref_policy: shares weights with policy that are to be trained; give a "
                         "copy of it (copy.deepcopy), or None, which makes one")


def check_gradients_on(what: str) -> None:
    """RuntimeError inside ``torch.no_grad()`` and ``torch.inference_mode()``."""
    if not torch.is_grad_enabled():
        raise RuntimeError(f"{what}: was called inside torch.no_grad() or torch.inference_mode(), "
                           f"where no gradient is computed; call it outside")


def vocabulary_of(policy) -> int | None:
    """How many tokens a policy knows, if it tells."""
    inner = unwrapped(policy)
    find = getattr(getattr(inner, "model", None), "get_input_embeddings", None)
    if find is not None:
        return len(find().weight)
    size = getattr(getattr(inner, "config", None), "vocab_size", None)
    if size is None and isinstance(inner, nn.Module):
        size = max((len(module.weight) for module in inner.modules()
                    if isinstance(module, nn.Embedding)), default=None)
    return size


def check_vocabulary(policy, tokenizer) -> None:
    """ValueError if the tokenizer has tokens that the policy does not know."""
    known, words = vocabulary_of(policy), getattr(tokenizer, "tokens_in_texts", None)
    if words is None:
        words = len(tokenizer) if hasattr(tokenizer, "__len__") else 0
    if known is not None and words > known:
        raise ValueError(f"tokenizer: has {words} tokens, but the policy knows {known}; it must "
                         f"have at most as many (they belong to different models, perhaps)")
