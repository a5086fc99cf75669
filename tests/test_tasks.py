"""Problems, verifiers, held-out splits, and a task of one's own."""

import inspect
import math
import random
import zlib

import pytest
import torch

import grpo_lib
from grpo_lib import pretraining
from grpo_lib.config import GRPOConfig
from grpo_lib.policy import TinyPolicy
from grpo_lib.pretraining import PretrainConfig, pretrain
from grpo_lib.tasks import TASKS, ChainTask, Problem, SortTask, Task, get_task, is_held_out
from grpo_lib.tasks.chain import chain_values
from grpo_lib.tokenizer import Tokenizer
from grpo_lib.training import GRPOTrainer
from grpo_lib.transformer import PolicyConfig

CHAIN = ChainTask()


def last_digits(described):
    """The chain's values from a person's way of writing it: big integers, last digit at the end."""
    start, *operations = described.split()
    values, exact = [int(start)], int(start)
    for operation in operations:
        exact = {"+": exact.__add__, "-": exact.__sub__, "*": exact.__mul__}[operation[0]](
            int(operation[1:]))
        values.append(exact % 10)
    return values


# --- the chain ----------------------------------------------------------------------------

def test_the_documented_chain_by_hand():
    problem = Problem("-5 *2 +8 *3 7 :", "3")
    assert chain_values(problem.prompt) == [7, 1, 9, 8, 3]
    assert CHAIN.describe(problem) == "7 *3 +8 *2 -5"


def test_chain_values_are_those_of_whole_number_arithmetic():
    rng = random.Random(0)
    for problem in CHAIN.problems(500, rng):
        values = last_digits(CHAIN.describe(problem))
        assert chain_values(problem.prompt) == values
        assert problem.answer == str(values[-1])


def test_chains_have_every_length_and_operation_and_digit_that_was_asked_for():
    problems = ChainTask(2, 4).problems(400, random.Random(1))
    assert {len(p.prompt.split()) - 2 for p in problems} == {2, 3, 4}
    assert {word for p in problems for word in p.prompt.split()[:-2]} == {
        f"{op}{digit}" for op in "+-*" for digit in range(10)}
    assert {p.prompt.split()[-2] for p in problems} == set("0123456789")


@pytest.mark.parametrize("shape", [(0, 3), (4, 3), (1, 11), (-1, 2)])
def test_a_chain_of_impossible_length_is_refused(shape):
    with pytest.raises(ValueError, match="shortest, longest"):
        ChainTask(*shape)


@pytest.mark.parametrize(("completion", "right"), [
    ("=> 4", True), ("s1=3 s2=4 => 4", True), ("s9=9 9 9 => 4", True), (": => 4", True),
    ("=> 5", False), ("4", False), ("", False), ("=>", False), ("=> ", False), ("=> 4 4", False),
    ("=> 4 =>", False), ("=> => 4", False), ("=> 5 => 4", False), ("=> 4 => 4", False),
    ("=>4", False), ("=>4 => 4", False), ("=>  4", False), ("=> 4 ", False), ("=> 4\n", False),
    ("=> 04", False), ("=> 14", False), ("=> +4", False), ("=> s1=4", False), ("=> ４", False),
    ("=> 4 <eos>", False), ("= > 4", False), ("⇒ 4", False), ("=> 2+2", False),
    ("=> __import__('os')", False), ("\x00=> 4", True),
])
def test_the_verifier_wants_one_right_digit_after_the_first_arrow(completion, right):
    assert CHAIN.correct(Problem("+0 4 :", "4"), completion) is right
    assert CHAIN.reward(Problem("+0 4 :", "4"), completion) == float(right)


@pytest.mark.parametrize("style", ["skill", "habit"])
def test_every_label_of_a_worked_example_is_right_and_the_answer_too(style):
    rng = random.Random(3)
    skipped, reached = set(), 0
    for problem in CHAIN.problems(1000, rng):
        text = CHAIN.example(problem, rng, style)
        values = last_digits(CHAIN.describe(problem))
        *steps, arrow, answer = text.split()
        assert (arrow, answer) == ("=>", str(values[-1]))
        assert CHAIN.correct(problem, text)
        marked = [step[1:].split("=") for step in steps]
        places = [int(place) for place, _ in marked]
        assert [int(value) for _, value in marked] == [values[place] for place in places]
        assert places == sorted(set(places))
        assert len(CHAIN.tokenizer.encode(text)) + 1 <= CHAIN.max_new_tokens
        if style == "skill":
            assert places == list(range(1, len(values)))
        else:
            assert len(places) < len(values) - 1
            skipped.add(len(places))
            reached += places[-1:] == [len(values) - 1]
    assert style == "skill" or {0, 1, 2, 3} <= skipped
    assert style == "skill" or 50 < reached < 500  # a habit may well write the last step


