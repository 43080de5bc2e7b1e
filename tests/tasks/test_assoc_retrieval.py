"""The retrieval task: what its sequences hold, its random streams, and files of examples."""

import re

import pytest
import torch

from fwrnn.tasks.assoc_retrieval import (
    AssocRetrieval,
    Malformed,
    decode,
    encode,
    read_file,
    split_question,
)


@pytest.mark.parametrize("pairs", [1, 4, 26])
def test_every_sequence_asks_for_one_of_its_keys(pairs):
    inputs, targets = AssocRetrieval(pairs, train_size=2000).split("train")
    assert inputs.shape == (2000, 2 * pairs + 3)
    for sequence, target in zip(inputs[:500], targets[:500].tolist(), strict=True):
        text = decode(sequence)
        keys, values = text[: 2 * pairs : 2], text[1 : 2 * pairs : 2]
        assert len(set(keys)) == pairs
        assert keys.isalpha()
        assert values.isdigit()
        assert text[2 * pairs : -1] == "??"
        assert values[keys.index(text[-1])] == str(target)


def test_keys_values_and_questions_are_uniform():
    inputs, targets = AssocRetrieval(train_size=100_000).split("train")
    assert (torch.bincount(targets, minlength=10) / 1e5 - 0.1).abs().max() < 0.005
    assert (torch.bincount(inputs[:, 0]) / 1e5 - 1 / 26).abs().max() < 0.003
    asked = (inputs[:, :8:2] == inputs[:, -1:]).double().mean(0)
    assert (asked - 0.25).abs().max() < 0.01


def test_default_sizes_are_those_of_the_paper():
    task = AssocRetrieval()
    sizes = [len(task.split(name).targets) for name in ("train", "val", "test")]
    assert sizes == [100_000, 10_000, 20_000]


def test_streams_differ_by_split_and_seed_and_repeat():
    def first(name, seed=0, epoch=0, **settings):
        return AssocRetrieval(seed=seed, train_size=10_000, **settings).split(name, epoch)

    splits = [first(name, seed) for name in ("train", "val", "test") for seed in (0, 1)]
    for k, one in enumerate(splits):
        for other in splits[k + 1 :]:
            assert not torch.equal(one.inputs[:100], other.inputs[:100])
    for one, other in zip(first("val"), first("val"), strict=True):
        assert torch.equal(one, other)


def test_training_examples_are_fresh_every_epoch_only_when_asked():
    fixed, fresh = AssocRetrieval(), AssocRetrieval(resample=True)
    assert torch.equal(fixed.split("train", 0).inputs, fixed.split("train", 1).inputs)
    assert not torch.equal(fresh.split("train", 0).inputs, fresh.split("train", 1).inputs)
    assert torch.equal(fresh.split("train", 1).inputs, fresh.split("train", 1).inputs)
    assert torch.equal(fresh.split("test", 1).inputs, fixed.split("test", 0).inputs)


def test_strings_go_in_and_out():
    assert decode(encode("c9k8j3f1??c")) == "c9k8j3f1??c"
    with pytest.raises(ValueError, match="got 'É'"):
        encode("É9")


@pytest.mark.parametrize("pairs", [0, 27, -3])
def test_pairs_out_of_range_say_so(pairs):
    with pytest.raises(ValueError, match=rf"pairs must lie in 1 … 26.* got {pairs}"):
        AssocRetrieval(pairs)


def test_empty_split_says_so():
    with pytest.raises(ValueError, match="val_size must be 1 or more, got 0"):
        AssocRetrieval(val_size=0)


def test_file_of_examples_is_read_line_by_line(tmp_path):
    file = tmp_path / "mine.tsv"
    file.write_bytes(b"\xef\xbb\xbfc9k8j3f1??c\t9\r\na1??a\r\n\r\nj0a5s5z2??a\t5\r\n")
    lines = read_file(file)
    assert [line.text for line in lines] == ["c9k8j3f1??c", "a1??a", "j0a5s5z2??a"]
    assert [decode(line.inputs) for line in lines] == [line.text for line in lines]
    assert [line.target for line in lines] == [9, None, 5]


@pytest.mark.parametrize(("text", "at", "expected"), [
    ("", 0, "a key"), ("9", 0, "a key"), ("??c", 0, "a key"), ("C9??c", 0, "a key"),
    ("c", 1, "the value of c"), ("ck", 1, "the value of c"), ("c٣??c", 1, "the value of c"),
    ("c9", 2, "or '??'"), ("c9c8??c", 2, "a key that is new"), ("c9?", 3, "a second '?'"),
    ("c9?c", 3, "a second '?'"), ("c9k8??", 6, "one of ck"), ("c9k8??j", 6, "one of ck"),
    ("c9k8??cc", 7, "nothing more"), ("c9 k8??c", 2, "a key"),
])  # fmt: skip
def test_malformed_question_says_where(text, at, expected):
    with pytest.raises(Malformed, match=re.escape(expected)) as caught:
        AssocRetrieval().encode(text)
    assert caught.value.at == at


def test_question_is_split_into_pairs_and_the_key_asked_for():
    assert split_question("c9k8j3f1??j") == (["c9", "k8", "j3", "f1"], "j")


@pytest.mark.parametrize("line", [
    "c9k8j3f1??c 9", "c9k8j3f1??c\tx", "c9k8j3f1??c\t12", "c9k8j3f1?c\t9", "c9k8j3f1??z\t9",
    "9ck8j3f1??c\t9", "C9k8??k\t8", "\t9", "c9k8j3f1??c\t9\t9", "\x00\x01",
])  # fmt: skip
def test_malformed_line_is_named_by_its_number(tmp_path, line):
    file = tmp_path / "mine.tsv"
    file.write_text(f"a1b2??b\t2\n{line}\n")
    with pytest.raises(ValueError, match="line 2: "):
        read_file(file)


def test_empty_file_says_so(tmp_path):
    file = tmp_path / "mine.tsv"
    file.write_text("\n")
    with pytest.raises(ValueError, match="holds no example"):
        read_file(file)
