"""Files and answers that nobody wrote: refused in a line, or taken as what they say.

100,000 strings go through every verifier in each run of the tests; ``GRPO_LIB_FUZZ=20`` makes
twenty times as many of everything.
"""

import json
import math
import os
import random
import warnings
from dataclasses import fields

import pytest
import torch

from grpo_lib import ALGORITHMS
from grpo_lib.config import GRPOConfig
from grpo_lib.course.flawed import VERIFIERS
from grpo_lib.pretraining import PretrainConfig
from grpo_lib.support.checkpoint import (
    CheckpointError,
    checksum,
    load_policy,
    load_tensors,
    save_policy,
    save_tensors,
)
from grpo_lib.support.run_folder import RunFolder
from grpo_lib.tasks import TASKS, ChainTask, SortTask, get_task
from grpo_lib.training import GRPOTrainer
from grpo_lib.transformer import PolicyConfig, TransformerPolicy

TIMES = int(os.environ.get("GRPO_LIB_FUZZ", "1"))
STRINGS = 100_000 * TIMES


# --- answers ------------------------------------------------------------------------------

STRANGE = ["\x00", "\n", "\t", "\r", "\v", "\u2028", "\u00a0", "\u200b", "\ufeff", "\ud800", "é",
           "９", "٣", "²", "½", "Ⅳ", "π", "😀", "'", '"', "\\", "{}", "{0}", "%s", "%n", "(", ")",
           "[", "*", "+", "?", "^", "$", "|", ".", ",", "-", "_", "0x4", "1e9", "nan", "inf",
           "-0", "9" * 50, "None", "True", "__import__('os')", "<eos>", "<pad>", "</s>", "=",
           ">", "= >", "⇒", "=>", "=> ", " =>", "=>=>", "s", "s1", "s1=", "s11=", ":", "  "]


def answers(task, rng, count):
    """(problem, completion): right answers and worked ones, changed here and there, and words,
    signs and noise in any order."""
    words = list(task.tokenizer.words)
    pieces = words + STRANGE
    problems = task.problems(50, rng)
    for number in range(count):
        problem = problems[rng.randrange(50)]
        way = number % 5
        if way == 0:  # words of the task
            text = " ".join(rng.choices(words, k=rng.randrange(12)))
        elif way == 1:  # anything
            text = "".join(rng.choices(pieces, k=rng.randrange(8)))
        else:  # a right answer, with up to three changes
            text = task.example(problem, rng, rng.choice(("skill", "habit")))
            if not isinstance(task, ChainTask):
                text = problem.answer
            for _ in range(rng.choice((0, 1, 1, 2, 3))):
                at = rng.randrange(len(text) + 1)
                until = at + rng.choice((0, 0, 1, 2))
                text = text[:at] + rng.choice((rng.choice(pieces), "", " ")) + text[until:]
                if rng.random() < 0.05:
                    text = text * rng.choice((2, 100))
        yield problem, text


def chain_is_right(problem, text):
    """A slow reading, sign by sign: the last number of whole-number arithmetic, asked for in the
    words of the task's rules and with no help from its code."""
    start, operations = None, []
    for word in problem.prompt.split()[:-1]:
        if len(word) == 1:
            start = int(word)
        else:
            operations.insert(0, word)
    for sign, digit in operations:
        start = {"+": start + int(digit), "-": start - int(digit), "*": start * int(digit)}[sign]
    digit = "0123456789"[start % 10]
    for at in range(len(text) - 1):
        if text[at] == "=" and text[at + 1] == ">":  # the first arrow decides
            rest = [*text[at + 2:]]
            return rest == [" ", digit]
    return False


def sort_is_right(problem, text):
    digits = [sign for sign in problem.prompt if sign in "0123456789"]
    wanted = []
    for digit in "0123456789":
        wanted += [digit] * digits.count(digit)
    return [*text] == [*" ".join(wanted)]


READERS = {"chain": chain_is_right, "sort": sort_is_right}


def test_every_task_has_a_slow_reader():
    assert READERS.keys() == TASKS.keys()


