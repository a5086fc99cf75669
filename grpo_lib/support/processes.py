"""One run on several processes, as ``torchrun`` starts them: groups are dealt out, gradients added.

Every process draws the same random numbers and holds the same weights. Each samples and scores
its own part of the prompts, hands the completions round (token ids are small), and then knows the
whole batch: advantages and metrics are those of one process (but not with ``generate_groups``,
where what a row samples depends on its company). In an update each takes its share
of the minibatch's rows, and DistributedDataParallel adds up the gradients. Left out: sharding of
weights, and rollouts by an engine of their own (``handover`` leads to trainers that have them).
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from grpo_lib.config import GRPOConfig
from grpo_lib.rollout import Rollouts, sample_groups, shard


class OtherProcessLost(RuntimeError):
    """Another process of the run has ended, or does not answer."""


class Processes:
    """The only process of a run: what ``SeveralProcesses`` do, where there is nobody else."""

    rank, size = 0, 1

    def split(self, rows: Tensor) -> Tensor:
        """This process's share of the rows."""
        return rows[shard(len(rows), (self.rank, self.size))]

    def wrap(self, module: nn.Module) -> Callable:
        """The module as an update calls it."""
        return module

    def sync_gradients(self, last: bool):
        """Around a backward pass; at the ``last`` of an update gradients are added up."""
        return nullcontext()

    def gather(self, part: Tensor) -> Tensor:
        """The rows (b, T) of all processes, in order."""
        return part

    def agree(self, thing):
        """What the first process holds, on all of them."""
        return thing

    def reduce(self, values: Tensor, how: str) -> Tensor:
        """"sum", "min" or "max" over the processes."""
        return values

    def sampler(self, sample: Callable[..., Rollouts] = sample_groups) -> Callable[..., Rollouts]:
        """A sampler like ``sample`` whose work is dealt out by prompts."""
        return sample


class SeveralProcesses(Processes):
    """Process ``rank`` of ``size``; ``torch.distributed`` has been set up."""

    def __init__(self):
        self.rank, self.size = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def wrap(self, module):
        several = nn.parallel.DistributedDataParallel
        given = next((part for part in module.modules() if isinstance(part, several)), None)
        with lost_processes():
            self._wrapped = given or several(module)
        return module if given else self._wrapped

    @contextmanager
    def sync_gradients(self, last):
        with lost_processes(), nullcontext() if last else self._wrapped.no_sync():
            yield

    def gather(self, part):
        return torch.cat([t.to(part.device) for t in self._all(part.cpu())])

    def _all(self, thing) -> list:
        things = [None] * self.size
        with lost_processes():
            torch.distributed.all_gather_object(things, thing)
        return things

    def agree(self, thing):
        return self._all(thing)[0]

    def reduce(self, values, how):
        operation = getattr(torch.distributed.ReduceOp, how.upper())
        with lost_processes():
            torch.distributed.all_reduce(values, operation)
        return values

    def sampler(self, sample=sample_groups):
        def together(policy, prompts, group_size, *, device="cpu", **options) -> Rollouts:
            if len(prompts) < self.size:
                return sample(policy, prompts, group_size, device=device, **options)
            mine = sample(policy, prompts, group_size, device=device,
                          part=(self.rank, self.size), **options)
            return Rollouts.join(self._all(mine.to("cpu"))).to(device)

        return together


@contextmanager
def joined(device: str) -> Iterator[tuple[Processes, str]]:
    """(processes, device) of a run: several, if ``torchrun`` started this one, else the only one.

    On CUDA each process of a machine has a device of its own. ValueError: fewer devices than
    processes.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield Processes(), device
        return
    if device.startswith("cuda"):
        local, devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= devices:
            raise ValueError(f"device: got {device!r} for {local + 1} processes or more on this "
                             f"machine, allowed are as many as it has CUDA devices, {devices}")
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    # torchrun ends the others by SIGTERM when one has failed: they stop as by Ctrl-C, and save
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield SeveralProcesses(), device
    # after an error the process ends at once (``leave``): a group with a lost member may not answer
    gc.collect()  # trainers and their wrapped policies, which hold on to the group
    torch.distributed.destroy_process_group()


def leave(status: int) -> None:
    """End a process that ``torchrun`` started, at once: gloo's threads can crash Python's normal
    shutdown (std::terminate). In any other process it does nothing."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@contextmanager
def lost_processes() -> Iterator[None]:
    """What gloo or nccl say when a process has gone, as one clear line."""
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        if not any(sign in said for sign in ("Connection closed", "Connection reset", "gloo",
                                             "NCCL", "Broken pipe", "Timed out")):
            raise
        raise OtherProcessLost("another process of this run has ended or does not answer, so this "
                               "one stops too; if it was not killed, its own message stands "
                               "above") from None


def check_processes(config: GRPOConfig, size: int) -> None:
    """ValueError if the work of these settings cannot be dealt out to ``size`` processes."""
    if size == 1:
        return
    config.check_parts("processes", size)
    rows = config.prompts_per_step * config.group_size // config.minibatches
    for name, count in (("prompts_per_step", config.prompts_per_step),
                        ("minibatches", rows)):
        if count < size:
            raise ValueError(f"{name}: got {getattr(config, name)}, which leaves some of the "
                             f"{size} processes without work; allowed is a prompt and a row of "
                             f"each minibatch, or more, for each")
    if config.choices.dynamic_sampling and config.group_size < size:
        raise ValueError(f"group_size: got {config.group_size} with dynamic_sampling, which may "
                         f"keep a single group, for {size} processes; allowed are {size} or more")