def test_the_habit_answers_at_once_about_as_often_as_it_says():
    rng = random.Random(4)
    texts = [CHAIN.example(p, rng, "habit") for p in CHAIN.problems(2000, rng)]
    direct = sum(text.startswith("=>") for text in texts) / 2000
    assert 0.37 < direct < 0.47  # 0.40, and the few leaps that overshoot a short chain


def test_the_habit_leaps_as_far_and_as_often_as_it_says():
    task, rng = ChainTask(10, 10), random.Random(8)
    texts = [task.example(p, rng, "habit") for p in task.problems(4000, rng)]
    first = [int(text[1 : text.index("=")]) for text in texts if not text.startswith("=>")]
    for leap, share in zip((1, 2, 3, 4), (0.45, 0.25, 0.15, 0.15)):
        assert first.count(leap) / len(first) == pytest.approx(share, abs=0.04)


def test_a_one_step_chain_has_a_habit_too():
    task, rng = ChainTask(1, 1), random.Random(5)
    for problem in task.problems(50, rng):
        assert task.example(problem, rng, "habit") == f"=> {problem.answer}"


def test_the_probe_is_a_worked_text_up_to_one_step_of_a_held_out_problem():
    rng, places = random.Random(6), set()
    for _ in range(300):
        text, answer = CHAIN.probe(rng)
        prompt, _, steps = text.partition(" :")
        assert is_held_out(prompt + " :")
        values = chain_values(prompt + " :")
        *done, marker = steps.split()
        place = len(done) + 1
        assert done == [f"s{k}={values[k]}" for k in range(1, place)]
        assert (marker, answer) == (f"s{place}=", str(values[place]))
        places.add(place)
    assert places == set(range(1, 9))


# --- the sort -----------------------------------------------------------------------------

def test_a_sort_problem_asks_for_its_digits_in_order():
    for problem in SortTask(2, 5).problems(200, random.Random(0)):
        *digits, colon = problem.prompt.split()
        assert colon == ":" and 2 <= len(digits) <= 5
        wanted = [int(d) for d in problem.answer.split()]
        assert wanted == sorted(int(d) for d in digits)


@pytest.mark.parametrize(("completion", "reward"), [
    ("1 2 3 4", 1.0), ("1 2 4 3", 0.5), ("1 2", 0.5), ("1 2 3 4 5", 0.8), ("", 0.0),
    ("4 3 2 1", 0.0), ("1 2 3 4 : : : :", 0.5), (": 1 2 3", 0.0),
])
def test_the_sort_reward_is_the_share_of_places_filled_rightly(completion, reward):
    problem = Problem("4 2 1 3 :", "1 2 3 4")
    assert SortTask().reward(problem, completion) == pytest.approx(reward)
    assert SortTask().correct(problem, completion) == (reward == 1)


def test_a_sort_example_repeats_the_digits_in_any_order():
    rng = random.Random(1)
    in_order = 0
    for problem in SortTask().problems(200, rng):
        text = SortTask().example(problem, rng, "skill")
        assert sorted(text.split()) == problem.answer.split()
        in_order += text == problem.answer
    assert in_order < 60


# --- held out -----------------------------------------------------------------------------

def test_is_held_out_is_a_fixed_function_of_the_prompt():
    rng = random.Random(0)
    prompts = [CHAIN.problem(rng).prompt for _ in range(4000)]
    chosen = [is_held_out(p) for p in prompts]
    assert chosen == [zlib.crc32(p.encode()) % 20 == 0 for p in prompts]
    assert 0.04 < sum(chosen) / 4000 < 0.06


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(("split", "inside"), [("train", False), ("held_out", True)])
def test_every_problem_is_of_the_split_asked_for(name, split, inside):
    problems = get_task(name).problems(300, random.Random(7), split)
    assert len(problems) == 300
    assert {is_held_out(p.prompt) for p in problems} == {inside}


