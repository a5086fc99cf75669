"""The transformer against Llama, causality, padding, the cache, and log-probs."""

import pytest
import torch
from torch.nn import functional as F

from grpo_lib.policy import TinyPolicy, token_entropy, token_log_probs
from grpo_lib.tokenizer import pad
from grpo_lib.transformer import (
    KVCache,
    PolicyConfig,
    TransformerPolicy,
    attention_mask,
    rotary_table,
    rotate,
)

SEQUENCES = [[3, 4, 5, 6, 7, 8], [9, 10], [11, 2, 3, 4]]
NARROW = {torch.float32: 1e-5, torch.float64: 1e-12}


def alone(policy, sequences):
    """Logits of each sequence by itself, without any padding."""
    return [policy(torch.tensor([ids]))[0] for ids in sequences]


def test_logits_are_those_of_transformers_llama():
    transformers = pytest.importorskip("transformers")
    config = PolicyConfig(29, d_model=24, n_layers=3, n_heads=3, d_hidden=40, context_length=48,
                          rope_theta=500.0, norm_eps=1e-3, init_std=0.2)
    policy = TransformerPolicy(config, torch.Generator().manual_seed(0))
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=29, hidden_size=24, num_hidden_layers=3, num_attention_heads=3,
        num_key_value_heads=3, intermediate_size=40, max_position_embeddings=48,
        rms_norm_eps=1e-3, rope_theta=500.0, tie_word_embeddings=False, attention_bias=False,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0}))
    with torch.no_grad():
        for name, weight in policy.named_parameters():  # norms start at 1: move them
            if weight.dim() == 1:
                weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    assert set(llama.state_dict()) == set(policy.state_dict())
    llama.load_state_dict(policy.state_dict())
    llama.eval()
    tokens = torch.randint(2, 29, (3, 48), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(policy(tokens), llama(tokens).logits, rtol=0, atol=1e-5)
        padded, mask = pad([row[:n].tolist() for row, n in zip(tokens, (9, 4, 12))], "left")
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        theirs = llama(padded, attention_mask=mask, position_ids=positions).logits
        assert torch.allclose(policy(padded, mask)[mask == 1], theirs[mask == 1],
                              rtol=0, atol=1e-5)


def logits_in_loops(policy, ids):
    """Llama's formulas, one position and one head at a time: no mask, no batch, no cache."""
    config, weights = policy.config, policy.state_dict()
    width = config.d_model // config.n_heads
    frequencies = config.rope_theta ** (-2 * torch.arange(width // 2).double() / width)

    def norm(x, name):
        return x / (x.square().mean() + config.norm_eps).sqrt() * weights[f"model.{name}.weight"]

    def turn(x, position):  # x_i + i x_(i + width/2), times e^(i position frequency_i)
        turned = torch.complex(*x.chunk(2)) * torch.exp(1j * position * frequencies)
        return torch.cat((turned.real, turned.imag))

    xs = [weights["model.embed_tokens.weight"][i] for i in ids]
    for layer in range(config.n_layers):
        def apply(name, x, layer=layer):
            return weights[f"model.layers.{layer}.{name}.weight"] @ x

        inputs = [norm(x, f"layers.{layer}.input_layernorm") for x in xs]
        q, k, v = ([apply(f"self_attn.{name}_proj", x).split(width) for x in inputs]
                   for name in "qkv")
        for t in range(len(ids)):
            heads = []
            for h in range(config.n_heads):
                scores = [turn(q[t][h], t) @ turn(k[s][h], s) / width**0.5 for s in range(t + 1)]
                shares = torch.stack(scores).softmax(0)
                heads.append(sum(share * v[s][h] for s, share in enumerate(shares)))
            xs[t] = xs[t] + apply("self_attn.o_proj", torch.cat(heads))
        for t, x in enumerate(xs):
            x = norm(x, f"layers.{layer}.post_attention_layernorm")
            gate, up = apply("mlp.gate_proj", x), apply("mlp.up_proj", x)
            xs[t] = xs[t] + apply("mlp.down_proj", gate * gate.sigmoid() * up)
    return torch.stack([weights["lm_head.weight"] @ norm(x, "norm") for x in xs])


@torch.no_grad()
def test_logits_are_those_of_the_formulas_in_loops(make_policy, seeded):
    policy = make_policy(n_heads=2, rope_theta=50.0, norm_eps=1e-2)
    for seed, parameter in enumerate(policy.parameters()):
        if parameter.dim() == 1:  # norms start at 1: move them
            parameter.uniform_(0.5, 1.5, generator=seeded(seed))
    for ids in SEQUENCES:
        expected = logits_in_loops(policy, ids)
        assert torch.allclose(policy(torch.tensor([ids]))[0], expected, rtol=0, atol=1e-6)
        assert expected.std() > 0.1


def test_rotary_positions_turn_each_pair_by_position_times_frequency():
    config = PolicyConfig(12, d_model=24, n_heads=3, context_length=20, rope_theta=500.0)
    turns = torch.view_as_complex(rotary_table(config))
    x = torch.randn(2, 3, 20, 8, generator=torch.Generator().manual_seed(0))
    angles = torch.tensor([[p * 500.0 ** (-i / 4) for i in range(4)] for p in range(20)])
    turned = torch.complex(x[..., ::2], x[..., 1::2]) * torch.exp(1j * angles)
    expected = torch.stack((turned.real, turned.imag), -1).flatten(-2)
    assert torch.allclose(rotate(x, turns), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("masked", [True, False])
def test_changing_a_token_changes_no_logits_before_it_and_some_after(policy, masked):
    tokens = torch.tensor([[3, 4, 5, 6, 7, 8]])
    mask = torch.ones_like(tokens) if masked else None
    before = policy(tokens, mask)
    for at in range(6):
        changed = tokens.clone()
        changed[0, at] = 9
        after = policy(changed, mask)
        assert torch.equal(before[:, :at], after[:, :at])
        different = (before[:, at:] - after[:, at:]).abs().amax(-1)
        assert (different > 1e-6).all()


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_number(make_policy, dtype, side):
    policy = make_policy(dtype=dtype)
    tokens, mask = pad(SEQUENCES, side)
    together = policy(tokens, mask)
    for row, logits in enumerate(alone(policy, SEQUENCES)):
        assert (together[row][mask[row] == 1] - logits).abs().max() < NARROW[dtype]


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_stands_in_the_padding_is_never_seen(policy, side):
    tokens, mask = pad(SEQUENCES, side)
    other = torch.where(mask == 1, tokens, 7)
    assert torch.equal(policy(tokens, mask)[mask == 1], policy(other, mask)[mask == 1])


def test_every_query_may_look_at_itself_and_the_real_tokens_before_it():
    mask = torch.tensor([[0, 1, 1, 0]])
    assert attention_mask(mask)[0, 0].tolist() == [
        [True, False, False, False], [False, True, False, False], [False, True, True, False],
        [False, True, True, True]]


def test_a_mask_may_be_of_any_number_type(policy):
    tokens, mask = pad(SEQUENCES, "left")
    for kind in (torch.bool, torch.float32, torch.float64, torch.int32):
        assert torch.equal(policy(tokens, mask), policy(tokens, mask.to(kind)))
        cache = policy.new_cache(3, 7)
        policy(tokens, mask.to(kind), cache)
        assert policy(tokens[:, :1], None, cache).isfinite().all()


def test_no_mask_means_no_padding(policy):
    tokens = torch.tensor([[3, 4, 5], [6, 7, 8]])
    with_mask = policy(tokens, torch.ones_like(tokens))
    assert (policy(tokens) - with_mask).abs().max() < 1e-12
    swapped = policy(tokens.flip(0)).flip(0)
    assert (policy(tokens) - swapped).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("chunks", [[1] * 6, [6], [2, 4], [4, 1, 1], [3, 2, 1], [1, 5]])
def test_a_cache_changes_no_number(make_policy, dtype, chunks):
    policy = make_policy(dtype=dtype)
    tokens, mask = pad(SEQUENCES, "left")
    cache = policy.new_cache(3, 6)
    pieces = [policy(t, m, cache) for t, m in zip(tokens.split(chunks, 1), mask.split(chunks, 1))]
    difference = (torch.cat(pieces, 1) - policy(tokens, mask))[mask == 1]
    assert difference.abs().max() < NARROW[dtype]


def test_a_cache_continues_padded_prompts_without_a_mask(policy):
    prompts, mask = pad([ids[:-2] or ids[:1] for ids in [*SEQUENCES[::2], [9, 10, 11]]], "left")
    new = torch.tensor([[2, 3], [4, 5], [6, 7]])
    cache = policy.new_cache(3, prompts.shape[1] + 2)
    policy(prompts, mask, cache)
    pieces = torch.cat([policy(new[:, :1], None, cache), policy(new[:, 1:], None, cache)], 1)
    for row in range(3):
        text = torch.cat((prompts[row][mask[row] == 1], new[row]))
        assert (pieces[row] - policy(text[None])[0, -2:]).abs().max() < 1e-12


def test_repeat_copies_every_row_next_to_itself(policy):
    tokens, mask = pad(SEQUENCES, "left")
    cache = policy.new_cache(3, 6)
    policy(tokens, mask, cache)
    shared = cache.repeat(2, 8)
    new = torch.tensor([[2], [3], [4], [5], [6], [7]])
    logits = policy(new, None, shared)[:, 0]
    for row in range(6):
        text = torch.tensor([SEQUENCES[row // 2] + new[row].tolist()])
        assert (logits[row] - policy(text)[0, -1]).abs().max() < 1e-12
    assert (cache.filled, shared.filled) == (6, 7)


@pytest.mark.parametrize("rows", [[0, 2], [1, 2], [2], [0, 1, 2], [1]])
def test_keep_leaves_exactly_those_rows(policy, rows):
    tokens, mask = pad(SEQUENCES, "left")
    cache = policy.new_cache(3, 8)
    policy(tokens, mask, cache)
    cache.keep(torch.tensor(rows))
    for step in range(2):
        new = torch.full((len(rows), 1), 5 + step)
        logits = policy(new, None, cache)[:, 0]
        for at, row in enumerate(rows):
            text = torch.tensor([SEQUENCES[row] + [5, 6][: step + 1]])
            assert (logits[at] - policy(text)[0, -1]).abs().max() < 1e-12


def test_a_full_cache_says_so_and_stays_usable(policy):
    cache = policy.new_cache(1, 3)
    policy(torch.tensor([[3, 4]]), None, cache)
    with pytest.raises(ValueError, match="cache: 4 tokens do not fit its length 3"):
        policy(torch.tensor([[5, 6]]), None, cache)
    last = policy(torch.tensor([[5]]), None, cache)
    assert (last[0, 0] - policy(torch.tensor([[3, 4, 5]]))[0, -1]).abs().max() < 1e-12


def test_the_context_length_is_the_longest_text(make_policy):
    policy = make_policy(context_length=4)
    assert policy(torch.tensor([[2, 3, 4, 5]])).shape == (1, 4, 12)
    assert isinstance(policy.new_cache(1, 4), KVCache)
    with pytest.raises(ValueError, match="tokens: got 5 a row, allowed are 4"):
        policy(torch.tensor([[2, 3, 4, 5, 6]]))
    with pytest.raises(ValueError, match=r"length: .* 5 tokens, allowed are 4"):
        policy.new_cache(1, 5)


@pytest.mark.parametrize(("tokens", "mask", "named"), [
    (torch.tensor([3, 4]), None, "tokens"), (torch.zeros(1, 0, dtype=torch.long), None, "tokens"),
    (torch.tensor([[[3]]]), None, "tokens"), (torch.tensor([[3, 4]]), torch.ones(1, 3), "mask"),
    (torch.tensor([[3, 4]]), torch.ones(2), "mask"),
])
def test_a_wrong_shape_is_named(policy, tokens, mask, named):
    with pytest.raises(ValueError, match=f"{named}: got shape"):
        policy(tokens, mask)


@pytest.mark.parametrize(("field", "value"), [
    *((name, value) for name in ("vocab_size", "d_model", "n_layers", "n_heads", "d_hidden",
                                 "context_length") for value in (0, -1, 1.0, "8", True, None)),
    ("d_model", 6), ("d_model", 12),
])
def test_a_bad_shape_setting_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field}: got"):
        PolicyConfig(**({"vocab_size": 8, "d_model": 8, "n_heads": 4} | {field: value}))


def test_the_config_can_be_rebuilt_from_its_dict():
    config = PolicyConfig(9, d_model=32, norm_eps=1e-3)
    assert PolicyConfig(**config.to_dict()) == config


def test_the_generator_makes_the_weights(make_policy):
    one, same, other = make_policy(seed=1), make_policy(seed=1), make_policy(seed=2)
    for (name, a), b, c in zip(one.named_parameters(), same.parameters(), other.parameters()):
        assert torch.equal(a, b)
        assert torch.equal(a, c) == (a.dim() == 1), name
    config = one.config
    assert not torch.equal(TransformerPolicy(config).lm_head.weight,
                           TransformerPolicy(config).lm_head.weight)


def test_initial_matrices_have_the_configured_spread(make_policy):
    policy = make_policy(vocab_size=200, d_model=64, d_hidden=128, init_std=0.02)
    for name, weight in policy.named_parameters():
        if weight.dim() == 2:
            assert weight.std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(weight.mean().item()) < 2e-3, name
        else:
            assert (weight == 1).all(), name


def test_tiny_policy_sees_only_the_newest_token():
    policy = TinyPolicy(8, 4)
    tokens = torch.tensor([[2, 3, 4], [5, 3, 4]])
    logits = policy(tokens)
    assert logits.shape == (2, 3, 8)
    assert torch.equal(logits[0, 1:], logits[1, 1:])
    assert not torch.equal(logits[0, 0], logits[1, 0])
    assert policy.new_cache(2, 3) is None
    assert torch.equal(policy(tokens, torch.zeros(2, 3)), logits)


def test_token_log_probs_scores_the_token_in_the_same_column():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0),
                         dtype=torch.float64)
    tokens = torch.tensor([[0, 4, 2], [1, 1, 3]])
    scored = token_log_probs(logits, tokens)
    for b in range(2):
        for t in range(3):
            p = logits[b, t].exp() / logits[b, t].exp().sum()
            assert scored[b, t].item() == pytest.approx(p[tokens[b, t]].log().item(), abs=1e-12)


def test_token_log_probs_refuses_tokens_of_another_length():
    with pytest.raises(ValueError, match="tokens: shape"):
        token_log_probs(torch.zeros(2, 3, 5), torch.zeros(2, 4, dtype=torch.long))


def test_entropy_is_that_of_the_distribution():
    uniform, sure = torch.zeros(8), torch.tensor([0.0] + [-torch.inf] * 7)
    half = torch.tensor([0.0, 0.0] + [-torch.inf] * 6)
    entropy = token_entropy(torch.stack((uniform, sure, half))[None].double())[0]
    assert entropy.tolist() == pytest.approx([2.0794415416798357, 0.0, 0.6931471805599453])
    logits = torch.randn(1, 1, 6, generator=torch.Generator().manual_seed(1)).double()
    p = F.softmax(logits, -1)
    assert token_entropy(logits).item() == pytest.approx(-(p * p.log()).sum().item())
