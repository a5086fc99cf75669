"""Text to token ids and back, and padding."""

import pytest
import torch

from grpo_lib.tasks import TASKS, ChainTask, SortTask
from grpo_lib.tokenizer import EOS, PAD, Tokenizer, pad

WORDS = ["1", "2", "12", "s1=", "=", "=>", ":"]


@pytest.fixture
def tokenizer():
    return Tokenizer(WORDS)


def test_special_tokens_come_first_and_words_keep_their_order(tokenizer):
    assert tokenizer.words == ("<pad>", "<eos>", *WORDS)
    assert (tokenizer.pad_id, tokenizer.eos_id) == (PAD, EOS) == (0, 1)
    assert len(tokenizer) == len(WORDS) + 2


@pytest.mark.parametrize(("text", "ids"), [
    ("1", [2]), ("1 2", [2, 3]), ("s1=1", [5, 2]), ("s1= 1", [5, 2]), ("  1  ", [2]),
    ("=>", [7]), ("= =>", [6, 7]), ("1\n2\t:", [2, 3, 8]), ("", []), ("<eos>", [1]),
])
def test_white_space_is_free(tokenizer, text, ids):
    assert tokenizer.encode(text) == ids


@pytest.mark.parametrize(("text", "ids"), [("12", [4]), ("121", [4, 2]), ("1 2", [2, 3]),
                                           ("=>=", [7, 6])])
def test_the_longest_word_wins(tokenizer, text, ids):
    assert tokenizer.encode(text) == ids


@pytest.mark.parametrize(("text", "named"), [("1 x 2", "'x 2'"), ("hello", "'hello'"),
                                             ("1 s2=1", "'s2=1'"), (" ", "' '")])
def test_an_unknown_word_is_named(tokenizer, text, named):
    with pytest.raises(ValueError, match="text: ") as caught:
        tokenizer.encode(text)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_decoding_leaves_specials_out_and_glues_after_an_equals_sign(tokenizer):
    assert tokenizer.decode([0, 0, 5, 2, 7, 3, 1, 0]) == "s1=1 => 2"
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode([5]) == "s1="


@pytest.mark.parametrize("name", TASKS)
def test_every_text_of_a_task_survives_the_round_trip(name):
    task = TASKS[name]()
    for word in task.tokenizer.words[2:]:
        assert task.tokenizer.decode(task.tokenizer.encode(word)) == word
    for problem in task.held_out(50):
        assert task.tokenizer.decode(task.tokenizer.encode(problem.prompt)) == problem.prompt


def test_decode_rows_counts_only_what_the_mask_counts(tokenizer):
    tokens = torch.tensor([[2, 3, 1, 8], [8, 8, 3, 2]])
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    assert tokenizer.decode_rows(tokens, mask) == ["1 2", ": 2 1"]
    assert tokenizer.decode_rows(tokens, mask.double()) == ["1 2", ": 2 1"]


def test_padding_that_a_policy_samples_stays_visible_and_is_no_right_answer(tokenizer):
    tokens = torch.tensor([[2, 0, 3, 1, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    assert tokenizer.decode_rows(tokens, mask) == ["1 <pad> 2"]
    for task in (ChainTask(), SortTask()):
        problem = task.held_out(1)[0]
        right = task.tokenizer.encode({"chain": "=> "}.get(task.name, "") + problem.answer)
        for at in range(len(right) + 1):
            sampled = [*right[:at], 0, *right[at:]]
            [text] = task.tokenizer.decode_rows(torch.tensor([sampled]),
                                                torch.ones(1, len(sampled)))
            before_the_arrow = task.name == "chain" and at == 0
            assert task.correct(problem, text) == before_the_arrow


@pytest.mark.parametrize("words", [["a", "a"], ["a", ""], ["<eos>"], ["<pad>", "b"]])
def test_words_must_be_non_empty_and_distinct(words):
    with pytest.raises(ValueError, match="words"):
        Tokenizer(words)


def test_words_with_special_characters_are_taken_literally():
    assert Tokenizer(["+", "*1", "a.b"]).encode("+*1a.b") == [2, 3, 4]
    with pytest.raises(ValueError):
        Tokenizer(["a.b"]).encode("axb")


@pytest.mark.parametrize(("side", "tokens", "mask"), [
    ("left", [[0, 0, 5], [6, 7, 8]], [[0, 0, 1], [1, 1, 1]]),
    ("right", [[5, 0, 0], [6, 7, 8]], [[1, 0, 0], [1, 1, 1]]),
])
def test_pad_puts_padding_on_the_named_side(side, tokens, mask):
    padded, counted = pad([[5], [6, 7, 8]], side)
    assert padded.tolist() == tokens
    assert counted.tolist() == mask
    assert padded.dtype == counted.dtype == torch.long


@pytest.mark.parametrize(("sequences", "side", "named"), [
    ([[1]], "top", "side"), ([], "left", "sequences"), ([[1], []], "left", "sequences"),
])
def test_pad_names_what_it_cannot_use(sequences, side, named):
    with pytest.raises(ValueError, match=named):
        pad(sequences, side)


@pytest.mark.parametrize("text", [5, None, ["=>"]])
def test_what_is_no_text_is_named(text):
    with pytest.raises(TypeError, match=r"text: got a .*, must be a str"):
        ChainTask().tokenizer.encode(text)
