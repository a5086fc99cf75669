"""A transformers model as policy: the same numbers padded and unpadded, cached and not, by our
sampling and by ``generate``; adapters; what goes wrong is said in one line."""

import importlib.util
import json
import math
import random
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import grpo_lib.bridges.huggingface as room
from grpo_lib import (
    ChainTask,
    GRPOConfig,
    GRPOTrainer,
    PretrainConfig,
    SortTask,
    completion_log_probs,
    evaluate,
    sample_groups,
)
from grpo_lib.bridges.huggingface import (
    HuggingFacePolicy,
    HuggingFaceTokenizer,
    InstructionTask,
    end_ids,
    generate_groups,
)
from grpo_lib.lab.xray import Xray
from grpo_lib.support.run_folder import RunFolder
from grpo_lib.tasks import Problem, Task

FAMILIES = ("llama", "gpt2", "qwen2", "mistral")
ENDS = tuple(range(30, 60))
SMALL = GRPOConfig(steps=2, prompts_per_step=2, group_size=3, eval_every=0)
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17]]


def numbers(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module", params=FAMILIES)
def policy(request, tiny_model):
    return HuggingFacePolicy(tiny_model(request.param))


@pytest.fixture(scope="module")
def llama(tiny_model):
    return HuggingFacePolicy(tiny_model())


@pytest.fixture
def task(trained_tokenizer):
    return InstructionTask(ChainTask(2, 3), HuggingFaceTokenizer(trained_tokenizer()),
                           max_new_tokens=12)


@pytest.fixture
def make_trainer(tiny_model, task):
    def make(config=SMALL, lora=None, **options):
        model = tiny_model(options.pop("family", "llama"))
        policy = HuggingFacePolicy(room.with_lora(model, lora) if lora else model)
        # what random weights can earn: many tokens end an answer, and every other length is right
        ends = HuggingFaceTokenizer(task.tokenizer.tokenizer, eos_ids=range(1, 60))
        easy = InstructionTask(task.task, ends, max_new_tokens=12).with_reward(
            lambda problem, text: float(len(text) % 2))
        return GRPOTrainer(policy, easy, config, policy.reference(), **options)

    return make


def same(rollouts, others, tolerance=1e-12):
    assert torch.equal(rollouts.tokens, others.tokens)
    assert torch.equal(rollouts.mask, others.mask)
    assert torch.equal(rollouts.finished, others.finished)
    assert torch.allclose(rollouts.log_probs, others.log_probs, rtol=0, atol=tolerance)


class TestAsAPolicy:
    def test_padded_and_alone_the_log_probs_are_the_same(self, policy):
        together = sample_groups(policy, PROMPTS, 4, max_new_tokens=9, generator=numbers(),
                                 eos_id=1)
        again = completion_log_probs(policy, together)
        assert torch.allclose(again, together.log_probs, rtol=0, atol=1e-12)
        with torch.no_grad():
            for row, prompt in enumerate(p for p in PROMPTS for _ in range(4)):
                length = int(together.mask[row].sum())
                alone = torch.tensor([prompt + together.completions[row, :length].tolist()])
                logits = policy.model(input_ids=alone).logits.log_softmax(-1)  # nothing of ours
                for t in range(length):
                    wanted = logits[0, len(prompt) + t - 1, alone[0, len(prompt) + t]]
                    assert together.log_probs[row, t].item() == pytest.approx(
                        wanted.item(), abs=1e-12)

    def test_positions_matter_and_padding_does_not_move_them(self, policy):
        tokens = torch.tensor([[0, 0, 5, 6, 7]])
        mask = torch.tensor([[0, 0, 1, 1, 1]])
        with torch.no_grad():
            padded = policy(tokens, mask)[:, 2:]
            assert torch.allclose(padded, policy(tokens[:, 2:]), rtol=0, atol=1e-12)
            swapped = policy(torch.tensor([[6, 5, 7]]))
        assert (swapped[:, -1] - padded[:, -1]).abs().max() > 1e-3

    def test_cache_and_none_sample_the_same(self, policy):
        runs = [sample_groups(policy, PROMPTS, 4, max_new_tokens=9, generator=numbers(),
                              eos_id=ENDS, use_cache=cache) for cache in (True, False)]
        same(*runs)
        ended = runs[0].lengths[runs[0].finished]
        assert len(ended) and ended.min() < runs[0].lengths.max(), "rows are dropped on the way"

    def test_the_gradient_reaches_every_weight(self, policy):
        rollouts = sample_groups(policy, PROMPTS, 2, max_new_tokens=5, generator=numbers(),
                                 eos_id=1)
        policy.zero_grad()
        completion_log_probs(policy, rollouts).sum().backward()
        without = [name for name, p in policy.named_parameters() if p.grad is None]
        assert without == []
        policy.zero_grad()

    def test_dropout_stays_off(self, tiny_model):
        policy = HuggingFacePolicy(tiny_model("gpt2", resid_pdrop=0.5, attn_pdrop=0.5)).train()
        tokens = torch.tensor([[5, 6, 7, 8]])
        assert torch.equal(policy(tokens), policy(tokens))

    def test_bfloat16_products_under_float32_weights(self, tiny_model):
        tokens = torch.tensor([[5, 6, 7, 8]])
        plain = HuggingFacePolicy(tiny_model(dtype=torch.float32))
        half = HuggingFacePolicy(plain.model, autocast=torch.bfloat16)
        exact, rough = plain(tokens), half(tokens)
        assert rough.dtype == torch.float32
        assert 0 < (exact - rough).abs().max() < 0.1 * exact.abs().max()

    def test_a_completion_that_does_not_fit_is_said_before_anything_happens(self, llama):
        with pytest.raises(ValueError, match="max_position_embeddings"):
            sample_groups(llama, PROMPTS, 2, max_new_tokens=300, generator=numbers())


class TestGenerate:
    def test_its_log_probs_are_those_of_its_tokens(self, policy):
        rollouts = generate_groups(policy, PROMPTS, 4, max_new_tokens=9, generator=numbers(),
                                   eos_id=ENDS, rows_at_once=5)
        assert torch.equal(rollouts.log_probs, rollouts.log_probs * rollouts.mask)
        same(rollouts, replace(rollouts, log_probs=completion_log_probs(policy, rollouts)))
        for row, length in enumerate(rollouts.lengths.int().tolist()):
            completion = rollouts.completions[row].tolist()
            ended = completion[length - 1] in ENDS
            assert ended == rollouts.finished[row].item() and (ended or length == 9)
            assert not set(ENDS) & set(completion[: length - 1])
        assert 0 < rollouts.finished.float().mean() < 1

    def test_it_samples_from_the_distribution_that_is_scored(self, llama):
        """First tokens against the policy's own probabilities, with settings in the model's
        generation_config that would bend them."""
        kept = llama.model.generation_config
        bent = type(kept)(top_k=3, top_p=0.5, repetition_penalty=1.9, temperature=0.2,
                          min_p=0.5)
        llama.model.generation_config = bent
        try:
            rollouts = generate_groups(llama, [PROMPTS[0]], 4000, max_new_tokens=1,
                                       temperature=1.5, generator=numbers(), eos_id=1,
                                       rows_at_once=4000)
            assert llama.model.generation_config is bent
        finally:
            llama.model.generation_config = kept
        with torch.no_grad():
            wanted = (llama(torch.tensor([PROMPTS[0]]))[0, -1] / 1.5).softmax(-1)
        found = torch.bincount(rollouts.completions[:, 0], minlength=len(wanted)) / 4000
        spread = (wanted * (1 - wanted) / 4000).sqrt()
        assert ((found - wanted).abs() < 5 * spread + 1e-3).all()

    def test_greedy_is_greedy_in_both(self, policy):
        options = {"max_new_tokens": 7, "temperature": 0, "eos_id": 1}
        same(sample_groups(policy, PROMPTS, 2, **options),
             generate_groups(policy, PROMPTS, 2, **options))

    def test_same_seed_same_completions_and_torchs_own_generator_is_left_alone(self, llama):
        before = torch.get_rng_state()
        one, other, third = (generate_groups(llama, PROMPTS, 2, max_new_tokens=7, eos_id=1,
                                             generator=numbers(seed)) for seed in (0, 0, 1))
        assert torch.equal(before, torch.get_rng_state())
        same(one, other)
        assert not torch.equal(one.tokens, third.tokens)

    def test_parts_draw_other_numbers_and_leave_the_generator_alike(self, llama):
        generators = [numbers(), numbers()]
        parts = [generate_groups(llama, [PROMPTS[0], PROMPTS[0]], 3, max_new_tokens=7, eos_id=1,
                                 generator=g, part=(k, 2)) for k, g in enumerate(generators)]
        assert [len(p.tokens) for p in parts] == [3, 3]
        assert not torch.equal(parts[0].completions, parts[1].completions)
        assert torch.equal(*(g.get_state() for g in generators))

    def test_a_trainer_takes_it_as_its_sampler(self, make_trainer):
        config = GRPOConfig(steps=2, prompts_per_step=2, group_size=3, minibatches=1, eval_every=0)
        trainer = make_trainer(config, sampler=generate_groups)
        metrics = list(trainer.run())
        assert len(metrics) == 2 and metrics[0].ratio_max == pytest.approx(1, abs=1e-9)


class TestTokenizer:
    def test_a_chat_goes_through_the_template(self, trained_tokenizer):
        tokenizer = HuggingFaceTokenizer(trained_tokenizer(), system="Be brief.")
        text = tokenizer.tokenizer.decode(tokenizer.encode("Start with 3."))
        assert text == "<|system|>Be brief.<|end|><|user|>Start with 3.<|end|><|assistant|>"

    def test_without_chat_a_prompt_stays_as_it_is(self, trained_tokenizer):
        tokenizer = HuggingFaceTokenizer(trained_tokenizer(chat=False), chat=False)
        assert tokenizer.tokenizer.decode(tokenizer.encode("+3 *4 5 :")) == "+3 *4 5 :"

    def test_only_what_ends_a_completion_is_left_out_of_its_text(self, trained_tokenizer):
        tokenizer = HuggingFaceTokenizer(trained_tokenizer())
        answer = tokenizer.tokenizer("=> 4")["input_ids"]
        tokens = torch.tensor([[*answer, 1, 7], [0, *answer, 1]])
        mask = torch.tensor([[1] * len(answer) + [1, 0], [1] * (len(answer) + 2)])
        assert tokenizer.decode_rows(tokens, mask) == ["=> 4", "<|pad|>=> 4"]

    def test_all_the_ends_that_the_model_names_count(self, saved):
        policy = HuggingFacePolicy.from_pretrained(saved)
        policy.model.generation_config.eos_token_id = [4, 1]
        assert HuggingFaceTokenizer.of(policy).eos_id == (1, 4)

    def test_ends_are_found_by_a_models_name_too(self, saved, tmp_path, trained_tokenizer):
        """As the handover's script does, before there is a model."""
        tokenizer = trained_tokenizer()
        assert end_ids(saved, tokenizer) == [1]
        copy = tmp_path / "several"
        shutil.copytree(saved, copy)
        settings = copy / "generation_config.json"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token_id": [4, 1]}))
        assert end_ids(copy, tokenizer) == [1, 4]
        assert HuggingFaceTokenizer.of(copy).eos_id == (1, 4)
        settings.unlink()  # then the configuration's count
        about = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(about | {"eos_token_id": 3}))
        assert end_ids(copy, tokenizer) == [1, 3]
        assert end_ids(copy, trained_tokenizer(eos=False)) == [3]

    def test_no_end_and_no_template_are_said_in_a_line(self, trained_tokenizer):
        with pytest.raises(ValueError, match=r"no end-of-sequence token.*set tokenizer\.eos_token"):
            HuggingFaceTokenizer(trained_tokenizer(eos=False))
        with pytest.raises(ValueError, match=r"no chat template.*chat=False"):
            HuggingFaceTokenizer(trained_tokenizer(chat=False))

    def test_a_pad_token_is_not_needed(self, llama, trained_tokenizer):
        task = InstructionTask(ChainTask(1, 2), HuggingFaceTokenizer(trained_tokenizer(pad=False)),
                               max_new_tokens=4)
        assert evaluate(llama, task, task.held_out(4), samples=2).right.shape == (4, 2)


