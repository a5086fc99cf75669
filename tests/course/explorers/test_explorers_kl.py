"""The explorers of lesson 5, at every position of every control, against plain loops."""

import math

import pytest
import torch

from grpo_lib.course.explorers import beta_explorer, entropy_explorer, kl_explorer
from grpo_lib.course.explorers.kl import ESTIMATORS
from grpo_lib.course.recorded import load

ROWS = 4


@pytest.fixture(scope="module")
def kl():
    generator = torch.Generator().manual_seed(0)
    ref = torch.randn(6, generator=generator)
    logits = ref + torch.arange(ROWS)[:, None] * torch.randn(6, generator=generator)
    return kl_explorer(logits, ref, [0, 1, 5, 20]), logits.double(), ref.double()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("row", range(ROWS))
def test_kl_explorer_says_the_sums_over_the_vocabulary(kl, row, estimator):
    explorer, logits, ref_logits = kl
    p, q = logits[row].softmax(-1).tolist(), ref_logits.softmax(-1).tolist()
    d = [math.log(b / a) for a, b in zip(p, q)]
    values = {"k1": [-x for x in d], "k2": [x * x / 2 for x in d]}.get(
        estimator, [math.exp(x) - x - 1 for x in d])
    slopes = {"k1": [1.0] * 6, "k3": [1 - math.exp(x) for x in d]}.get(estimator, [-x for x in d])
    distance = sum(a * -x for a, x in zip(p, d))
    mean = sum(a * v for a, v in zip(p, values))
    std = math.sqrt(sum(a * (v - mean) ** 2 for a, v in zip(p, values)))
    true = [a * (-x - distance) for a, x in zip(p, d)]
    tokens = [[s * ((v == w) - p[w]) for w in range(6)] for v, s in enumerate(slopes)]
    expected = [sum(p[v] * tokens[v][w] for v in range(6)) for w in range(6)]
    noise = math.sqrt(sum(p[v] * math.dist(tokens[v], expected) ** 2 for v in range(6)))
    text = explorer.set(step=[0, 1, 5, 20][row], estimator=estimator).text
    assert text.startswith(f"step {[0, 1, 5, 20][row]}, {estimator}: ")
    for number in (f"KL(pi || ref) is {abs(distance):.3f} nats",
                   f"reads {abs(mean):.3f} on average", f"std {std:.3f}.",
                   f"has length {math.hypot(*true):.3f};",
                   f"lies {math.dist(expected, true):.3f} from it",
                   f"one token's {noise:.3f} (rms)"):
        assert number in text, (number, text)


def test_kl_explorer_draws_the_same_axes_at_every_position(kl):
    explorer, limits = kl[0], set()
    for line in explorer.to_the_ends():
        assert "nan" not in line and "inf" not in line
        limits.add(tuple((axis.get_xlim(), axis.get_ylim()) for axis in explorer.figure.axes))
    assert len(limits) == 1


@pytest.mark.parametrize(("arguments", "named"), [
    ((torch.zeros(3), torch.zeros(3)), "logits, ref_logits"),
    ((torch.zeros(2, 3), torch.zeros(4)), "logits, ref_logits"),
    ((torch.zeros(2, 3), torch.zeros(3), [0]), "steps"),
    ((torch.zeros(2, 3), torch.zeros(3), None, "k4"), "estimator"),
])
def test_kl_explorer_names_a_bad_argument(arguments, named):
    with pytest.raises(ValueError, match=f"^{named}: got .*allowed"):
        kl_explorer(*arguments)


# --- recorded runs ------------------------------------------------------------------------

def middle(values):
    values = sorted(values)
    half = len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2


def test_beta_explorer_says_what_was_recorded_at_every_beta():
    record = load("kl")
    plain = [r for r in record["runs"] if r["config"]["kl"] == "k3"
             and not r["config"]["use_bias_correction_kl"]]
    betas = sorted({r["config"]["beta"] for r in plain})
    assert betas[0] == 0 and len(betas) >= 7
    explorer = beta_explorer(record)
    for beta in betas:
        runs = [r for r in plain if r["config"]["beta"] == beta]
        assert len(runs) >= 3
        text = explorer.set(beta=beta).text
        assert text.startswith(f"beta = {beta:g}: ") and "; beta = 0: " in text
        said = text.split(";")[0]
        assert ", ".join(f"{r['held_out_accuracy']:.1%}" for r in runs) + " (a seed" in said
        for field, words in (("kl", "KL {:.2f}"), ("length", "length {:.1f}"),
                             ("entropy", "entropy {:.2f}")):
            value = middle([middle(r[field][-10:]) for r in runs])
            assert words.format(value) in said, (field, value, said)


def test_beta_explorer_cuts_no_curve_off():
    record = load("kl")
    explorer = beta_explorer(record)
    for beta in {r["config"]["beta"] for r in record["runs"] if r["config"]["kl"] == "k3"
                 and not r["config"]["use_bias_correction_kl"]}:
        explorer.set(beta=beta)
        for axis in explorer.figure.axes:
            top = max(max(line.get_ydata(), default=0) for line in axis.lines)
            assert top <= axis.get_ylim()[1]


def test_beta_explorer_can_show_other_estimators_and_says_what_is_missing():
    record = load("kl")
    assert beta_explorer(record, 0.3, kl="k2").text.startswith("beta = 0.3")
    with pytest.raises(ValueError, match=r"beta=0\.7; allowed"):
        beta_explorer(record, 0.7)
    without_zero = {"runs": [r for r in record["runs"] if r["config"]["beta"] > 0]}
    with pytest.raises(ValueError, match="allowed is a record with 0"):
        beta_explorer(without_zero, 0.04)


def test_entropy_explorer_says_what_was_recorded_of_every_setting():
    record = load("entropy")
    names = list(dict.fromkeys(r["name"] for r in record["runs"]))
    explorer = entropy_explorer(record)
    assert len(names) >= 8
    for name in names:
        runs = [r for r in record["runs"] if r["name"] == name]
        assert len(runs) >= 3
        text = explorer.set(run=name).text
        for where, at in (("at step 5", lambda v: v[4]),
                          ("at the end", lambda v: sum(v[-5:]) / 5)):
            accuracy, entropy, silent, wrong, unique = (
                middle([at(r[field]) for r in runs]) for field in (
                    "accuracy", "entropy", "zero_variance_groups", "silent_wrong", "unique"))
            assert (f"{where} {accuracy:.0%} right, entropy {entropy:.2f}, {silent:.0%} of groups "
                    f"silent ({wrong:.0%} all wrong), {unique:.0%} of a group's") in text
        assert text.endswith("held-out accuracy " + ", ".join(
            f"{r['held_out_accuracy']:.0%}" for r in runs))
        assert max(max(r["entropy"]) for r in runs) < explorer.figure.axes[0].get_xlim()[1]


def test_entropy_explorer_names_a_setting_that_is_not_there():
    with pytest.raises(ValueError, match="run: got 'other', allowed are default"):
        entropy_explorer(load("entropy"), "other")
