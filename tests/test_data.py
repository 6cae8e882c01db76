import threading
from random import Random

import numpy as np
import pytest

import data
from data import (CATEGORIES, COPAIN_TASKS, ENGLISH, HELD_OUT_FORMAT, NOUNS, Mixture, Tokenizer, World, draw_list,
                   draw_training_list, is_reserved, list_line, make_language, train_bpe, write_corpus)


# ------------------------------------------------------------------------------------------------------- tokenizer
@pytest.mark.parametrize("text", [
    "", " ", "\n\n \t ", "a cat", "Ünïcödé", "👩‍👩‍👧‍👦 🏳️‍🌈", "مرحبا بالعالم", "שלום",
    "नमस्ते दुनिया", "𝔘\u0000\u200f\ufeff", "<|endoftext|>",
    "don't  stop\r\n", "1234567 12,5"])
def test_tokenizer_round_trips_any_unicode_text(tok, text):
    assert tok.decode(tok.encode(text)) == text
    assert tok.eot not in tok.encode(text)  # not even where a text spells it


def test_tokenizer_is_the_same_after_saving_and_loading(tok, documents):
    again = Tokenizer.from_json(tok.to_json())
    assert again.vocab_size == tok.vocab_size and again.encode(documents["target"][0]) == tok.encode(
        documents["target"][0])


def test_every_word_integer_and_letter_of_the_world_is_one_token(world, tok):
    words = [w for lang in world.languages().values() for w in lang.words.values()]
    assert all(len(tok.encode(f" {w}")) == 1 for w in [*words, *range(world.max_integer + 1), *"abcxyz"])


def test_an_id_that_the_tokenizer_lacks_is_shown_and_does_not_fail(tok):
    assert tok.decode([*tok.encode("a cat"), tok.vocab_size + 5]) == "a cat\ufffd"  # a model's padded vocabulary
    assert tok.decode([tok.eot]) == data.EOT


def test_bpe_takes_a_word_of_a_hundred_thousand_letters_in_a_moment():
    assert b"z" * 64 in train_bpe(["z" * 100_000], 300)


def test_bpe_merges_the_most_frequent_pair_first():
    ranks = list(train_bpe(["ab ab ab bc"], 260))
    assert ranks[256] == b"ab"  # "ab" 3 times, " a" twice, " ab" twice
    assert len(train_bpe(["ab ab"], 10_000)) < 300  # and stops when every word is one token


# -------------------------------------------------------------------------------------------------------- the world
def test_same_seed_same_corpus_and_another_seed_another(world):
    a, b, c = (write_corpus(world, "english", 50, seed) for seed in (1, 1, 2))
    assert a == b != c


@pytest.mark.parametrize("cognates", [0, 0.1, 0.25, 0.5, 1])
def test_a_language_has_the_asked_share_of_cognates_in_every_category_and_no_other_english_word(cognates):
    lang = make_language("x", 3, "VSO", cognates)
    for c in CATEGORIES:
        assert sum(lang.words[n] == n for n in NOUNS[c]) == round(cognates * 20)
    own = [w for n, w in lang.words.items() if w != n] + [lang.determiner, lang.case_marker]
    assert len(set(own)) == len(own) and not set(own) & set(ENGLISH.words)


@pytest.mark.parametrize("order", ["SOV", "SVO", "VSO"])
def test_prose_follows_the_word_order_of_its_language(order):
    lang = make_language("x", 0, order, 0.0)
    verbs = {lang.words[v] for v in "bites drops eats roams hurts fits cuts mends".split()}
    sentences = [s.split() for i in range(50) for s in data.prose(Random(i), World(), lang).split(".") if s]
    for words in sentences:
        for i, w in enumerate(words):
            if w in verbs:
                place = {"SOV": i == len(words) - 1, "VSO": i == 0, "SVO": 0 < i < len(words) - 1}[order]
                assert place, " ".join(words)


@pytest.mark.parametrize("order, cognates", [("SVX", 0.2), ("SV", 0.2), ("SOV", 1.5), ("SOV", -0.1)])
def test_an_impossible_language_is_refused(order, cognates):
    with pytest.raises(ValueError, match="word order|cognates"):
        make_language("x", 0, order, cognates)