@pytest.mark.parametrize("name", TASKS)
def test_a_verifier_takes_any_string_and_is_right_about_it(name):
    task, rng, right = get_task(name), random.Random(5), 0
    for problem, text in answers(task, rng, STRINGS):
        said = task.correct(problem, text)
        assert said is READERS[name](problem, text), (problem, text)
        reward = task.reward(problem, text)
        assert 0 <= reward <= 1 and isinstance(reward, float), (problem, text)
        assert reward == 1 or not said, (problem, text)
        right += said
    assert STRINGS / 20 < right < STRINGS / 2  # both kinds in numbers


def test_the_flawed_verifiers_take_any_string_too():
    """They are wrong, and no string makes them fail."""
    rng = random.Random(6)
    for problem, text in answers(ChainTask(), rng, STRINGS // 10):
        assert all(isinstance(v.accepts(problem, text), bool) for v in VERIFIERS), (problem, text)


@pytest.mark.parametrize("name", TASKS)
def test_a_tokenizer_names_what_it_does_not_know_and_gives_back_what_it_knows(name):
    task, rng, known = get_task(name), random.Random(7), 0
    for _, text in answers(task, rng, STRINGS // 10):
        try:
            ids = task.tokenizer.encode(text)
        except ValueError as error:
            assert str(error).startswith("text: ")
            continue
        known += 1
        assert all(0 <= i < len(task.tokenizer) for i in ids)
        again = task.tokenizer.decode(ids)
        assert task.tokenizer.encode(again) == [i for i in ids if i > 1], text
    assert known > STRINGS // 100


# --- checkpoints --------------------------------------------------------------------------

@pytest.fixture
def saved(make_policy, tmp_path):
    policy = make_policy(dtype=torch.float32, d_model=8, n_layers=1, d_hidden=8)
    path = tmp_path / "policy.safetensors"
    save_policy(path, policy, "chain")
    return path, policy


def equal(one, other):
    """Whether two policies are the same function, not only the same weights."""
    a, b = one.state_dict(), other.state_dict()
    same = {f.name for f in fields(PolicyConfig)} - {"init_std"}  # which only made the weights
    return (a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
            and all(getattr(one.config, n) == getattr(other.config, n) for n in same))


def loaded_or_refused(path, policy, load=load_policy):
    """True: refused in one line; False: the same; anything else is a failure."""
    try:
        again = load(path)
    except CheckpointError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        return True
    assert equal(again, policy)
    return False


def test_a_flipped_bit_anywhere_is_refused_or_harmless(saved):
    """Also one among the weights, of which the checksum knows."""
    path, policy = saved
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    header = int.from_bytes(whole[:8], "little") + 8
    for number in range(300 * TIMES):
        damaged = bytearray(whole)
        first, last = ((0, 8), (8, header), (header, len(whole)))[number % 3]
        damaged[rng.randrange(first, last)] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(damaged))
        refused += loaded_or_refused(path, policy)
    assert refused > 285 * TIMES


def test_bytes_cut_doubled_moved_or_overwritten_are_refused_or_harmless(saved):
    path, policy = saved
    whole, rng, refused = path.read_bytes(), random.Random(1), 0
    for number in range(200 * TIMES):
        a, b = sorted(rng.randrange(len(whole) + 1) for _ in range(2))
        if number % 2:
            b = min(len(whole), a + rng.randrange(1, 40))
        part = whole[a:b]
        changed = (whole[:a] + whole[b:], whole[:b] + part + whole[b:],
                   whole[b:] + whole[:b], whole[:a] + rng.randbytes(b - a) + whole[b:],
                   whole[:a] + bytes(b - a) + whole[b:])[number % 5]
        path.write_bytes(changed)
        refused += loaded_or_refused(path, policy)
    assert refused > 170 * TIMES


JUNK = (None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**40, 1.5, -0.0, 1e308, math.inf,
        -math.inf, math.nan, "", "x", "1", "grpo", "cpu", "none", "\x00", "é", [], [1], [[]], {},
        {"a": 1}, "9" * 100)


def with_header(whole, change):
    """The file with another header, which is JSON."""
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8: 8 + size])
    new = json.dumps(change(header)).encode()
    return len(new).to_bytes(8, "little") + new + whole[8 + size:]