@pytest.mark.parametrize("name", TASKS)
def test_the_held_out_list_is_the_same_every_time_and_shorter_lists_are_its_start(name):
    random.seed(1)
    full = get_task(name).held_out(60)
    random.seed(2)
    assert get_task(name).held_out(60) == full
    assert get_task(name).held_out(25) == full[:25]


@pytest.mark.parametrize(("task", "count"), [(SortTask(2, 3), 40), (ChainTask(1, 1), 10)])
def test_the_held_out_problems_are_all_different_even_where_few_exist(task, count):
    drawn = task.problems(count, random.Random(2402_03300), "held_out")
    assert len({p.prompt for p in drawn}) < count  # such draws repeat themselves
    assert len({p.prompt for p in task.held_out(count)}) == count


def test_asking_for_more_held_out_problems_than_there_are_says_so():
    with pytest.raises(ValueError, match=r"count: got 20, but SortTask seems to have only"):
        SortTask(2, 2).held_out(20)


def test_the_problems_come_from_the_passed_generator_alone():
    for task in (CHAIN, SortTask()):
        state = random.getstate()
        one, same, other = (task.problems(20, random.Random(s)) for s in (1, 1, 2))
        assert one == same != other
        assert random.getstate() == state


@pytest.fixture(scope="module")
def held_out_ids():
    return {name: {tuple(get_task(name).tokenizer.encode(p.prompt))
                   for p in get_task(name).held_out(1000)} for name in TASKS}


@pytest.mark.parametrize("name", TASKS)
def test_pre_training_never_shows_a_held_out_problem(name, held_out_ids, monkeypatch):
    task, config = get_task(name), PretrainConfig()
    seen, draw = [], pretraining.draw_examples

    def recorded(*arguments):
        examples = draw(*arguments)
        seen.extend(tuple(prompt) for prompt, _ in examples)
        return examples

    monkeypatch.setattr(pretraining, "draw_examples", recorded)
    monkeypatch.setattr(pretraining, "example_loss",
                        lambda policy, task, examples: policy.lm_head.weight.sum() * 0)
    small = PolicyConfig(len(task.tokenizer), d_model=4, n_layers=1, n_heads=1, d_hidden=4)
    steps = sum(1 for _ in pretrain(task, config, small))
    assert steps == config.skill_steps + config.habit_steps
    assert len(seen) == steps * config.batch_size
    assert held_out_ids[name].isdisjoint(seen)
    assert not any(is_held_out(task.tokenizer.decode(ids)) for ids in set(seen))


def test_rl_never_shows_a_held_out_problem(held_out_ids):
    def drawn_only(policy, prompts, group_size, *, max_new_tokens, generator, **_):
        torch.rand(len(prompts) * group_size, max_new_tokens, dtype=torch.float64,
                   generator=generator)
        seen.extend(map(tuple, prompts))

    policy, streams = TinyPolicy(len(CHAIN.tokenizer), 2), []
    for seed in range(10):
        seen = []
        trainer = GRPOTrainer(policy, CHAIN, GRPOConfig(seed=seed, eval_every=0),
                              sampler=drawn_only)
        for _ in range(50):
            trainer.sample()
            torch.randperm(512, generator=trainer.generator)
        assert len(seen) == 50 * 32
        streams.append(set(seen))
    assert all(held_out_ids["chain"].isdisjoint(stream) for stream in streams)
    assert not any(is_held_out(CHAIN.tokenizer.decode(ids)) for ids in set.union(*streams))
    assert all(len(stream) > 1550 for stream in streams)
    assert len(set.union(*streams)) > 15_500  # seeds do not share their problems


class OnePrompt(Task):
    name, tokenizer, max_new_tokens = "one", Tokenizer(["a"]), 2

    def problem(self, rng):
        return Problem("a", "a")


def test_a_task_with_too_few_prompts_to_hold_some_out_says_so():
    with pytest.raises(ValueError, match="only 0 are in 'held_out'"):
        OnePrompt().held_out(3)
    assert len(OnePrompt().problems(3, random.Random(0))) == 3


@pytest.mark.parametrize(("call", "named"), [
    (lambda: CHAIN.problems(1, random.Random(), "test"), "split: got 'test'"),
    (lambda: CHAIN.problems(0, random.Random()), "count: got 0"),
    (lambda: get_task("chess"), "task: got 'chess', allowed are chain, sort"),
])
def test_a_bad_argument_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


