"""A TransformerPolicy as a Llama checkpoint: what transformers loads says the same, and returns."""

import json
import random
from pathlib import Path

import pytest
import torch
import transformers

from grpo_lib import ChainTask, SortTask, evaluate, load_base_model, sample_groups
from grpo_lib.bridges.export import ALWAYS, SAME, export_llama, fast_tokenizer, llama
from grpo_lib.bridges.huggingface import (
    HuggingFacePolicy,
    HuggingFaceTokenizer,
    InstructionTask,
    load_model,
)
from grpo_lib.support.checkpoint import CheckpointError, check_weights
from grpo_lib.tokenizer import Tokenizer
from grpo_lib.transformer import PolicyConfig, TransformerPolicy

TASK = ChainTask()


def import_llama(folder: Path | str) -> TransformerPolicy:
    """A ``TransformerPolicy`` from a Llama checkpoint of the same make.

    CheckpointError: what it has that a TransformerPolicy has not (shared keys and values, tied
    embeddings, biases, scaled positions, another activation), or weights that do not fit.
    """
    model = load_model(folder)
    config = model.config
    wanted = {"model_type": "llama", **ALWAYS,
              "num_key_value_heads": config.num_attention_heads}
    for name, value in wanted.items():
        got = getattr(config, name, None)
        if got != value:
            raise CheckpointError(f"{folder}: {name} is {got!r}, allowed is {value!r}")
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default":
        raise CheckpointError(f"{folder}: rope_type is {rope['rope_type']!r}, allowed is 'default'")
    try:
        shape = PolicyConfig(**{name: getattr(config, theirs) for name, theirs in SAME.items()},
                             rope_theta=float(rope["rope_theta"]))
    except ValueError as error:
        raise CheckpointError(f"{folder}: its config does not fit ({error})") from None
    policy = TransformerPolicy(shape, torch.Generator()).to(model.lm_head.weight.dtype)
    state = model.state_dict()
    check_weights(policy, state, folder)
    policy.load_state_dict(state)
    return policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return export_llama(load_base_model("chain"), TASK.tokenizer,
                        tmp_path_factory.mktemp("llama") / "chain")


def prompts(count=40):
    return [TASK.tokenizer.encode(p.prompt) for p in TASK.problems(count, random.Random(0))]


def test_logits_are_equal(folder):
    """To 1e-5 of the largest. (In float32 either of the two is about 2e-5 from float64.)"""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    policy = load_base_model("chain")
    with torch.no_grad():
        for prompt in prompts():
            tokens = torch.tensor([[*prompt, 5, 40, 7, 20]])
            logits = policy(tokens)
            apart = (model(tokens).logits - logits).abs().max()
            assert apart < 1e-5 * logits.abs().max() and logits.abs().max() > 1


@pytest.mark.parametrize("shape", [
    {}, {"d_model": 24, "n_heads": 3, "n_layers": 3, "d_hidden": 40},
    {"rope_theta": 500.0, "norm_eps": 1e-3, "context_length": 48}])
def test_in_float64_whatever_the_shape(make_policy, shape):
    policy = make_policy(20, **shape)
    model, tokens = llama(policy), torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10, 11, 2] * 3])
    with torch.no_grad():
        # Llama's RMSNorm computes in float32 whatever it is given
        assert torch.allclose(model(tokens).logits, policy(tokens), rtol=0, atol=1e-5)


def test_back_it_is_the_same_policy(folder):
    policy, again = load_base_model("chain"), import_llama(folder)
    assert again.config == policy.config
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_settings_that_are_not_the_usual_come_back_too(make_policy, tmp_path):
    policy = make_policy(len(TASK.tokenizer), rope_theta=500.0, norm_eps=1e-3, context_length=48)
    again = import_llama(export_llama(policy, TASK.tokenizer, tmp_path / "x"))
    assert again.config == policy.config


def test_it_samples_the_same_completions(folder):
    options = {"max_new_tokens": TASK.max_new_tokens}
    one = sample_groups(load_base_model("chain"), prompts(), 4, **options,
                        generator=torch.Generator().manual_seed(1))
    other = sample_groups(HuggingFacePolicy.from_pretrained(folder), prompts(), 4, **options,
                          generator=torch.Generator().manual_seed(1))
    assert torch.equal(one.tokens, other.tokens)
    assert torch.allclose(one.log_probs, other.log_probs, rtol=0, atol=1e-4)


