"""The next-token explorer: temperature, position and policy, over all they allow."""

import math
import re

import pytest
import torch

from grpo_lib.course.explorers import next_token_explorer

WORDS = ["<pad>", "<eos>", *"abcdefghij"]
ROW = 1


@pytest.fixture
def policies(make_policy):
    return {"one": make_policy(seed=0), "two": make_policy(seed=5)}


@pytest.fixture
def rollouts(policies, sample):
    return sample(policies["one"], temperature=1.7)


def distribution(policy, rollouts, position, temperature):
    """Probabilities of the next token, from the unpadded text so far; and the token that came."""
    prompt = rollouts.tokens[ROW, : rollouts.prompt_length][rollouts.prompt_mask[ROW] == 1]
    seen = torch.cat((prompt, rollouts.completions[ROW, :position]))
    with torch.no_grad():
        logits = policy(seen[None])[0, -1].double() / temperature
    weights = [math.exp(z - max(logits.tolist())) for z in logits.tolist()]
    return ([w / sum(weights) for w in weights], rollouts.completions[ROW, position].item(),
            [WORDS[i].strip("<>") for i in seen.tolist()])


def check(explorer, policies, rollouts, temperature, position, name):
    text = explorer.set(temperature=temperature, position=position, policy=name).text
    p, came, seen = distribution(policies[name], rollouts, position, temperature)
    entropy = -sum(x * math.log(x) for x in p if x > 0)
    assert text.startswith(f"{name}, after \"{' '.join(seen)}\" at temperature {temperature:.1f}")
    assert float(re.search(r"entropy (\S+) nats", text)[1]) == pytest.approx(entropy, abs=0.0051)
    assert float(re.search(r"many as (\S+) equal", text)[1]) == pytest.approx(
        math.exp(entropy), abs=0.051)
    best = max(range(len(p)), key=p.__getitem__)
    likeliest = re.search(r"likeliest (\S+) with (\S+)%", text)
    assert likeliest[1] == WORDS[best].strip("<>")
    assert float(likeliest[2]) == pytest.approx(100 * p[best], abs=0.051)
    token, share = re.search(r"went on with (\S+), (\S+)%", text).groups()
    assert token == WORDS[came].strip("<>")
    assert float(share) == pytest.approx(100 * p[came], abs=0.051)


@pytest.mark.parametrize("temperature", [i / 10 for i in range(1, 31)])
def test_every_temperature(policies, rollouts, temperature):
    explorer = next_token_explorer(policies, rollouts, WORDS, row=ROW)
    check(explorer, policies, rollouts, temperature, 1, "one")


@pytest.mark.parametrize("name", ["one", "two"])
def test_every_position_of_both_policies(policies, rollouts, name):
    explorer = next_token_explorer(policies, rollouts, WORDS, row=ROW)
    length = int(rollouts.lengths[ROW])
    assert explorer.controls["position"].max == length - 1
    for position in range(length):
        check(explorer, policies, rollouts, 1.0, position, name)


def test_the_bars_are_the_ten_likeliest_and_the_dashes_temperature_one(policies, rollouts):
    explorer = next_token_explorer(policies, rollouts, WORDS, row=ROW)
    for temperature in (0.1, 1.0, 3.0):
        [axis] = explorer.set(temperature=temperature, position=2).figure.axes
        bars, dashes = axis.collections
        p, came, _ = distribution(policies["one"], rollouts, 2, temperature)
        plain, _, _ = distribution(policies["one"], rollouts, 2, 1.0)
        order = sorted(range(len(p)), key=lambda i: -p[i])[:10]
        heights = [path.vertices[:, 1].max() for path in bars.get_paths()]
        assert heights == pytest.approx([p[i] for i in order], abs=1e-6)
        assert [path.vertices[0, 1] for path in dashes.get_paths()] == pytest.approx(
            [plain[i] for i in order], abs=1e-6)
        marked = [t.get_text() for t in axis.texts if t.get_text().startswith("[")
                  and "\n" not in t.get_text()]
        assert marked == ([f"[{WORDS[came].strip('<>')}]"] if came in order else [])


def test_a_vocabulary_of_fewer_than_ten_words(make_policy, sample):
    small = make_policy(vocab_size=6)
    rollouts = sample(small, some_prompts=[[3, 4]])
    explorer = next_token_explorer({"small": small}, rollouts, WORDS[:6])
    [axis] = explorer.figure.axes
    assert len(axis.collections[0].get_paths()) == 6


def test_the_figure_stands_still(policies, rollouts):
    explorer = next_token_explorer(policies, rollouts, WORDS, row=ROW)
    seen = set()
    for values in ({"temperature": 0.1}, {"temperature": 3.0}, {"position": 0}, {"policy": "two"}):
        [axis] = explorer.set(**values).figure.axes
        seen.add((axis.get_xlim(), axis.get_ylim(), *axis.get_position().bounds))
    assert len(seen) == 1


def test_what_it_refuses(policies, rollouts):
    with pytest.raises(ValueError, match="policies: got none"):
        next_token_explorer({}, rollouts, WORDS)
    explorer = next_token_explorer(policies, rollouts, WORDS)
    with pytest.raises(ValueError, match="temperature: got 0"):
        explorer.set(temperature=0.0)
