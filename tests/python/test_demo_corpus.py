"""The demo's text, data order and bigram model."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from deepwell.demo import corpus as corpora
from deepwell.demo.bigram import Bigram
from deepwell.demo.corpus import Corpus, CorpusError, heldout_starts, load_corpus, training_starts, windows_at


def write_texts(folder, count, size=8192, seed=0):
    generator = random.Random(seed)
    for i in range(count):
        words = (generator.choice(("alpha", "beta", "gamma", "delta")) for _ in range(size // 5))
        (folder / f"file{i:03}.txt").write_text(f"{i} " + " ".join(words))


def make_corpus(train: bytes, heldout: bytes) -> Corpus:
    return Corpus("made here", np.frombuffer(train, np.uint8), np.frombuffer(heldout, np.uint8), 1, "")


def test_standard_library_is_collected_the_same_way_twice():
    first, second = load_corpus(None), load_corpus(None)
    assert np.array_equal(first.train, second.train)
    assert np.array_equal(first.heldout, second.heldout)
    assert first.files > corpora.MIN_FILES_TO_SPLIT
    share = len(first.heldout) / (len(first.train) + len(first.heldout))
    assert 0.03 < share < 0.3


def test_order_of_creation_does_not_matter(tmp_path):
    for name, order in (("a", range(30)), ("b", reversed(range(30)))):
        (tmp_path / name / "sub").mkdir(parents=True)
        for i in order:
            (tmp_path / name / ("sub" if i % 2 else ".") / f"{i}.txt").write_text(f"text {i} " * 600)
    a, b = load_corpus(tmp_path / "a"), load_corpus(tmp_path / "b")
    assert bytes(a.train) == bytes(b.train)
    assert bytes(a.heldout) == bytes(b.heldout)


def test_split_keeps_every_byte_and_equal_files_on_one_side():
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    generator = random.Random(seed)
    documents = [generator.randbytes(2000) for _ in range(400)]
    train, heldout, how = corpora.split_documents(documents)
    assert "hash" in how
    assert sorted(train + heldout) == sorted(documents)
    again_train, again_heldout, _ = corpora.split_documents(documents[::-1])
    assert set(train) == set(again_train)
    assert set(heldout) == set(again_heldout)


def test_few_files_are_cut_at_the_end():
    train, heldout, how = corpora.split_documents([b"a" * 100, b"b" * 7])
    assert train == [b"a" * 90, b"b" * 7]
    assert heldout == [b"a" * 10, b""]
    assert "each file" in how


def test_one_huge_file_does_not_take_a_whole_side():
    documents = [bytes([i]) * 100 for i in range(1, 60)] + [b"z" * 1_000_000]
    train, heldout, _ = corpora.split_documents(documents)
    assert sum(map(len, heldout)) < sum(map(len, train)) / 2
    assert sum(map(len, heldout)) >= 50_000


def test_folder_passes_over_what_is_not_text(tmp_path):
    write_texts(tmp_path, 25)
    expected = load_corpus(tmp_path)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe" * 1000)
    (tmp_path / "nul.txt").write_bytes(b"a\0b" * 1000)
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / ".hidden").write_text("hidden" * 1000)
    (tmp_path / "zcopy.txt").write_bytes((tmp_path / "file003.txt").read_bytes())
    (tmp_path / "link.txt").symlink_to(tmp_path / "file001.txt")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test.txt").write_text("test" * 1000)
    found = load_corpus(tmp_path)
    assert found.files == 25
    assert bytes(found.train) == bytes(expected.train)


def test_single_file(tmp_path):
    text = bytes(range(256)) * 400
    (tmp_path / "one").write_bytes(text)
    found = load_corpus(tmp_path / "one")
    assert bytes(found.train) + bytes(found.heldout) == text


@pytest.mark.parametrize("name", ["absent", "short"])
def test_unusable_text_names_the_remedy(tmp_path, name):
    (tmp_path / "short").write_text("too short")
    with pytest.raises(CorpusError, match=r"--text") as caught:
        load_corpus(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_standard_library_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(CorpusError, match=r"libpython3-stdlib.*--text FILE_OR_DIR"):
        load_corpus(None)


def test_training_starts_follow_the_seed_and_stay_inside():
    corpus = make_corpus(bytes(50), bytes(50))
    a = training_starts(corpus, context=16, batch=8, steps=200, seed=3)
    assert np.array_equal(a, training_starts(corpus, 16, 8, 200, seed=3))
    assert not np.array_equal(a, training_starts(corpus, 16, 8, 200, seed=4))
    # Every window that fits, and no other: the last one's target is the text's last byte.
    assert set(a.ravel()) == set(range(50 - 16))


@pytest.mark.parametrize("length", [0, 1, 16])
def test_too_short_a_side_is_an_error(length):
    corpus = make_corpus(bytes(length), bytes(length))
    with pytest.raises(CorpusError, match="expected over 16"):
        training_starts(corpus, 16, 1, 1, 0)
    with pytest.raises(CorpusError, match="expected over 16"):
        heldout_starts(corpus, 16, 1)


@pytest.mark.parametrize(("length", "windows"), [(17, 1), (17, 5), (33, 5), (1000, 7), (1000, 10**6)])
def test_heldout_windows_do_not_overlap(length, windows):
    starts = heldout_starts(make_corpus(b"", bytes(length)), 16, windows)
    assert len(starts) == min(windows, (length - 1) // 16)
    assert starts[0] == 0
    assert np.all(np.diff(starts) >= 16)
    assert starts[-1] + 16 < length


def test_windows_are_bytes_and_their_successors():
    stream = np.arange(100, dtype=np.uint8)
    tokens, targets = windows_at(stream, np.array([0, 90]), 9)
    assert tokens.tolist() == [list(range(9)), list(range(90, 99))]
    assert targets.tolist() == [list(range(1, 10)), list(range(91, 100))]
    assert tokens.dtype == np.int64


def test_bigram_is_add_k_smoothed_counting():
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    generator = random.Random(seed)
    text = bytes(generator.choice(b"abc\xff") for _ in range(300))
    queries = [(generator.randrange(256), generator.randrange(256)) for _ in range(50)] + [(97, 98), (255, 97)]
    k = 0.1
    model = Bigram(np.frombuffer(text, np.uint8), k)

    def brute_force(previous, following):
        pairs = sum(text[i] == previous and text[i + 1] == following for i in range(len(text) - 1))
        singles = sum(text[i] == previous for i in range(len(text) - 1))
        return -math.log((pairs + k) / (singles + 256 * k))

    for previous, following in queries:
        assert model.loss(np.array([previous]), np.array([following])) == pytest.approx(
            brute_force(previous, following), rel=1e-12
        )
    previous, following = (np.array(side) for side in zip(*queries, strict=True))
    expected = sum(brute_force(a, b) for a, b in queries) / len(queries)
    assert model.loss(previous, following) == pytest.approx(expected, rel=1e-12)
    assert np.exp(model.log_probability).sum(axis=1) == pytest.approx(np.ones(256), rel=1e-12)