class TestTask:
    def test_the_words_say_the_problem_and_the_verifier_is_the_tasks(self, task):
        [problem] = task.problems(1, random.Random(3))
        assert problem.prompt == task.task.problems(1, random.Random(3))[0].prompt
        words = task.instruction(problem)
        value, rest = words.partition("Start with ")[2].split(". Then, in this order: ")
        value = int(value)
        for operation in rest.split(".")[0].split(", "):
            name, digit = operation.rsplit(" ", 1)
            value = {"add": value + int(digit), "subtract": value - int(digit),
                     "multiply by": value * int(digit)}[name] % 10
        assert str(value) == problem.answer, words
        assert task.correct(problem, f"1, then 2\n=>\n{value}")
        assert not task.correct(problem, f"=> {(value + 1) % 10}")
        assert not task.correct(problem, f"=> {value} or so")
        assert task.reward(problem, f"1, then 2\n=>\n{value}") == 1

    def test_no_prompt_is_in_both_splits(self, task):
        held_out = {p.prompt for p in task.held_out(50)}
        trained = {p.prompt for p in task.problems(500, random.Random(0))}
        assert held_out.isdisjoint(trained)

    def test_a_task_without_words_says_so(self, trained_tokenizer):
        class Wordless(SortTask):
            instruction = Task.instruction

        task = InstructionTask(Wordless(2, 3), HuggingFaceTokenizer(trained_tokenizer()),
                               max_new_tokens=5)
        with pytest.raises(NotImplementedError, match=r"Wordless\.instruction"):
            task.encode(task.problem(random.Random(0)))

    def test_sorting_in_words(self, trained_tokenizer):
        task = InstructionTask(SortTask(2, 3), HuggingFaceTokenizer(trained_tokenizer()),
                               max_new_tokens=5)
        words = task.instruction(Problem("7 2 9 :", "2 7 9"))
        assert "7, 2, 9" in words and "2 7 9" not in words
        assert task.reward(Problem("7 2 9 :", "2 7 9"), "2 7\n9") == 1