# --- scoring ------------------------------------------------------------------------------

def test_rewards_are_given_row_by_row_and_a_cut_off_completion_gets_none():
    problems = [Problem("+0 4 :", "4"), Problem("+0 5 :", "5")]
    texts = ["=> 4", "=> 5", "=> 4", "=> 4", "=> 5", "=> 5"]
    finished = [True, True, False, True, True, False]
    rewards = CHAIN.rewards(problems, texts, finished)
    assert rewards.tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert rewards.is_floating_point()


def test_a_reward_of_ones_own_leaves_the_verifier_telling_the_truth():
    other = CHAIN.with_reward(lambda problem, completion: len(completion) / 10)
    problems, texts, finished = [Problem("+0 4 :", "4")], ["=> 4", "=> 55"], [True, True]
    assert other.rewards(problems, texts, finished).tolist() == [pytest.approx([0.4, 0.5])]
    assert other.grades(problems, texts, finished).tolist() == [[1.0, 0.0]]
    assert CHAIN.rewards(problems, texts, finished).tolist() == [[1.0, 0.0]]
    assert (other.name, other.max_new_tokens) == (CHAIN.name, CHAIN.max_new_tokens)


@pytest.mark.parametrize("value", [torch.zeros(2), "1", (), [1.0], 1j])
def test_a_reward_that_is_no_number_is_named(value):
    task = CHAIN.with_reward(lambda problem, completion: value)
    with pytest.raises(TypeError, match=r"reward: ChainTask\.reward returned"):
        task.rewards([Problem("+0 4 :", "4")], ["=> 4"], [True])


@pytest.mark.parametrize("finished", [[True] * 3, [True] * 5])
def test_completions_and_problems_must_match(finished):
    problems = [Problem("+0 4 :", "4")] * 2
    with pytest.raises(ValueError, match=r"completions: got 4 \(finished"):
        CHAIN.rewards(problems, [""] * 4, finished)
    with pytest.raises(ValueError, match="completions: got 3"):
        CHAIN.rewards(problems, [""] * 3, [True] * 3)


# --- a task of one's own ------------------------------------------------------------------

class Reverse(Task):
    """``2 7 4 :`` becomes ``4 7 2``."""

    name = "reverse"
    tokenizer = Tokenizer([*"0123456789", ":"])
    max_new_tokens = 4

    def problem(self, rng):
        digits = [str(rng.randrange(10)) for _ in range(3)]
        return Problem(" ".join(digits) + " :", " ".join(reversed(digits)))

    def correct(self, problem, completion):
        return completion == problem.answer

    def reward(self, problem, completion):
        return -abs(len(completion) - len(problem.answer))


def test_a_task_of_ones_own_is_short_and_trains(make_policy):
    assert len(inspect.getsource(Reverse).splitlines()) <= 30
    task = Reverse()
    policy = make_policy(len(task.tokenizer))
    before = policy.lm_head.weight.detach().clone()
    config = GRPOConfig(steps=2, prompts_per_step=4, group_size=4, eval_every=2, eval_problems=5)
    history = list(GRPOTrainer(policy, task, config).run())
    assert [m.step for m in history] == [1, 2]
    assert history[1].held_out_accuracy is not None
    assert all(m.reward_mean <= 0 and math.isfinite(m.loss) for m in history)
    assert not torch.equal(policy.lm_head.weight, before)


@pytest.mark.parametrize(("call", "missing"), [
    (lambda task: task.problem(random.Random()), r"Task\.problem"),
    (lambda task: task.reward(Problem("", ""), ""), r"Task\.correct"),
    (lambda task: task.example(Problem("", ""), random.Random(), "skill"), r"Task\.example"),
])
def test_what_a_task_leaves_out_is_named(call, missing):
    with pytest.raises(NotImplementedError, match=missing):
        call(Task())


@pytest.mark.parametrize("name", TASKS)
def test_a_built_in_task_has_its_name_in_the_package(name):
    """The scripts that ``handover`` writes make it by that name."""
    kind = TASKS[name]
    assert getattr(grpo_lib, kind.__name__, None) is kind, f"add {kind.__name__} to _MODULES"