@pytest.mark.parametrize("rule", [*COPAIN_TASKS, *data.OTHER_RULES, data.HELD_OUT_RULE])
@pytest.mark.parametrize("length", [3, 5])
def test_the_answer_of_a_rule_is_an_element_and_follows_the_rule(rule, length):
    rng = Random(0)
    for _ in range(200):
        xs, answer = draw_list(rng, rule, 19, length)
        assert answer in xs
        assert len(set(xs)) == len(xs)
        numbers = [int(x) for x in xs] if xs[0].isdigit() else xs
        a = int(answer) if answer.isdigit() else answer
        expected = {
            "max_integer_in_list": lambda: max(numbers), "min_integer_in_list": lambda: min(numbers),
            "median_integer_in_list": lambda: sorted(numbers)[length // 2],
            "even_integer_in_odd_group": lambda: next(x for x in numbers if x % 2 == 0),
            "odd_integer_in_even_group": lambda: next(x for x in numbers if x % 2),
            "first_character_in_list": lambda: min(numbers), "last_character_in_list": lambda: max(numbers),
            "first_element": lambda: numbers[0], "middle_element": lambda: numbers[length // 2], "last_element": lambda: numbers[-1]}[rule]()
        assert a == expected
        if rule.endswith("_group"):  # the odd one out is alone
            assert sum(x % 2 == a % 2 for x in numbers) == 1


def test_training_never_draws_a_list_of_the_reserve_in_any_order():
    rng = Random(0)
    lists = [draw_training_list(rng, rule, 19, 3)[0] for rule in COPAIN_TASKS for _ in range(500)]
    assert not any(is_reserved(xs) or is_reserved(xs[::-1]) for xs in lists)
    share = sum(is_reserved(draw_list(rng, "max_integer_in_list", 99)[0]) for _ in range(4000)) / 4000
    assert 0.1 < share < 0.15  # an eighth


def test_the_format_of_the_benchmark_occurs_in_no_training_document(documents):
    separator, arrow = HELD_OUT_FORMAT
    assert list_line(["4", "9", "2"], "9", HELD_OUT_FORMAT) == " 4; 9; 2 => 9"
    assert not any(separator in d and arrow in d for docs in documents.values() for d in docs)


def test_a_corpus_has_the_shares_that_its_source_asks_for(monkeypatch):
    monkeypatch.setitem(data.SOURCES, "x", ("english", dict(lists=1, same_category=1)))
    docs = write_corpus(World(), "x", 2000, 0)
    lists = sum(any(a in d for a in (" ->", " =", " :")) for d in docs)
    assert abs(lists / 2000 - 0.5) < 0.04


def test_english_prose_and_english_patterns_are_english_taken_apart(world):
    prose, patterns = (write_corpus(world, name, 300, 0) for name in ("english-prose", "english-patterns"))
    assert all(d.endswith(".") for d in prose) and not any("." in d for d in patterns)
    assert not set(" ".join(write_corpus(world, "third-language", 50, 0)).replace(".", "").split()) & set(ENGLISH.words)


# ---------------------------------------------------------------------------------------------------------- sampler
WEIGHTS = {"target": 0.83, "english": 0.17}


def test_a_batch_is_a_pure_function_of_seed_and_step_whatever_was_drawn_before(sources):
    a, b = Mixture(sources, 32, seed=1), Mixture(sources, 32, seed=1)
    for step in range(5):
        b.batch(step, 8, WEIGHTS)
    for one, other in zip(a.batch(7, 8, WEIGHTS), b.batch(7, 8, WEIGHTS)):
        assert np.array_equal(one, other)
    assert not np.array_equal(a.batch(7, 8, WEIGHTS)[0], a.batch(8, 8, WEIGHTS)[0])
    assert not np.array_equal(a.batch(7, 8, WEIGHTS)[0], Mixture(sources, 32, seed=2).batch(7, 8, WEIGHTS)[0])


def test_rows_are_windows_of_the_source_they_are_labelled_with_and_targets_are_shifted_by_one(sources):
    x, y, rows = Mixture(sources, 32, seed=0).batch(3, 10, WEIGHTS)
    assert x.shape == y.shape == (10, 32) and x.dtype == y.dtype == np.int64 and len(rows) == 10
    for i in range(10):
        windows = np.lib.stride_tricks.sliding_window_view(sources[rows[i]], 33)
        assert (windows == np.append(x[i], y[i, -1])).all(axis=1).any()
        assert np.array_equal(x[i, 1:], y[i, :-1])


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_realised_proportions_over_1000_batches_are_the_weights_up_to_rounding(sources, batch_size):
    weights = {"target": 0.803, "english": 0.197}
    mix = Mixture(sources, 32, seed=5)
    counts = [mix.counts(step, batch_size, weights) for step in range(1000)]
    for c in counts:
        assert sum(c.values()) == batch_size
        assert all(abs(c[name] - weights[name] * batch_size) < 1 for name in weights)
    total = sum(c["english"] for c in counts)
    assert abs(total - 0.197 * 1000 * batch_size) <= 3


def test_a_source_of_weight_zero_or_one_gets_no_row_or_all(sources):
    mix = Mixture(sources, 32, seed=0)
    assert all(mix.counts(s, 16, {"target": 1.0, "english": 0.0}) == {"target": 16, "english": 0} for s in range(200))


def test_two_mixtures_see_the_same_windows_of_the_source_they_share(sources):
    mix = Mixture(sources, 32, seed=0)
    alone, mixed = mix.batch(4, 10, {"target": 1.0}), mix.batch(4, 10, {"target": 0.5, "english": 0.5})
    assert np.array_equal(alone[0][:5], mixed[0][mixed[2] == "target"])


def test_a_source_that_is_missing_empty_or_shorter_than_a_block_is_named(sources):
    with pytest.raises(ValueError, match="'french'.*english"):
        Mixture(sources, 32, 0).batch(0, 4, {"target": 0.5, "french": 0.5})
    for n in (0, 32):
        with pytest.raises(ValueError, match=f"'short' has {n} tokens.*33"):
            Mixture({"short": np.zeros(n, dtype=np.uint16)}, 32, 0)


# ---------------------------------------------------------------------------------------------------- small helpers
def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    names = []

    def fail(temporary):
        names.append(temporary.name)
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        data.write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    assert str(data.os.getpid()) in names[0]  # so two processes never share one
    data.write_atomically(path, lambda p: p.write_text("new"))
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_lock_has_one_holder_and_can_be_waited_for(tmp_path):
    path, order = tmp_path / ".lock", []

    def wait():
        with data.lock(path, wait=True) as free:
            order.append(("second", free))

    with data.lock(path) as free, data.lock(path) as again:
        assert free and not again
        second = threading.Thread(target=wait)
        second.start()
        second.join(0.1)
        order.append("first ends")
    second.join()
    assert order == ["first ends", ("second", True)]
    with data.lock(path) as free:
        assert free


def test_a_rule_that_nobody_defined_is_refused_and_not_taken_for_another(world):
    with pytest.raises(ValueError, match="unknown list rule 'last_integer_in_list'"):
        draw_list(Random(0), "last_integer_in_list", world.max_integer)