def test_a_header_with_any_value_anywhere_is_refused_or_harmless(saved):
    path, _ = saved
    whole, rng, refused = path.read_bytes(), random.Random(2), 0
    for _ in range(300 * TIMES):
        def change(header):
            name = rng.choice(list(header))
            if name == "__metadata__":
                about = json.loads(header[name]["grpo_lib"])
                inner = about if rng.random() < 0.3 else about["config"]
                inner[rng.choice([*inner, "new"])] = rng.choice(JUNK)
                if rng.random() < 0.5:  # as if an older version had written it
                    about.pop("checksum", None)
                header[name]["grpo_lib"] = json.dumps(about)
            elif rng.random() < 0.2:
                header[rng.choice(list(header))] = header.pop(name)
            else:
                header[name][rng.choice(["dtype", "shape", "data_offsets"])] = rng.choice(
                    (*JUNK, "F16", "I32", "U32", "BF16", "F64", [8, 8], [0, 256]))
            return header

        path.write_bytes(with_header(whole, change))
        try:
            load_policy(path)
        except CheckpointError as error:
            refused += 1
            assert "\n" not in str(error)
        else:  # a description without a checksum that says something else, and can
            _, about = load_tensors(path, "policy")
            PolicyConfig(**about["config"])
    assert refused > 200 * TIMES


def test_the_same_contents_are_the_same_bytes(saved, tmp_path):
    path, policy = saved
    for _ in range(20):
        save_policy(tmp_path / "again", policy, "chain")
        assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_without_a_checksum_a_checkpoint_of_an_older_version_is_read(saved):
    path, policy = saved
    whole = path.read_bytes()

    def older(header):
        about = json.loads(header["__metadata__"]["grpo_lib"])
        assert about.pop("checksum")
        return header | {"__metadata__": {"grpo_lib": json.dumps(about)}}

    path.write_bytes(with_header(whole, older))
    assert equal(load_policy(path), policy)


def test_the_checksum_is_of_names_shapes_dtypes_numbers_and_description(tmp_path):
    one = {"a": torch.arange(6.0), "b": torch.zeros(())}
    others = [one | {"a": torch.arange(6.0).view(2, 3)}, one | {"a": torch.arange(6.0).half()},
              {"c": one["a"], "b": one["b"]}, one | {"a": -one["a"]}, {"a": one["a"]}]
    sums = {checksum(tensors, {}) for tensors in (one, *others)} | {checksum(one, {"y": 1})}
    assert len(sums) == 7
    assert checksum(dict(reversed(one.items())), {}) == checksum(one, {})
    for dtype in (torch.bfloat16, torch.bool, torch.uint8, torch.int64):
        save_tensors(tmp_path / "t", {"a": torch.ones(3).to(dtype), "e": torch.zeros(0)},
                     {"kind": "k"})
        assert load_tensors(tmp_path / "t", "k")[0]["a"].dtype == dtype


def test_a_trainers_checkpoint_is_taken_whole_or_not_at_all(make_policy, sort_task, tmp_path):
    """Refused, it changes nothing; taken, it is the one that was written."""
    config = GRPOConfig(prompts_per_step=2, group_size=2, eval_every=0)
    policy = make_policy(len(sort_task.tokenizer), torch.float32, d_model=8, n_layers=1, d_hidden=8)
    trainer, path = GRPOTrainer(policy, sort_task, config), tmp_path / "trainer"
    trainer.step()
    trainer.save(path)
    whole, rng, refused = path.read_bytes(), random.Random(3), 0
    trainer.step()
    before = {k: t.clone() for k, t in trainer.policy.state_dict().items()}
    for _ in range(60 * TIMES):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 1, 3))):
            end = len(whole) if rng.random() < 0.5 else 4000
            damaged[rng.randrange(end)] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(damaged))
        try:
            trainer.load(path)
        except CheckpointError as error:
            refused += 1
            assert "\n" not in str(error)
            assert trainer.step_count == 2
            assert all(torch.equal(t, before[k]) for k, t in trainer.policy.state_dict().items())
        else:
            assert trainer.step_count == 1
            path.write_bytes(whole)
            trainer.load(path)
            trainer.step()
            before = {k: t.clone() for k, t in trainer.policy.state_dict().items()}
    assert refused > 57 * TIMES


# --- settings, run.json and metrics.jsonl --------------------------------------------------