class TestTraining:
    @pytest.mark.parametrize("family", ["llama", "gpt2"])
    def test_a_step_moves_the_policy_and_not_the_reference(self, make_trainer, family):
        trainer = make_trainer(GRPOConfig(steps=1, prompts_per_step=4, group_size=8, beta=0.1,
                                          eval_every=0, num_iterations=2), family=family)
        before = {n: p.clone() for n, p in trainer.policy.named_parameters()}
        reference = {n: p.clone() for n, p in trainer.ref_policy.named_parameters()}
        [metrics] = trainer.run()
        assert 0 < metrics.reward_mean < 1 and metrics.zero_variance_groups < 1
        assert any((p != before[n]).any() for n, p in trainer.policy.named_parameters())
        assert all(torch.equal(p, reference[n]) for n, p in trainer.ref_policy.named_parameters())
        assert metrics.kl == pytest.approx(0, abs=1e-12) and metrics.ratio_max > 1

    @pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "dapo", "rloo", "gspo", "maxrl"])
    def test_in_parts_the_numbers_are_the_same(self, make_trainer, algorithm):
        config = GRPOConfig(steps=2, prompts_per_step=3, group_size=4, eval_every=0, beta=0.05,
                            algorithm=algorithm, max_grad_norm=1e9, num_iterations=2)
        runs = [make_trainer(replace(config, micro_batch_size=size)) for size in (None, 1, 5)]
        for trainer in runs:
            list(trainer.run())
        for other in runs[1:]:
            for a, b in zip(runs[0].policy.parameters(), other.policy.parameters()):
                assert torch.allclose(a, b, rtol=0, atol=1e-9)
            for one, two in zip(runs[0].history, other.history):
                assert one.grad_norm == pytest.approx(two.grad_norm, rel=1e-8)
                assert one.loss == pytest.approx(two.loss, abs=1e-10)

    def test_a_checkpoint_brings_everything_back(self, make_trainer, tmp_path):
        trainer = make_trainer()
        trainer.step()
        trainer.save(tmp_path / "a.safetensors")
        trainer.step()
        again = make_trainer()
        again.load(tmp_path / "a.safetensors")
        again.step()
        for a, b in zip(trainer.policy.parameters(), again.policy.parameters()):
            assert torch.equal(a, b)

    def test_a_runs_folder_is_restored_by_a_trainer_of_ones_own(self, make_trainer, tmp_path):
        trainer = make_trainer()
        run = RunFolder.create(tmp_path / "run", trainer, save_every=1)
        for metrics in trainer.run(1):
            run.record(metrics)
        run.save(trainer)
        again = make_trainer()
        RunFolder.open(tmp_path / "run").restore(again)
        assert again.step_count == 1 and again.history[0].loss == pytest.approx(
            trainer.history[0].loss, abs=1e-6)
        list(trainer.run())
        run.finish(trainer)
        assert (tmp_path / "run" / "policy" / "model.safetensors").is_file()

    def test_the_xray_reads_it(self, make_trainer):
        trainer = make_trainer()
        trainer.step()
        xray = Xray.of(trainer)
        assert xray.words[0] == [trainer.task.tokenizer.tokenizer.decode([i]) for i in
                                 trainer.rollouts.completions[0, : len(xray.words[0])].tolist()]

    def test_no_more_rows_than_are_allowed_go_through_together(self, make_trainer):
        """In an update, in scoring, and in the X-ray of the step."""
        trainer = make_trainer(replace(SMALL, prompts_per_step=4, group_size=4,
                                       micro_batch_size=3))
        seen, forward = [], trainer.policy.model.forward

        def counted(*arguments, **options):
            if not options["use_cache"]:
                seen.append(len(options["input_ids"]))
            return forward(*arguments, **options)

        trainer.policy.model.forward = counted
        trainer.step()
        steps = len(seen)
        Xray.of(trainer)
        assert len(seen) > steps > 0 and max(seen) == 3

    def test_no_memory_is_said_with_what_to_change(self, make_trainer, monkeypatch):
        trainer = make_trainer()

        def full(*_, **__):
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you "
                               "tried to allocate 9 bytes.")

        monkeypatch.setattr(trainer.policy.model, "forward", full)
        monkeypatch.setattr(trainer, "sampler", full)
        with pytest.raises(torch.OutOfMemoryError,
                           match=r"out of memory in sampling.*micro_batch_size.*group_size"):
            trainer.step()
        with pytest.raises(torch.OutOfMemoryError,
                           match=r"out of memory in evaluate: rows_at_once \(now 12\)"):
            evaluate(trainer.policy, trainer.task, trainer.task.held_out(2), rows_at_once=12)
        trainer.change(replace(trainer.config, entropy_coef=0.1, aggregation="sequence_mean",
                               micro_batch_size=None))
        with pytest.raises(torch.OutOfMemoryError, match=r"step 1: prompts_per_step and"):
            trainer.step()

    def test_no_memory_for_the_weights_either(self, saved, monkeypatch):
        def full(*_, **__):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 bytes")

        monkeypatch.setattr(HuggingFacePolicy, "to", full)
        with pytest.raises(torch.OutOfMemoryError, match=r"in loading .*: a smaller model needs"):
            HuggingFacePolicy.from_pretrained(saved)


