"""Files of a run: weights and state in safetensors, everything else in JSON; never pickle.

A file is written beside its place and then renamed, so that a full disk or a killed process
leaves the old one whole. A checksum tells whether a bit has changed since.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from grpo_lib.policy import Policy
from grpo_lib.support.checks import one_number
from grpo_lib.support.modules import (
    check_policy,
    load_weights,
    named_weights,
    unwrapped,
    weights_of,
)
from grpo_lib.transformer import PolicyConfig, TransformerPolicy

BASE_MODELS = Path(__file__).parents[1] / "base_models"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or is of something else."""


class DamagedError(CheckpointError):
    """A checkpoint that was not written to its end, or has changed since."""


def as_path(path: Path | str) -> Path:
    """A path as a person gives it: ~ is the home folder."""
    return Path(path).expanduser()


def new_folder(path: Path | str, inner: str | None = None) -> Path:
    """Make a folder, or take an empty one; with a folder ``inner`` in it, which of two processes
    only one can make. FileExistsError: there is something in it."""
    path = as_path(path)
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise FileExistsError
        path.mkdir(parents=True, exist_ok=True)
        if inner is not None:
            (path / inner).mkdir()
    except FileExistsError:
        raise FileExistsError(f"{path}: is not an empty folder; nothing was overwritten") from None
    return path


def write_atomically(path: Path | str, data: bytes) -> None:
    """Replace ``path`` by ``data``, or leave it as it was (OSError)."""
    path = as_path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def json_text(content: object, indent: int | None = None) -> str:
    """JSON that every reader takes: nan and inf, which JSON does not have, become null, and numbers
    of NumPy and torch Python's own."""
    return json.dumps(finite(content), indent=indent, allow_nan=False)