def test_its_tokenizer_is_the_tasks(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rng = random.Random(1)
    for problem in TASK.problems(50, rng):
        text = problem.prompt + " " + TASK.example(problem, rng, "skill")
        assert tokenizer(text)["input_ids"] == TASK.tokenizer.encode(text)
    ids = [rng.randrange(len(TASK.tokenizer)) for _ in range(2000)]
    for start in range(0, 2000, 8):
        row = torch.tensor([ids[start: start + 8]])
        [wanted] = TASK.tokenizer.decode_rows(row, torch.ones_like(row))
        kept = [i for i in row[0].tolist() if i != tokenizer.eos_token_id]
        assert tokenizer.decode(kept) == wanted
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    with pytest.raises(Exception, match="UNK"):
        tokenizer("a word that it does not know")


def test_the_longest_word_wins_in_its_tokenizer_too():
    ours = Tokenizer(["a", "ab", "abc", "b", "c"])
    theirs = fast_tokenizer(ours)
    for text in ("abc ab a", "abab c", "aabcb"):
        assert theirs(text)["input_ids"] == ours.encode(text)


def test_transformers_own_generate_solves_what_the_policy_solves(folder):
    """The exported base model, greedily, by nothing of ours but the verifier."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    problems = TASK.held_out(100)
    batch = tokenizer([p.prompt for p in problems], padding=True, return_tensors="pt")
    out = model.generate(**batch, do_sample=False, max_new_tokens=TASK.max_new_tokens)
    texts = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1]:], skip_special_tokens=True)
    theirs = [TASK.correct(p, t) for p, t in zip(problems, texts)]
    ours = evaluate(load_base_model("chain"), TASK, problems, temperature=0).right[:, 0].tolist()
    assert theirs == ours and 0 < sum(ours) < 100


def test_the_same_task_on_the_exported_model(folder):
    policy = HuggingFacePolicy.from_pretrained(folder)
    task = InstructionTask(TASK, HuggingFaceTokenizer.of(policy, chat=False),
                           max_new_tokens=TASK.max_new_tokens)
    held_out = TASK.held_out(60)
    ours = evaluate(load_base_model("chain"), TASK, held_out, samples=2)
    theirs = evaluate(policy, task, held_out, samples=2)
    assert torch.equal(ours.right, theirs.right) and ours.completions == theirs.completions


class TestRefused:
    def test_nothing_is_overwritten(self, folder):
        with pytest.raises(FileExistsError, match="nothing was overwritten"):
            export_llama(load_base_model("chain"), TASK.tokenizer, folder)

    def test_another_tasks_tokenizer(self, tmp_path):
        with pytest.raises(ValueError, match="tokenizer: knows"):
            export_llama(load_base_model("chain"), SortTask().tokenizer, tmp_path / "x")
        assert not (tmp_path / "x").exists()

    def test_another_kind_of_policy(self):
        with pytest.raises(TypeError, match="allowed is a TransformerPolicy"):
            llama(torch.nn.Linear(2, 2))

    @pytest.mark.parametrize("change, said", [
        ({"num_key_value_heads": 2}, "num_key_value_heads is 2, allowed is 4"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
         "rope_type is 'linear'")])
    def test_a_llama_of_another_make(self, tmp_path, change, said):
        shape = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1,
                 "num_attention_heads": 4, "intermediate_size": 24} | change
        config = transformers.LlamaConfig(**shape)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match=said):
            import_llama(tmp_path)

    def test_another_family(self, tmp_path, tiny_model):
        tiny_model("gpt2", torch.float32).save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match="model_type is 'gpt2', allowed is 'llama'"):
            import_llama(tmp_path)

    def test_weights_that_are_no_numbers(self, folder, tmp_path):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            model.lm_head.weight[0, 0] = float("nan")
        model.save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match="nan or inf"):
            import_llama(tmp_path)


def test_what_stands_in_the_folder_names_no_one(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "chain" not in json.dumps(config.get("_name_or_path", ""))
    assert len(fast_tokenizer(TASK.tokenizer)) == len(TASK.tokenizer)
