"""Loss, gradient and reward of recorded short runs, side by side: why a loss of 0 teaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grpo_lib.course.explorers.base import Explorer, rounded
from grpo_lib.course.explorers.controls import choice, stops
from grpo_lib.course.plots import BLACK, BLUE, FONT, GREEN, SKY, VERMILION, new_figure, panel

LINEAR = 0.02  # up to this size of the loss its axis is linear, beyond it logarithmic
LOSSES = (-0.3, -0.1, -LINEAR, 0, LINEAR, 0.1, 0.3)  # that the axis names
LEGEND = {"legend": "upper left", "fontsize": FONT - 2, "ncols": 2, "handletextpad": 0.3,
          "columnspacing": 0.8, "borderaxespad": 0}
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
        draw_updates(left, record["loss"], BLUE)
        draw_updates(middle, record["grad_norm"], VERMILION)
        right.plot(steps, record["reward"], color=GREEN, linewidth=2.4, marker="o", markersize=4)
        left.axhline(0, color=BLACK, linewidth=1)
        left.set_yscale("symlog", linthresh=LINEAR)
        x = {"x": "step", "xlim": (0.5, len(steps) + 1.5), "xticks": (1, 4, 8, 12)}
        panel(left, "Loss (stretched near 0)", ylim=(1.5 * lowest, 7 * highest),
              yticks={tick: f"{tick:g}" for tick in LOSSES}, **LEGEND, **x)
        left.set_yticks([], minor=True)
        panel(middle, "Length of the gradient", ylim=(0, 1.2 * steepest), **LEGEND, **x)
        panel(right, "Mean reward", ylim=(0, 1.03), **x)
        return figure, f"{way}; beta {beta:g}; {aggregation}: {describe(record)}"

    return Explorer(draw, way=choice("updates", ways[0], ways),
                    beta=stops("beta", betas[0], betas),
                    aggregation=choice("loss averages over", averages[0], averages))


def draw_updates(axis, values: Sequence[Sequence[float]], color: str) -> None:
    """A number for each update of each step, the first of a step with a mark of its own."""
    x = [step + i / len(some) for step, some in enumerate(values, 1) for i in range(len(some))]
    axis.plot(x, [v for some in values for v in some], color=SKY, linewidth=1.4, marker=".",
              label="every update")
    axis.plot(range(1, len(values) + 1), [some[0] for some in values], "o", color=color,
              markersize=6, label="first of a batch")


def describe(record: Mapping) -> str:
    """The range of a run's losses, gradients and rewards, in words."""
    first = [values[0] for values in record["loss"]]
    losses, norms = ([v for values in record[field] for v in values]
                     for field in ("loss", "grad_norm"))
    return (f"loss before the first update of a batch from {rounded(min(first), 3)} to "
            f"{rounded(max(first), 3)}, of all updates from {rounded(min(losses), 3)} to "
            f"{rounded(max(losses), 3)}\ngradient from {min(norms):.2f} to {max(norms):.2f}, "
            f"reward {record['reward'][0]:.2f} at the first step, {record['reward'][-1]:.2f} at "
            f"the last")
