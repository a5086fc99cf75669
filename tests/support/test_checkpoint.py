"""Files that are whole or an error, and what comes back from them."""

import errno
import json
import os
import random

import pytest
import torch
from safetensors.torch import save

from grpo_lib.config import GRPOConfig
from grpo_lib.support import checkpoint
from grpo_lib.support.checkpoint import (
    CheckpointError,
    check_weights,
    load_policy,
    load_tensors,
    read_json,
    save_policy,
    save_tensors,
    write_atomically,
    write_json,
)
from grpo_lib.training import GRPOTrainer


@pytest.fixture
def small(make_policy):
    return make_policy(dtype=torch.float32, d_model=8, n_layers=1, d_hidden=8)


@pytest.fixture
def saved(small, tmp_path):
    path = tmp_path / "policy.safetensors"
    save_policy(path, small, "chain")
    return path


def refusal(path, load=load_policy):
    """The one line with which a file is refused."""
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


# --- what comes back ----------------------------------------------------------------------

def test_a_policy_comes_back_bit_for_bit(small, saved):
    again = load_policy(saved, "chain")
    assert again.config == small.config
    assert again.state_dict().keys() == small.state_dict().keys()
    for name, tensor in small.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    tokens = torch.tensor([[3, 4, 5]])
    assert torch.equal(again(tokens), small(tokens))


def test_tensors_and_description_come_back_whatever_their_layout(tmp_path):
    matrix = torch.arange(6.0).view(2, 3)
    tensors = {"turned": matrix.T, "same": matrix, "row": matrix[0], "int": torch.tensor(7),
               "needs_grad": torch.ones(2, requires_grad=True), "double": matrix.double()}
    save_tensors(tmp_path / "t", tensors, {"kind": "a", "step": 3, "name": "é\n"})
    loaded, about = load_tensors(tmp_path / "t", "a")
    assert about == {"kind": "a", "step": 3, "name": "é\n"}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype


def test_a_json_object_comes_back(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1, None, "é"]})
    assert read_json(tmp_path / "a.json") == {"x": [1, None, "é"]}
    assert (tmp_path / "a.json").read_text().endswith("}\n")


# --- files that are not what they should be -----------------------------------------------

def test_a_file_cut_off_anywhere_is_refused(saved):
    whole = saved.read_bytes()
    rng = random.Random(0)
    header = int.from_bytes(whole[:8], "little") + 8
    cuts = {0, 1, 7, 8, 9, header - 1, header, header + 1, len(whole) - 1,
            *(rng.randrange(len(whole)) for _ in range(150))}
    for cut in cuts:
        saved.write_bytes(whole[:cut])
        assert "not a readable checkpoint" in refusal(saved)
    saved.write_bytes(whole + b"x")
    refusal(saved)
    saved.write_bytes(whole)
    assert load_policy(saved)


def test_random_bytes_are_refused(tmp_path):
    rng = random.Random(1)
    path = tmp_path / "noise"
    for _ in range(300):
        size = rng.choice((1, 8, 20, 200, 2000))
        noise = rng.randbytes(size)
        if rng.random() < 0.5:  # a plausible length of the header
            noise = (size // 2).to_bytes(8, "little") + noise
        path.write_bytes(noise)
        refusal(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"{}", b"PK\x03\x04" + b"\0" * 60,
                                     b"\x80\x04\x95" + b"\0" * 60])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "other"
    path.write_bytes(content)
    assert "not a readable checkpoint" in refusal(path)


def test_a_folder_or_nothing_is_refused(tmp_path):
    assert "no such file" in refusal(tmp_path)
    assert "no such file" in refusal(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("metadata", [
    None, {}, {"other": "x"}, {"grpo_lib": "{}"}, {"grpo_lib": "[]"}, {"grpo_lib": "3"},
    {"grpo_lib": "not json"}, {"grpo_lib": '{"kind": "trainer"}'}, {"grpo_lib": '{"kind": 1}'},
    {"grpo_lib": '{"kind": "policy"}'}, {"grpo_lib": '{"kind": "policy", "config": 3}'},
    {"grpo_lib": '{"kind": "policy", "config": {}}'},
    {"grpo_lib": '{"kind": "policy", "config": {"vocab_size": 0}}'},
    {"grpo_lib": '{"kind": "policy", "config": {"vocab_size": 5, "colour": 1}}'},
])
def test_a_safetensors_file_with_another_description_is_refused(tmp_path, metadata):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"a": torch.zeros(2)}, metadata=metadata))
    refusal(path)


