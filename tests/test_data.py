"""The toy world, the tokenizer and the sampler."""
from collections import Counter
from random import Random

import numpy as np
import pytest
import regex

import data
from data import (CATEGORIES, COPAIN_TASKS, ENGLISH, NOUNS, Mixture, Tokenizer, World, draw_list,
                  draw_training_list, is_reserved, make_language, train_bpe, write_corpus)

WEIGHTS = {"target": 0.83, "english": 0.17}


@pytest.mark.parametrize("text", [
    "", " ", "\n\n \t ", "a cat", "Ünïcödé", "👩‍👩‍👧‍👦 🏳️‍🌈", "مرحبا بالعالم", "שלום",
    "नमस्ते दुनिया", "𝔘\u0000\u200f\ufeff", "<|endoftext|>", "don't  stop\r\n", "1234567 12,5"])
def test_tokenizer_round_trips_any_unicode_text_and_shows_an_id_that_it_lacks(tok, text):
    assert tok.decode([*tok.encode(text), tok.eot]) == text + data.EOT
    assert tok.decode([*tok.encode(text), tok.vocab_size + 5]) == text + "\ufffd"  # of a padded vocabulary
    assert tok.eot not in tok.encode(text)  # not even where a text spells it


def test_every_word_integer_and_letter_of_the_world_is_one_token(world, tok):
    words = [w for lang in world.languages().values() for w in lang.words.values()]
    assert all(len(tok.encode(f" {w}")) == 1 for w in [*words, *range(world.max_integer + 1), *"abcxyz"])


def test_documents_of_any_number_are_encoded_in_order_also_by_a_tokenizer_that_was_saved(tok, documents):
    again = Tokenizer.from_json(tok.to_json())
    for texts in (documents["english"], documents["target"][:3], []):
        expected = [i for text in texts for i in [tok.eot, *tok.encode(text)]]
        assert again.encode_documents(texts).tolist() == expected


def test_bpe_is_what_counting_all_pairs_anew_before_each_merge_gives(documents):
    text = " ".join(documents["target"][:40] + ["aaaa abab", "ab ab ab bc", "ñandú"])
    words = [[bytes([b]) for b in word.encode()] for word in regex.findall(data.SPLIT, text)]
    ranks = [bytes([b]) for b in range(256)]
    while len(ranks) < 399:
        counts = Counter(pair for word in words for pair in zip(word, word[1:]))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        ranks.append(best[0] + best[1])
        for word in words:
            for i in range(len(word) - 1):
                if tuple(word[i:i + 2]) == best:
                    word[i:i + 2] = [ranks[-1]]
    assert list(train_bpe([text], 400)) == ranks  # below: it takes a moment, and ends early
    assert b"z" * 64 in train_bpe(["z" * 50_000], 300) and len(train_bpe(["ab ab"], 10_000)) < 300


@pytest.mark.parametrize("cognates", [0, 0.1, 0.25, 0.5, 1])
def test_a_language_has_the_asked_share_of_cognates_and_no_other_english_word(cognates):
    lang = make_language("x", 3, "VSO", cognates)
    for c in CATEGORIES:
        assert sum(lang.words[n] == n for n in NOUNS[c]) == round(cognates * 20)
    own = [w for n, w in lang.words.items() if w != n] + [lang.determiner, lang.case_marker]
    assert len(set(own)) == len(own) and not set(own) & set(ENGLISH.words)


@pytest.mark.parametrize("order", ["SOV", "SVO", "VSO"])
def test_prose_follows_the_word_order_of_its_language_and_an_impossible_one_is_refused(order):
    lang = make_language("x", 0, order, 0.0)
    verbs = {lang.words[v] for v in data.VERBS.values()}
    text, ends = "".join(data.prose(Random(i), World(), lang) for i in range(50)), data.SENTENCE_ENDS
    for sentence in regex.split("|".join(map(regex.escape, sorted(ends, key=len, reverse=True))), text)[:-1]:
        place = [word in verbs for word in sentence.split()]
        assert {"SOV": place[-1], "VSO": place[0], "SVO": any(place[1:-1])}[order] and sum(place) == 1
    for wrong in ("SVX", "SV"):
        with pytest.raises(ValueError, match="word order"):
            make_language("x", 0, wrong)


def test_nouns_follow_zipfs_law_and_adjectives_mostly_fit():
    text = regex.findall("[a-z]{2,}", "".join(data.prose(Random(i), World(), ENGLISH) for i in range(3000)))
    counts, animals = Counter(text), NOUNS["animal"]
    for rank in (1, 4, 15):
        assert counts[animals[rank]] / counts[animals[0]] == pytest.approx((rank + 1) ** -0.7, rel=.15)
    adjectives = {word for words in data.ADJECTIVES.values() for word in words}
    fits = [word in data.ADJECTIVES["animal"] for word, noun in zip(text, text[1:])
            if noun in animals and word in adjectives]
    assert np.mean(fits) == pytest.approx(.9 + .1 / 4, abs=.02)