class TestAdapters:
    def test_they_start_as_nothing_and_are_all_that_is_trained_and_saved(self, make_trainer,
                                                                        tmp_path):
        config = GRPOConfig(steps=2, prompts_per_step=4, group_size=8, eval_every=0, beta=0.1)
        trainer = make_trainer(config, lora=4)
        weights = {n: p.clone() for n, p in trainer.policy.named_parameters()}
        first = trainer.step()
        assert first.kl == pytest.approx(0, abs=1e-12)
        second = trainer.step()
        assert second.kl > 1e-6, "the reference is the model without its adapters"
        for name, parameter in trainer.policy.named_parameters():
            assert parameter.requires_grad == ("lora_" in name)
            if "lora_" not in name:
                assert torch.equal(parameter, weights[name])
        assert all("lora_" in name for name in trainer.policy.state_dict())
        trainer.save(tmp_path / "a.safetensors")
        full = sum(p.numel() for p in trainer.policy.parameters()) * 8
        assert (tmp_path / "a.safetensors").stat().st_size < full / 2
        again = make_trainer(config, lora=4)
        again.load(tmp_path / "a.safetensors")
        same(sample_groups(trainer.policy, PROMPTS, 2, max_new_tokens=5, generator=numbers()),
             sample_groups(again.policy, PROMPTS, 2, max_new_tokens=5, generator=numbers()), 0)

    def test_the_reference_is_the_model_before(self, tiny_model):
        plain = HuggingFacePolicy(tiny_model())
        policy = HuggingFacePolicy(room.with_lora(tiny_model(), 4))
        tokens = torch.tensor([[5, 6, 7, 8]])
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_" in name:
                    parameter.normal_(0, 0.3)
            assert torch.equal(policy.reference()(tokens), plain(tokens))
            assert (policy(tokens) - plain(tokens)).abs().max() > 1e-3
        assert list(policy.reference().parameters()) == []

    def test_from_a_folder(self, saved, tmp_path):
        policy = HuggingFacePolicy.from_pretrained(saved, lora_rank=2)
        assert policy.model.peft_config["default"].lora_alpha == 4
        with torch.random.fork_rng():
            torch.manual_seed(5)
            again = HuggingFacePolicy.from_pretrained(saved, lora_rank=2)
        for one, other in zip(policy.parameters(), again.parameters()):
            assert torch.equal(one, other), "adapters start from a seed of their own"

    def test_trained_adapters_come_back_and_are_trained_on(self, saved, task, tmp_path):
        policy = HuggingFacePolicy.from_pretrained(saved, lora_rank=2)
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(generator=numbers())
        policy.save_pretrained(tmp_path / "adapters")
        again = HuggingFacePolicy.from_pretrained(tmp_path / "adapters")
        tokens = torch.tensor(PROMPTS[:1])
        assert torch.allclose(again(tokens), policy(tokens), atol=1e-6)
        assert again.saved == policy.saved and len(again.saved) > 0
        assert HuggingFaceTokenizer.of(again).eos_id == (1,), "the tokenizer is the model's"
        assert policy.reference() is not None and again.reference() is None
        trainer = GRPOTrainer(again, task, replace(SMALL, beta=0.1), again.reference())
        assert trainer.step().kl == pytest.approx(0, abs=1e-6), "measured to where it started"
        with pytest.raises(ValueError, match=r"lora_rank: got 2, but .* holds adapters already"):
            HuggingFacePolicy.from_pretrained(tmp_path / "adapters", lora_rank=2)
        (tmp_path / "adapters" / "adapter_model.safetensors").write_bytes(b"no tensors")
        with pytest.raises(OSError, match="holds no adapter that transformers can load"):
            HuggingFacePolicy.from_pretrained(tmp_path / "adapters")

    def test_weights_of_sixteen_bits_are_warned_of_unless_adapters_are_trained(self, saved):
        with pytest.warns(UserWarning, match="most of a small step is rounded away"):
            HuggingFacePolicy.from_pretrained(saved, dtype=torch.bfloat16)
        policy = HuggingFacePolicy.from_pretrained(saved, dtype=torch.bfloat16, lora_rank=2)
        trained = dict(policy.named_parameters())
        assert {trained[n].dtype for n in policy.saved} == {torch.float32}


