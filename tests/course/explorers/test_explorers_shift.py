"""The shift explorer: every offset of every completion, against an independent computation."""

import re

import pytest
import torch

from grpo_lib.course.explorers import shift_explorer
from grpo_lib.course.explorers.shift import number
from grpo_lib.rollout import completion_log_probs, offset_log_probs

WORDS = ["<pad>", "<eos>", *"abcdefghij"]


@pytest.fixture
def rollouts(policy, sample):
    return sample(policy, group_size=2, temperature=0.8)


def by_hand(policy, rollouts, row, offset):
    """Log-prob of each token of a completion, one unpadded text at a time; None: no logits."""
    prompt = rollouts.tokens[row, : rollouts.prompt_length][rollouts.prompt_mask[row] == 1]
    count = int(rollouts.mask[row].sum())
    text = torch.cat((prompt, rollouts.completions[row, :count]))
    with torch.no_grad():
        log_probs = (policy(text[None])[0] / rollouts.temperature).log_softmax(-1)
    places = range(len(prompt), len(text))
    return [log_probs[t + offset, text[t]].item() if t + offset < len(text) else None
            for t in places]


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_every_offset_of_every_completion_says_its_log_probs(policy, rollouts, offset):
    explorer = shift_explorer(policy, rollouts, WORDS)
    for row in range(len(rollouts.tokens)):
        text = explorer.set(offset=offset, completion=row).text
        said = re.findall(r"(\S+) (-?\d+\.\d\d|none)(?=[,;])", text.partition(": ")[2])
        expected = by_hand(policy, rollouts, row, offset)
        names = [WORDS[i].strip("<>") for i in rollouts.completions[row, : len(expected)]]
        assert [name for name, _ in said] == names
        for (_, value), true in zip(said, expected):
            if true is not None:
                assert float(value) == pytest.approx(true, abs=0.0051)
        if None not in expected:
            mean = sum(expected) / len(expected)
            assert float(text.rpartition("mean ")[2]) == pytest.approx(mean, abs=0.0051)


def test_the_right_offset_is_completion_log_probs(policy, rollouts):
    with torch.no_grad():
        theirs = completion_log_probs(policy, rollouts)
        torch.testing.assert_close(offset_log_probs(policy, rollouts, -1), theirs, rtol=0,
                                   atol=1e-12)
    explorer = shift_explorer(policy, rollouts, WORDS)
    for row, length in enumerate(rollouts.lengths.int().tolist()):
        mean = theirs[row, :length].mean().item()
        text = explorer.set(completion=row).text
        assert text.startswith("logits at t - 1 (right)")
        assert text.endswith(f"mean {number(mean, 2)}")


def test_each_offset_is_named_right_or_wrong(policy, rollouts):
    explorer = shift_explorer(policy, rollouts, WORDS)
    assert "(right)" in explorer.text
    assert "(wrong, the usual mistake)" in explorer.set(offset=0).text
    assert "t + 1 (wrong)" in explorer.set(offset=1).text


def drawn(explorer):
    [axis] = explorer.figure.axes
    return [t.get_text() for t in axis.texts]


def test_the_picture_names_the_parts_and_their_mask(policy, rollouts):
    explorer = shift_explorer(policy, rollouts, WORDS)
    lengths = rollouts.lengths.int().tolist()
    for row, length in enumerate(lengths):
        texts = drawn(explorer.set(completion=row))
        assert "prompt: 0" in texts and "completion: 1" in texts
        assert ("padding: 0" in texts) == bool((rollouts.prompt_mask[row] == 0).any())
        assert ("after the end: 0" in texts) == (length < rollouts.mask.shape[1])
    assert len(set(lengths)) > 1  # so that the sample tests both


def test_the_picture_shows_which_token_the_logits_have_read(policy, rollouts):
    explorer = shift_explorer(policy, rollouts, WORDS, row=1)
    start, length = rollouts.prompt_length, int(rollouts.lengths[1])
    names = [WORDS[i].strip("<>") for i in rollouts.tokens[1].tolist()] + ["none"]
    for offset in (-1, 0, 1):
        texts = drawn(explorer.set(offset=offset))[len(names) - 1:]
        assert texts[: 2 * length: 2] == names[start + offset: start + offset + length]


def test_axes_and_size_stand_still(policy, rollouts):
    explorer = shift_explorer(policy, rollouts, WORDS)
    seen = set()
    for offset in (-1, 0, 1):
        for row in range(len(rollouts.tokens)):
            [axis] = explorer.set(offset=offset, completion=row).figure.axes
            seen.add((axis.get_xlim(), axis.get_ylim(), *axis.get_position().bounds,
                      *explorer.figure.get_size_inches()))
            low, high = sorted(axis.get_ylim())
            bars = axis.collections[0].get_paths()
            assert all(low <= y <= high for path in bars for y in path.vertices[:, 1])
    assert len(seen) == 1


def test_controls_allow_nothing_else(policy, rollouts):
    explorer = shift_explorer(policy, rollouts, WORDS)
    with pytest.raises(ValueError, match="offset: got 2"):
        explorer.set(offset=2)


@pytest.mark.parametrize("value, said", [(-0.001, "0.00"), (-1.239, "-1.24"), (None, "none"),
                                         (float("nan"), "none")])
def test_a_number_in_words(value, said):
    assert number(value, 2) == said
