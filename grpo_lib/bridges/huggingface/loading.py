"""Models from a folder or the hub, with adapters; one clear line for what commonly goes wrong."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from grpo_lib.support.installed import install_command


def need(*packages: str) -> None:
    """ImportError, in one line, for what the ``llm`` extra would have brought."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{', '.join(missing)}: not installed; {install_command('llm')} brings "
                          f"what real language models need")


def at_home(name: str | Path) -> str:
    """A model's name or folder, of which a ~ at the start is the home folder."""
    return str(Path(name).expanduser()) if str(name).startswith("~") else str(name)


def loaded(load: Callable, name: str | Path, what: str, **options):
    """``load(name, **options)``; OSError or ImportError, in a line, where that fails."""
    name = at_home(name)
    if name.startswith((".", "/")) and not Path(name).is_dir():
        raise OSError(f"{name}: no such folder; allowed are a folder with a model in it and a "
                      f"model's name on the hub, like Qwen/Qwen2.5-0.5B-Instruct")
    try:
        return load(name, **options)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise
        raise explained(error, name, what) from None


def explained(error: Exception, name: str, what: str) -> Exception:
    """What to do about an error of transformers, which wraps those of the hub."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    causes, why = [error], first_line(error)
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    if Path(name).is_dir():
        return OSError(f"{name}: holds no {what} that transformers can load ({why})")
    if isinstance(error, ImportError):  # a model that needs a package of its own
        return ImportError(f"{name}: {why}")
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return OSError(f"{name}: its owners ask you to accept their terms on its page on the "
                       f"hub, and to log in (hf auth login)")
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return OSError(f"{name}: the hub has no such model, or it needs a login "
                       f"(hf auth login); check the name")
    if not isinstance(error, OSError):
        return OSError(f"{name}: holds no {what} that the installed transformers can load; a "
                       f"newer one may ({why})")
    return OSError(f"{name}: could not be fetched from the hub and is not in the cache; check "
                   f"the network, or give a folder that holds the model ({why})")


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__


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