class TestWhatGoesWrong:
    """One line each that says what to do."""

    def check(self, kind, match, make):
        with pytest.raises(kind, match=match) as caught:
            make()
        assert "\n" not in str(caught.value)

    def test_a_missing_extra(self, monkeypatch):
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: (
            None if name in ("transformers", "peft") else find(name, *a)))
        self.check(ImportError, r"transformers: not installed; pip install -e \"\.\[llm\]\"",
                   lambda: HuggingFacePolicy.from_pretrained("Qwen/Qwen2.5-0.5B-Instruct"))
        self.check(ImportError, "transformers, peft: not installed",
                   lambda: HuggingFacePolicy.from_pretrained("x/y", lora_rank=2))

    def test_a_package_that_a_model_needs(self, tmp_path):
        def load(name):
            raise ImportError("\nrequires the sentencepiece library\nsee its page")

        self.check(ImportError, "x/y: requires the sentencepiece library$",
                   lambda: room.loaded(load, "x/y", "tokenizer"))
        self.check(OSError, r"holds no tokenizer .*\(requires the sentencepiece library\)",
                   lambda: room.loaded(load, tmp_path, "tokenizer"))

    def test_no_network(self):
        self.check(OSError, "Qwen/Qwen2.5-0.5B-Instruct: could not be fetched.*check the network",
                   lambda: HuggingFacePolicy.from_pretrained("Qwen/Qwen2.5-0.5B-Instruct"))
        self.check(OSError, "Qwen/Qwen2.5-0.5B-Instruct: could not be fetched.*check the network",
                   lambda: HuggingFaceTokenizer.of("Qwen/Qwen2.5-0.5B-Instruct"))

    def test_an_unknown_model(self, monkeypatch):
        import huggingface_hub
        import transformers

        answer = SimpleNamespace(headers={}, request=None, status_code=404)

        def not_there(*_, **__):
            try:
                raise huggingface_hub.errors.RepositoryNotFoundError("404", response=answer)
            except Exception as error:
                raise OSError("x/y is not a local folder and is not a valid model identifier "
                              "listed on ...\nIf this is a private repository, ...") from error

        monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", not_there)
        self.check(OSError, "x/y: the hub has no such model, or it needs a login",
                   lambda: HuggingFacePolicy.from_pretrained("x/y"))

    def test_a_model_whose_owners_ask_for_terms(self, monkeypatch):
        import huggingface_hub
        import transformers

        def gated(*_, **__):
            try:
                raise huggingface_hub.errors.GatedRepoError(
                    "403", response=SimpleNamespace(headers={}, request=None, status_code=403))
            except Exception as error:
                raise OSError("You are trying to access ...\n403 Client Error") from error

        monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", gated)
        self.check(OSError, r"x/y: its owners ask you to accept.*\(hf auth login\)",
                   lambda: HuggingFacePolicy.from_pretrained("x/y"))

    @pytest.mark.parametrize("error", [ValueError("type `new_thing`"), KeyError("new_thing")])
    def test_a_model_newer_than_transformers(self, monkeypatch, error):
        import transformers

        def unknown(*_, **__):
            raise error

        monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", unknown)
        self.check(OSError, "x/y: holds no language model that the.*a newer one may.*new_thing",
                   lambda: HuggingFacePolicy.from_pretrained("x/y"))

    def test_a_folder_that_is_not_there_or_holds_something_else(self, tmp_path):
        self.check(OSError, "no such folder",
                   lambda: HuggingFacePolicy.from_pretrained(tmp_path / "nothing"))
        self.check(OSError, "holds no language model that transformers can load",
                   lambda: HuggingFacePolicy.from_pretrained(tmp_path))
        self.check(OSError, "holds no tokenizer that transformers can load",
                   lambda: HuggingFaceTokenizer.of(tmp_path))

    def test_a_checkpoint_that_lacks_a_weight_is_not_filled_with_chance(self, saved, tmp_path):
        from safetensors.torch import load_file, save_file

        shutil.copytree(saved, tmp_path / "a")
        at = tmp_path / "a" / "model.safetensors"
        whole = {n: t.clone() for n, t in load_file(at).items()}  # the file is written over
        [one, other] = [n for n in whole if "layers.0.mlp.up" in n or "layers.1.mlp.up" in n]
        save_file({n: t for n, t in whole.items() if n != one}, at, {"format": "pt"})
        self.check(OSError, f"a: 1 weights of this language model are missing or.*{one}",
                   lambda: HuggingFacePolicy.from_pretrained(tmp_path / "a"))
        save_file(whole | {other: torch.zeros(2, 2)}, at, {"format": "pt"})
        self.check(OSError, "a: (1 weights .* another shape|holds no language model)",
                   lambda: HuggingFacePolicy.from_pretrained(tmp_path / "a"))
        at.write_bytes(at.read_bytes()[:100])
        self.check(OSError, "a: holds no language model that transformers can load",
                   lambda: HuggingFacePolicy.from_pretrained(tmp_path / "a"))

    def test_a_device_that_is_not_there(self, saved):
        self.check(ValueError, "device: got 'nowhere', must be cpu or cuda",
                   lambda: HuggingFacePolicy.from_pretrained(saved, device="nowhere"))

    @pytest.mark.parametrize("kind, shape", [
        ("MambaConfig", {"state_size": 4, "num_hidden_layers": 1}),
        ("Lfm2Config", {"num_attention_heads": 2, "num_key_value_heads": 2,
                        "num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]})])
    def test_a_model_that_keeps_other_things_than_keys_and_values(self, kind, shape):
        import transformers

        config = getattr(transformers, kind)(
            vocab_size=30, hidden_size=16, intermediate_size=32, pad_token_id=0, bos_token_id=1,
            eos_token_id=1, **shape)
        policy = HuggingFacePolicy(transformers.AutoModelForCausalLM.from_config(config))
        self.check(ValueError, r"keeps more than keys and values.*sampler=generate_groups",
                   lambda: sample_groups(policy, PROMPTS[1:2], 2, max_new_tokens=3, eos_id=1))
        rollouts = generate_groups(policy, PROMPTS[1:2], 2, max_new_tokens=3, eos_id=1)
        assert rollouts.log_probs.isfinite().all()

    def test_importing_the_room_needs_no_transformers(self):
        code = ("import sys\nfrom grpo_lib.bridges import export, handover, huggingface\n"
                "assert not {'transformers', 'trl', 'peft'} & set(sys.modules)")
        import subprocess

        assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_generate_is_not_asked_for_more_than_the_model_can_read(llama):
    with pytest.raises(ValueError, match=r"need 261 tokens, allowed are 256"):
        generate_groups(llama, PROMPTS, 2, max_new_tokens=254, eos_id=1)


def test_groups_of_generated_completions_have_the_exact_log_probs_at_any_temperature(llama):
    rollouts = generate_groups(llama, PROMPTS, 2, max_new_tokens=4, temperature=0.7,
                               generator=numbers(), eos_id=1)
    first = rollouts.completions[0, 0]
    with torch.no_grad():
        logits = llama(torch.tensor([PROMPTS[0]]))[0, -1] / 0.7
    assert rollouts.log_probs[0, 0].item() == pytest.approx(
        (logits[first] - logits.logsumexp(0)).item(), abs=1e-12)
    assert math.isfinite(rollouts.log_probs.sum())


def test_what_the_cuda_benchmark_does_runs_on_a_cpu_with_a_small_shape(monkeypatch):
    from benchmarks import cuda

    monkeypatch.setattr(cuda, "AT_ONCE", 3)
    shape = cuda.HALF_A_BILLION | {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2,
                                   "num_attention_heads": 4, "intermediate_size": 48}
    sizes = {"prompts": 2, "group": 4, "prompt_length": 5, "length": 6}
    same = cuda.agreement(shape, "cpu:0", **sizes)
    assert same["tokens"] == 48 and abs(same["loss"]["cpu"]) > 1e-3
    for name in ("loss", "grad_norm"):
        assert same[name]["cpu"] == pytest.approx(same[name]["cpu:0"], rel=1e-5)
    policy = cuda.make_policy(shape, "cpu")
    rollouts = cuda.draw(policy, shape, **sizes)
    in_parts = cuda.take_gradient(policy, rollouts)
    monkeypatch.setattr(cuda, "AT_ONCE", 8)
    assert in_parts == pytest.approx(cuda.take_gradient(policy, rollouts), rel=1e-4, abs=1e-7)
    found = cuda.speed(shape, "cpu", **sizes)
    assert found["float32"]["sampled_tokens_a_second"] > 0 and "bfloat16" not in found
    run = {"seconds": 1.0, "accuracy": 0.5}
    base = cuda.pretraining("cpu", PretrainConfig(skill_steps=1, habit_steps=0))
    text = cuda.report({"device": "x", "versions": {"torch": "y"}, "speed": found,
                        "pretraining": {"cpu": base, "cuda": base},
                        "flagship": {"cpu": run, "cuda": run},
                        "agreement": same | {name: {"cpu": same[name]["cpu"],
                                                    "cuda": same[name]["cpu:0"]}
                                             for name in ("loss", "grad_norm")}})
    assert f"| loss of the model on the same 48 tokens | {same['loss']['cpu']:.6f}" in text
