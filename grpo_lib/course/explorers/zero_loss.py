"""Loss, gradient and reward of recorded short runs, side by side: why a loss of 0 teaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grpo_lib.course.explorers.base import Explorer
from grpo_lib.course.explorers.controls import choice, stops
from grpo_lib.course.plots import BLACK, BLUE, GREEN, SKY, VERMILION, label, new_figure

LINEAR = 0.02  # up to this size of the loss its axis is linear, beyond it logarithmic
FIELDS = ("way", "beta", "aggregation", "loss", "grad_norm", "reward")


def zero_loss_explorer(records: Sequence[Mapping]) -> Explorer:
    """Controls choose among ``load("clipping")["losses"]``: how many updates a batch gets,
    beta, and what the loss averages over."""
    if not records or any(field not in record for record in records for field in FIELDS):
        raise ValueError(f"records: got {len(records)}, allowed is one or more with "
                         f"{', '.join(FIELDS)}")
    table = {(r["way"], r["beta"], r["aggregation"]): r for r in records}
    ways, betas, averages = (list(dict.fromkeys(key[i] for key in table)) for i in range(3))
    if len(table) != len(ways) * len(betas) * len(averages):
        raise ValueError(f"records: got {len(table)} combinations of {len(ways)} ways, "
                         f"{len(betas)} betas and {len(averages)} averages; allowed is all")
    losses = [value for r in records for step in r["loss"] for value in step]
    lowest, highest = min(-LINEAR, *losses), max(LINEAR, *losses)
    steepest = max(value for r in records for step in r["grad_norm"] for value in step)

    def draw(way: str, beta: float, aggregation: str):
        record = table[way, beta, aggregation]
        figure, (left, middle, right) = new_figure(3, width=12.6, height=3.7)
        steps = range(1, len(record["reward"]) + 1)
        for axis, field, color in ((left, "loss", BLUE), (middle, "grad_norm", VERMILION)):
            x = [step + i / len(values) for step, values in zip(steps, record[field])
                 for i in range(len(values))]
            axis.plot(x, [v for values in record[field] for v in values], color=SKY,
                      linewidth=1.4, marker=".", label="every update")
            axis.plot(steps, [values[0] for values in record[field]], "o", color=color,
                      markersize=6, label="first of a batch")
            axis.legend(fontsize=11, frameon=False, loc="upper left", ncols=2,
                        handletextpad=0.3, columnspacing=0.8, borderaxespad=0)
        right.plot(steps, record["reward"], color=GREEN, linewidth=2.4, marker="o", markersize=4)
        left.axhline(0, color=BLACK, linewidth=1)
        left.set_yscale("symlog", linthresh=LINEAR)
        left.set_ylim(1.5 * lowest, 7 * highest)  # room for the legend
        ticks = [-0.3, -0.1, -LINEAR, 0, LINEAR, 0.1, 0.3]
        left.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        left.set_yticks([], minor=True)
        middle.set_ylim(0, 1.2 * steepest)
        right.set_ylim(0, 1.03)
        for axis, title in ((left, "Loss (stretched near 0)"), (middle, "Length of the gradient"),
                            (right, "Mean reward")):
            axis.set_xlim(0.5, len(record["reward"]) + 1.5)
            axis.set_xticks([1, 4, 8, 12])
            label(axis, title, "step", "", legend=False)
        first = [values[0] for values in record["loss"]]
        # "+ 0.0" turns a rounded -0.0 into 0.0
        text = (f"{way}; beta {beta:g}; {aggregation}: loss before the first update of a "
                f"batch from {round(min(first), 3) + 0.0:.3f} to {round(max(first), 3) + 0.0:.3f}, "
                f"of all updates from {round(min(map(min, record['loss'])), 3) + 0.0:.3f} to "
                f"{round(max(map(max, record['loss'])), 3) + 0.0:.3f}\ngradient from "
                f"{min(map(min, record['grad_norm'])):.2f} to "
                f"{max(map(max, record['grad_norm'])):.2f}, reward {record['reward'][0]:.2f} at "
                f"the first step, {record['reward'][-1]:.2f} at the last")
        return figure, text

    return Explorer(draw, way=choice("updates", ways[0], ways),
                    beta=stops("beta", betas[0], betas),
                    aggregation=choice("loss averages over", averages[0], averages))
