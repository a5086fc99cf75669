"""``python -m grpo_lib handover``: a run as a script for TRL."""

from __future__ import annotations

from shlex import join

from grpo_lib.bridges.handover import cautions, write_handover
from grpo_lib.cli.train import as_option, settings_in, task_of
from grpo_lib.config import GRPOConfig


def run_handover(options) -> int:
    """Write the script, and say what TRL has no setting for."""
    task, given = task_of(options), settings_in(options)
    command = join(["--task", task.name, "--model", options.model, "--out", str(options.out),
                    "--max-new-tokens", str(options.max_new_tokens),
                    *(["--no-chat"] if options.no_chat else []),
                    *(["--lora-rank", str(options.lora_rank)] if options.lora_rank else []),
                    *(word for name, value in given.items()
                      for word in (as_option(name), str(value)))])
    config = GRPOConfig(**given)
    lines = write_handover(options.out, task, options.model, config, options.max_new_tokens,
                           chat=not options.no_chat, lora_rank=options.lora_rank,
                           command=command)
    for line in lines:
        if line.lost:
            print(f"{line.field} = {line.value}: lost, {line.note}")
    for line in cautions(config, options.max_new_tokens, options.lora_rank):
        print(line)
    print(f"wrote {options.out}: train.py, README.md with the commands, and configurations for "
          f"accelerate")
    return 0