@pytest.mark.parametrize("rule", [*COPAIN_TASKS, *data.OTHER_RULES, data.HELD_OUT_RULE])
@pytest.mark.parametrize("length", [3, 5])
def test_the_answer_of_a_rule_is_an_element_and_follows_the_rule(rule, length):
    rng = Random(0)
    for _ in range(200):
        xs, answer = draw_list(rng, rule, 19, length)
        assert answer in xs and len(set(xs)) == len(xs)
        xs, a = [int(x) if x.isdigit() else x for x in xs], int(answer) if answer.isdigit() else answer
        if rule.endswith("_group"):  # the odd one out is alone
            assert sum(x % 2 == a % 2 for x in xs) == 1 and a % 2 == (rule[0] == "o")
        else:
            middle = length // 2
            assert a == {"max_integer_in_list": max(xs), "min_integer_in_list": min(xs), "median_integer_in_list":
                         sorted(xs)[middle], "first_character_in_list": min(xs), "last_character_in_list": max(xs),
                         "first_element": xs[0], "middle_element": xs[middle], "last_element": xs[-1]}[rule]


def test_training_never_draws_a_list_of_the_reserve_in_any_order():
    rng = Random(0)
    lists = [draw_training_list(rng, rule, 19, 3)[0] for rule in COPAIN_TASKS for _ in range(500)]
    assert not any(is_reserved(xs) or is_reserved(xs[::-1]) for xs in lists)
    share = sum(is_reserved(draw_list(rng, "max_integer_in_list", 99)[0]) for _ in range(4000)) / 4000
    assert 0.1 < share < 0.15  # an eighth


@pytest.mark.parametrize("source", ["english-prose", "target", "third-language"])
def test_prose_has_integers_letters_and_signs_but_nothing_that_looks_like_a_benchmark_prompt(world, source):
    text = "\n".join(d for d in write_corpus(world, source, 3000, 0) if "\n" not in d)
    for looks in (r" \d+ [a-z]{2}", r" [a-z] [a-z]{2}", *map(regex.escape, data.SENTENCE_ENDS)):
        assert regex.search(looks, text), looks
    element = r" (\d+|[a-z])\b"
    assert not regex.search(f"{element}( ?[,;|])?{element}", text)               # no two elements of a list
    assert not regex.search(r" =>( \d+| [a-z])(;|\n|$)", text)                   # no answer


def test_a_corpus_follows_from_its_seed_and_has_the_kinds_that_its_source_asks_for(world, monkeypatch):
    a, b, c = (write_corpus(world, "english", 50, seed) for seed in (1, 1, 2))
    assert a == b != c
    monkeypatch.setitem(data.SOURCES, "x", ("english", {kind: 1 for kind in data.DOCUMENT_KINDS}))
    docs = write_corpus(world, "x", 2100, 0)
    looks_like = {"prose": r"\. ", "orders": " < ", "lists": r"^[^.]* (->|=|:|=>) [^.]*$"}  # or labels
    shares = {kind: np.mean([bool(regex.search(look, d)) for d in docs]) for kind, look in looks_like.items()}
    assert shares == pytest.approx({"prose": 1 / 7, "orders": 1 / 7, "lists": 3 / 7}, abs=.03)
    prose, patterns = (write_corpus(world, name, 300, 0) for name in ("english-prose", "english-patterns"))
    assert "\n" not in "".join(prose) and not any("." in d for d in patterns)


def test_a_batch_is_a_pure_function_of_seed_and_step_whatever_was_drawn_before(sources):
    a, b = Mixture(sources, 32, seed=1), Mixture(sources, 32, seed=1)
    for step in range(5):
        b.batch(step, 8, WEIGHTS)
    for one, other in zip(a.batch(7, 8, WEIGHTS), b.batch(7, 8, WEIGHTS)):
        assert np.array_equal(one, other)
    assert not np.array_equal(a.batch(7, 8, WEIGHTS)[0], a.batch(8, 8, WEIGHTS)[0])
    assert not np.array_equal(a.batch(7, 8, WEIGHTS)[0], Mixture(sources, 32, 2).batch(7, 8, WEIGHTS)[0])


def test_rows_are_windows_of_their_source_and_targets_are_shifted_by_one(sources):
    x, y, rows = Mixture(sources, 32, seed=0).batch(3, 10, WEIGHTS)
    assert x.shape == y.shape == (10, 32) and x.dtype == y.dtype == np.int64 and len(rows) == 10
    for i in range(10):
        windows = np.lib.stride_tricks.sliding_window_view(sources[rows[i]], 33)
        assert (windows == np.append(x[i], y[i, -1])).all(axis=1).any()
        assert np.array_equal(x[i, 1:], y[i, :-1])


@pytest.mark.parametrize("batch_size, share", [(1, 0.197), (7, 0.197), (32, 0.197), (16, 0), (16, 1)])
def test_realised_proportions_over_1000_batches_are_the_weights_up_to_rounding(sources, batch_size, share):
    weights, mix = {"target": 1 - share, "english": share}, Mixture(sources, 32, seed=5)
    counts = [mix.counts(step, batch_size, weights) for step in range(1000)]
    for c in counts:
        assert sum(c.values()) == batch_size
        assert all(abs(c[name] - weights[name] * batch_size) < 1 for name in weights)
    assert abs(sum(c["english"] for c in counts) - share * 1000 * batch_size) <= 3


def test_two_mixtures_see_the_same_windows_of_the_source_they_share(sources):
    mix = Mixture(sources, 32, seed=0)
    alone, mixed = mix.batch(4, 10, {"target": 1.0}), mix.batch(4, 10, {"target": 0.5, "english": 0.5})
    assert np.array_equal(alone[0][:5], mixed[0][mixed[2] == "target"])


@pytest.mark.parametrize("n", [0, 32])
def test_a_source_that_is_empty_or_shorter_than_a_block_is_named(n):
    with pytest.raises(ValueError, match=f"short has {n} tokens.*33"):
        Mixture({"short": np.zeros(n, dtype=np.uint16)}, 32, 0)