def test_a_trainers_file_is_no_policy_and_the_other_way_round(make_policy, sort_task, saved,
                                                              tmp_path):
    config = GRPOConfig(prompts_per_step=2, group_size=2, eval_every=0)
    trainer = GRPOTrainer(make_policy(len(sort_task.tokenizer)), sort_task, config)
    trainer.save(tmp_path / "trainer")
    assert "holds 'trainer', allowed is 'policy'" in refusal(tmp_path / "trainer")
    assert "holds 'policy', allowed is 'trainer'" in refusal(saved, trainer.load)


def test_a_policy_of_another_task_is_refused(saved):
    message = refusal(saved, lambda path: load_policy(path, "sort"))
    assert "'chain', allowed is 'sort'" in message


@pytest.mark.parametrize("change", [
    {"d_model": 12}, {"n_layers": 2}, {"vocab_size": 13}, {"d_hidden": 9},
])
def test_weights_of_another_shape_are_refused_by_name(saved, change):
    tensors, about = load_tensors(saved, "policy")
    about["config"] |= change
    save_tensors(saved, tensors, about)
    message = refusal(saved)
    assert "model." in message or "lm_head" in message
    assert "allowed is" in message


@pytest.mark.parametrize("edit", ["drop", "add"])
def test_a_missing_or_extra_weight_is_refused_by_name(saved, edit):
    tensors, about = load_tensors(saved, "policy")
    if edit == "drop":
        del tensors["model.norm.weight"]
    else:
        tensors["model.norm.bias"] = torch.zeros(8)
    save_tensors(saved, tensors, about)
    assert "model.norm." in refusal(saved)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"3", b"null", b"\xff\xfe{}", b'{"a": }'])
def test_what_is_no_json_object_is_refused(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    refusal(path, read_json)


def test_a_missing_json_file_is_refused(tmp_path):
    refusal(tmp_path / "missing.json", read_json)
    refusal(tmp_path, read_json)


# --- a full disk, a killed process --------------------------------------------------------

def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def killed(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(("failure", "error"), [(full_disk, OSError), (killed, KeyboardInterrupt)])
def test_a_failed_write_leaves_the_old_file_whole_and_nothing_beside_it(
        tmp_path, monkeypatch, call, failure, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(checkpoint.os, call, failure)
    with pytest.raises(error):
        write_atomically(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_write_is_on_the_disk_before_it_takes_the_old_files_place(tmp_path, monkeypatch):
    path, order, sizes = tmp_path / "file", [], []
    path.write_bytes(b"old")
    fsync, replace = os.fsync, os.replace

    def recorded(name, act):
        def call(*arguments):
            order.append((name, path.read_bytes()))
            sizes.extend(os.fstat(a).st_size for a in arguments if isinstance(a, int))
            return act(*arguments)
        return call

    monkeypatch.setattr(checkpoint.os, "fsync", recorded("fsync", fsync))
    monkeypatch.setattr(checkpoint.os, "replace", recorded("replace", replace))
    write_atomically(path, b"new")
    assert order == [("fsync", b"old"), ("replace", b"old")]
    assert sizes == [3]
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_saving_over_an_old_checkpoint_fails_whole(small, saved, monkeypatch):
    before = saved.read_bytes()
    with torch.no_grad():
        small.lm_head.weight.add_(1)
    monkeypatch.setattr(checkpoint.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_policy(saved, small, "chain")
    assert saved.read_bytes() == before


def test_nothing_is_pickled(saved):
    whole = saved.read_bytes()
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    assert json.loads(header["__metadata__"]["grpo_lib"])["kind"] == "policy"


def test_whole_numbers_are_no_weights(policy, tmp_path):
    tensors = {name: t.to(torch.int64) for name, t in policy.state_dict().items()}
    first = min(tensors)
    with pytest.raises(CheckpointError, match=rf"x: {first} is torch\.int64, allowed is torch\.f"):
        check_weights(policy, tensors, "x")