def finite(content: object) -> object:
    """The same with None for every number that is not finite."""
    if isinstance(content, Mapping):
        return {name: finite(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    content = content if (number := one_number(content)) is None else number
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(path: Path | str, content: Mapping) -> None:
    write_atomically(path, (json_text(content, indent=1) + "\n").encode())


def read_json(path: Path | str) -> dict:
    """A JSON object, or CheckpointError saying what is wrong with the file."""
    try:
        content = json.loads(as_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({in_a_line(error)})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not an object")
    return content


def save_tensors(path: Path | str, tensors: Mapping[str, Tensor], about: Mapping) -> None:
    """Write tensors and a JSON-able description into one safetensors file."""
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    about = {**about, "checksum": checksum(tensors, about)}
    # one entry alone: safetensors writes several in any order, and no file would be like another
    write_atomically(path, save(tensors, metadata={"grpo_lib": json_text(about)}))


def checksum(tensors: Mapping[str, Tensor], about: Mapping) -> str:
    """CRC-32 of all that a file says: every byte of every tensor, names, shapes, dtypes, and the
    description. It finds damage, not malice. (Files of older versions have none.)"""
    total = zlib.crc32(json_text(about).encode())
    for name, tensor in sorted(tensors.items()):
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        total = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy(), total)
    return f"{total:08x}"


def in_a_line(error: BaseException) -> str:
    return " ".join(str(error).split())


@contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """A file of safetensors; DamagedError if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise DamagedError(f"{path}: not a readable checkpoint ({in_a_line(error)})") from None


def describe(path: Path | str) -> dict:
    """The description of a file, without its tensors; {} where it is none of ours."""
    path = as_path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    with opened(path) as file:
        about = json.loads((file.metadata() or {}).get("grpo_lib", "{}"))
    return about if isinstance(about, dict) else {}


def load_tensors(path: Path | str, kind: str) -> tuple[dict[str, Tensor], dict]:
    """Tensors and description of a file whose description says ``kind``."""
    path = as_path(path)
    about = describe(path)
    with opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    written = about.pop("checksum", None)
    if written is not None and written != checksum(tensors, about):
        raise DamagedError(f"{path}: not a readable checkpoint (its checksum does not fit: "
                           f"it was damaged after it was written)")
    found = about.get("kind", "something")
    if found != kind:
        raise CheckpointError(f"{path}: holds {found!r}, allowed is {kind!r}")
    return tensors, about


def check_weights(module: torch.nn.Module, tensors: Mapping[str, Tensor], path: Path | str) -> None:
    """CheckpointError with one line saying which weight does not fit the module."""
    wanted, trained = weights_of(module), named_weights(module)
    for name in sorted(wanted.keys() | tensors.keys()):
        got = tuple(tensors[name].shape) if name in tensors else "nothing"
        want = tuple(wanted[name].shape) if name in wanted else "nothing"
        if got != want:
            raise CheckpointError(f"{path}: {name} is {got}, allowed is {want}")
        if tensors[name].is_floating_point() != wanted[name].is_floating_point():
            raise CheckpointError(f"{path}: {name} is {tensors[name].dtype}, allowed is "
                                  f"{wanted[name].dtype}")
        # (a buffer may well hold -inf, as masks do)
        if name in trained and not tensors[name].isfinite().all():
            raise CheckpointError(f"{path}: {name} holds nan or inf, allowed are finite numbers")


def save_policy(path: Path | str, policy: Policy, task_name: str) -> None:
    """The policy alone: weights, shape, and the task whose vocabulary it speaks. Of a class of
    your own: its weights, and which class it is."""
    check_policy(policy)
    policy = unwrapped(policy)
    shape = {"config": policy.config.to_dict()} if type(policy) is TransformerPolicy else {
        "class": class_of(policy)}
    save_tensors(path, weights_of(policy), {"kind": "policy", **shape, "task": task_name})


def class_of(policy: Policy | type) -> str:
    """Where a policy's class is to be found."""
    kind = policy if isinstance(policy, type) else type(unwrapped(policy))
    return f"{kind.__module__}.{kind.__qualname__}"


def load_policy(path: Path | str, task_name: str | None = None,
                policy: Policy | None = None) -> Policy:
    """A policy saved by ``save_policy``. ``policy``: one of your own class, which gets the
    weights. CheckpointError: damaged, or of another task or class."""
    tensors, about = load_tensors(path, "policy")
    if task_name is not None and about.get("task") != task_name:
        raise CheckpointError(f"{path}: is a policy for the task {about.get('task')!r}, allowed "
                              f"is {task_name!r}")
    if policy is not None:
        check_weights(policy, tensors, path)
        load_weights(policy, tensors)
        return policy
    if "class" in about:
        raise CheckpointError(f"{path}: holds the weights of a {about['class']}, a class that is "
                              f"yours; make one, and load_policy(path, policy=made) gives it "
                              f"the weights")
    try:
        config = PolicyConfig(**about["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its description does not fit ({error})") from None
    numbers = sum(tensor.numel() for tensor in tensors.values())
    if max(config.n_layers, config.vocab_size * config.d_model,
           config.d_model * config.d_hidden) > numbers:  # before memory is asked for
        raise CheckpointError(f"{path}: its description is of a model with more weights than its "
                              f"{numbers}")
    policy = TransformerPolicy(config)
    check_weights(policy, tensors, path)
    policy.to(next(iter(tensors.values())).dtype).load_state_dict(tensors)  # in their precision
    return policy


def base_model_path(task_name: str) -> Path:
    """Where the base model that comes with the package is, for tasks that have one."""
    return BASE_MODELS / f"{task_name}.safetensors"


def load_base_model(task_name: str = "chain") -> TransformerPolicy:
    """The pre-trained policy that comes with the package. ValueError names those there are."""
    shipped = sorted(path.stem for path in BASE_MODELS.glob("*.safetensors"))
    if task_name not in shipped:
        raise ValueError(f"task_name: got {task_name!r}, allowed are {', '.join(shipped)}; for "
                         f"another task, python -m grpo_lib pretrain --task {task_name} makes one, "
                         f"which load_policy loads")
    return load_policy(base_model_path(task_name), task_name)
