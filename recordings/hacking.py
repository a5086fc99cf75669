"""A reward with a flaw, the same run with the flaw repaired, and what a KL term does about it."""

from __future__ import annotations

import statistics

from grpo_lib import ChainTask, GRPOConfig, GRPOTrainer
from grpo_lib.course.flawed import contains, neat
from recordings.record import record_runs

SEEDS = range(5)
KL_SEEDS = range(3)
RUN = {"steps": 25, "prompts_per_step": 8, "eval_every": 0}
CURE_STEPS = 75
BETAS = (0.04, 0.2, 1.0)
FIELDS = ("accuracy", "reward_mean", "length", "entropy", "kl")
TASK = ChainTask()


def measure() -> dict:
    hacked = TASK.with_reward(lambda problem, text: float(neat(problem, text)))
    substring = TASK.with_reward(lambda problem, text: float(contains(problem, text)))
    parts = [record_runs({"neat": RUN}, SEEDS, FIELDS, hacked, cure),
             record_runs({"strict": RUN}, SEEDS, FIELDS, TASK, samples),
             record_runs({"contains": RUN}, SEEDS, FIELDS, substring, samples),
             record_runs({f"neat, beta {beta}": RUN | {"beta": beta} for beta in BETAS}, KL_SEEDS,
                         FIELDS, hacked, samples)]
    return parts[0] | {"runs": [run for part in parts for run in part["runs"]]}


def samples(trainer: GRPOTrainer) -> dict:
    """The first completion of each problem of the last step, with the right answer."""
    rows = TASK.tokenizer.decode_rows(trainer.rollouts.completions, trainer.rollouts.mask)
    return {"samples": [{"answer": problem.answer, "text": rows[i * trainer.config.group_size]}
                        for i, problem in enumerate(trainer.problems)]}


def cure(trainer: GRPOTrainer) -> dict:
    """The hacked policy trained on, three times as long, with the right reward."""
    last = samples(trainer)
    again = GRPOTrainer(trainer.policy, TASK, GRPOConfig(
        **RUN | {"steps": CURE_STEPS, "seed": trainer.config.seed + 100}))
    return last | {"cured": [round(metrics.accuracy, 4) for metrics in again.run()]}


def report(data: dict) -> str:
    lines = [
        "## A reward with a flaw", "",
        f"{RUN['steps']} steps of {RUN['prompts_per_step']} prompts and 16 completions, from the "
        f"shipped base model, {data['threads']} thread(s), torch {data['versions']['torch']}; "
        f"{sum(run['seconds'] for run in data['runs']) / 60:.0f} minutes in all. Means of the "
        f"last five steps. \"neat\": the answer is what the last step came to; \"contains\": the "
        f"right digit stands anywhere; \"strict\": the right verifier.", "",
        "| reward | seeds | reward at the end (worst, median, best) | accuracy at the end "
        "(worst, median, best) | after 25 more steps, of strict reward (worst, best) "
        "| after 75 more (worst, best) |",
        "|---|---|---|---|---|---|"]
    for name in dict.fromkeys(run["name"] for run in data["runs"]):
        runs = [run for run in data["runs"] if run["name"] == name]
        cured = [[at_the_end(run["cured"][:steps]) for run in runs if "cured" in run]
                 for steps in (RUN["steps"], CURE_STEPS)]
        lines.append(
            f"| {name} | {len(runs)} | {spread([at_the_end(r['reward_mean']) for r in runs])} "
            f"| {spread([at_the_end(r['accuracy']) for r in runs])} "
            f"| {' | '.join(f'{min(c):.0%}, {max(c):.0%}' if c else '' for c in cured)} |")
    return "\n".join(lines) + "\n"


def at_the_end(curve: list[float]) -> float:
    return statistics.mean(curve[-5:])


def spread(values: list[float]) -> str:
    return f"{min(values):.0%}, {statistics.median(values):.0%}, {max(values):.0%}"