def settings_or_named(cls, values):
    """The config with some values, or None: refused with a field's name, or names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return cls(**values)
        except ValueError as error:
            head = str(error).partition(":")[0].replace(",", " ").split()
            assert head and set(head) <= {f.name for f in fields(cls)}, error
            assert "\n" not in str(error)
            return None


@pytest.mark.parametrize(("cls", "base"), [(GRPOConfig, {}), (PolicyConfig, {"vocab_size": 9}),
                                           (PretrainConfig, {})])
def test_a_setting_of_any_value_is_refused_by_name_or_comes_back(cls, base):
    rng, taken, count = random.Random(4), 0, 0
    names = [f.name for f in fields(cls)]
    cases = [{name: value} for name in names for value in JUNK]
    cases += [{rng.choice(names): rng.choice(JUNK) for _ in range(3)} for _ in range(500 * TIMES)]
    cases += [{"algorithm": rng.choice(list(ALGORITHMS)), rng.choice(names): rng.choice(JUNK)}
              for _ in range(200 * TIMES if cls is GRPOConfig else 0)]
    for case in cases:
        config = settings_or_named(cls, base | case)
        count += 1
        if config is not None:
            taken += 1
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                again = cls(**json.loads(json.dumps(config.to_dict())))
            assert again.to_dict() == config.to_dict()
    assert 20 < taken < 0.9 * count


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of two steps."""
    task = SortTask()
    policy = TransformerPolicy(PolicyConfig(len(task.tokenizer), 8, 1, 2, 8),
                               torch.Generator().manual_seed(0))
    config = GRPOConfig(steps=2, prompts_per_step=2, group_size=2, eval_every=0)
    trainer = GRPOTrainer(policy, task, config)
    run = RunFolder.create(tmp_path_factory.mktemp("run") / "run", trainer, 20, 1)
    for metrics in trainer.run():
        run.record(metrics)
        run.save(trainer)
    run.write(before={"accuracy": 0.5, "length": 1.0}, after={"accuracy": 0.5, "length": 1.0})
    return run.path


def test_a_run_json_with_any_value_is_refused_by_name_or_taken(run_folder):
    path, rng, refused = run_folder / "run.json", random.Random(5), 0
    whole = path.read_text()
    try:
        about = json.loads(whole)
        cases = [(key, value) for key in about for value in JUNK]
        names = list(about["config"])
        cases += [("config", about["config"] | {rng.choice(names): rng.choice(JUNK)})
                  for _ in range(300 * TIMES)]
        for key, value in cases:
            path.write_text(json.dumps(about | {key: value}))
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    _ = RunFolder.open(run_folder).config
            except CheckpointError as error:
                refused += 1
                assert str(path) in str(error) and "\n" not in str(error)
                assert key in str(error)
        assert 200 < refused < len(cases)
    finally:
        path.write_text(whole)


def test_metrics_with_any_value_are_refused_by_line_or_come_back(run_folder):
    path, rng, refused = run_folder / "metrics.jsonl", random.Random(6), 0
    whole = path.read_text()
    first, second = map(json.loads, whole.splitlines())
    may_be_none = first.keys() - {"step", "tokens"}  # a number that is not finite is null there
    try:
        for name in first:
            for value in JUNK:
                lines = (first, second | {name: value})
                path.write_text("".join(json.dumps(line) + "\n" for line in lines))
                try:
                    history = RunFolder(run_folder, {}).metrics()
                except CheckpointError as error:
                    refused += 1
                    assert "line 2" in str(error) and "\n" not in str(error)
                else:
                    got = getattr(history[1], name)
                    assert (got is None and name in may_be_none) or (
                        isinstance(got, (int, float)) and not isinstance(got, bool))
                    assert json.loads(history[1].to_json()).keys() == first.keys()
        for _ in range(300 * TIMES):  # and broken lines
            at = rng.randrange(len(whole))
            sign = rng.choice(["", "}", "{", '"', "\n", "\x00", "9", ",", "é"])
            path.write_text(whole[:at] + sign + whole[at + rng.randrange(3):])
            try:
                assert len(RunFolder(run_folder, {}).metrics()) in (1, 2)
            except CheckpointError as error:
                refused += 1
                assert "line " in str(error)
        assert refused > 400
    finally:
        path.write_text(whole)
