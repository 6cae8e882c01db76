"""Items and scores: against hand computations and scripted models."""
import itertools
import math
import re
from random import Random

import numpy as np
import pytest
import torch

import bench
import data
from bench import (Benchmark, choice_logprobs, choice_metrics, cloze_items, copain_items, copain_metrics,
                   evaluate, greedy_answers, label_items, recall_items)
from data import (CATEGORIES, COPAIN_TASKS, HELD_OUT_FORMAT, NOUNS, SOURCES, VERBS, is_reserved,
                  make_language, write_corpus)
from model import GPT, GPTConfig
from results.report import copain_chance


class Scripted(torch.nn.Module):
    """A stand-in for a model. After a prompt it says what `answer(text)` returns, token by token."""

    def __init__(self, tok, answer):
        super().__init__()
        self.config, self.weight = GPTConfig(tok.vocab_size), torch.nn.Parameter(torch.zeros(1))
        self.tok, self.answer = tok, answer

    def forward(self, idx, last_only=True):
        logits = torch.zeros(*idx.shape, self.tok.vocab_size)                        # (B, T, V)
        for b, row in enumerate(idx.tolist()):
            for t in range(len(row)):
                text = self.tok.decode([i for i in row[:t + 1] if i != self.tok.eot])
                prompt = text[:max(text.rfind("=>"), 0) + 2]
                said = self.tok.encode(f" {self.answer(prompt)}\n")
                so_far = self.tok.encode(text[len(prompt):])
                logits[b, t, said[min(len(so_far), len(said) - 1)]] = 20.0
        return (logits[:, -1] if last_only else logits), None


def random_gpt(tok, block_size=64):
    """A GPT with large weights, far from ties."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(tok.vocab_size, block_size, 1, 2, 16))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(20)
    return model


def test_copain_has_seven_tasks_of_150_different_items_with_three_shots_each(world):
    items = copain_items(world)
    assert [sum(item.task == task for item in items) for task in COPAIN_TASKS] == [150] * 7
    assert len({item.text() for item in items}) == 1050
    for item in items:
        assert item.choices.count(item.answer) == 1 and len(set(item.choices)) == len(item.choices)
        assert len({tuple(sorted(x.choices)) for x in (item, *item.shots)}) == 4
    with pytest.raises(ValueError, match="max_integer_in_list: too few lists"):
        copain_items(data.World(max_integer=3), 1)


def test_label_items_use_no_cognate_both_letters_equally_and_are_translations_of_the_english_ones(world):
    english, target, _ = world.languages().values()
    back = {v: k for k, v in target.words.items()}
    for a, b in zip(label_items(english, target, 50), label_items(target, target, 50)):
        words = re.findall(r"\w\w+", b.text())
        assert len(set(words)) == 7 and not set(words) & set(target.words)  # its keys are the English words
        assert sorted([shot.answer for shot in b.shots].count(c) for c in b.choices) == [3, 3]
        assert [back[w] for w in words] == re.findall(r"\w\w+", a.text()) and a.answer == b.answer
        pairs = zip(words, [x.answer for x in (*b.shots, b)])
        assert f"{b.text()} {b.answer}" == ";".join(f" {word} => {letter}" for word, letter in pairs)


def test_label_prompts_are_written_as_label_documents_are(world, monkeypatch):
    monkeypatch.setattr(data, "draw_format", lambda rng: HELD_OUT_FORMAT)
    english, target, _ = world.languages().values()
    item, document = label_items(english, target, 1)[0], data.labels(Random(0), world, english)
    assert all(re.fullmatch(r"( \w+ => \w(;|$))+", text) for text in (f"{item.text()} {item.answer}", document))


@pytest.mark.parametrize("order", ["SVO", "SOV", "VSO", "OVS"])
def test_the_one_right_end_of_a_cloze_sentence_is_the_one_that_the_world_admits(order):
    lang = make_language("x", 0, order, 0.25)
    kind = {lang.words[n]: c for c in CATEGORIES for n in NOUNS[c] if lang.words[n] != n}
    verb = {lang.words[v]: categories for categories, v in VERBS.items()}
    for item in cloze_items(lang, lang, 50):
        assert len(set(item.choices)) == 4
        for choice in item.choices:
            words = f"{item.question} {choice}".rstrip(".").split()
            assert lang.case_marker in words and lang.determiner in words
            nouns = {}
            for i, word in enumerate(words):
                if word in kind:
                    nouns["O" if lang.case_marker in words[i + 1:i + 3] else "S"] = kind[word]
            subject, obj = next(verb[w] for w in words if w in verb)
            assert nouns["S"] == subject and (nouns["O"] == obj) == (choice == item.answer)


def test_items_depend_on_the_benchmark_seed_alone_and_recall_asks_for_one_of_the_shots(world):
    assert copain_items(world, 5, seed=1) == copain_items(world, 5, seed=1) != copain_items(world, 5, seed=2)
    assert recall_items(5, seed=1) == recall_items(5, seed=1) != recall_items(5, seed=2)
    for item in recall_items(20):
        shown = {shot.question: shot.answer for shot in item.shots}
        assert shown[item.question] == item.answer and len(set(shown.values())) == 6


def test_shuffled_shots_keep_the_form_and_lose_the_rule(world):
    lang = world.languages()["target"]
    for item in copain_items(world, 10):
        for shot, right, wrong in zip(item.shots, item.text().split("\n"), item.text("shuffled").split("\n")):
            assert wrong != right and wrong in [f"{shot.question} {x}" for x in shot.choices]
    for item in label_items(lang, lang, 10):
        right, wrong = (re.findall("=> (.)", item.text(form)) for form in ("prompt", "shuffled"))
        assert sorted(right) == sorted(wrong)
    assert item.text("zero-shot") == item.question and item.text("shuffled") == item.text("shuffled")


def lists_in(text):
    """The sorted elements of 3 and of 4 integers or letters that follow each other in a text. Any signs may
    stand between them but arrows and ends of lines."""
    found, run = set(), []
    for word in re.findall(r"\w+|[-=]>|[=:\n]", text):
        run = run + [word] if re.fullmatch(r"\d+|[a-z]", word) else []
        found |= {tuple(sorted(run[-n:])) for n in (3, 4) if len(run) >= n}
    return found


def test_no_list_and_no_prompt_of_the_benchmark_occurs_in_any_corpus(world, tok):
    assert lists_in(" 9; 4; 2 => 9\n 4 | 2 | b -> 4\n a b : a") == {("2", "4", "9"), ("2", "4", "b")}
    assert not lists_in(" 9 dog eats 4 egg; q hen fits 3 axe => 2 cat eats ham, 5 cow : 7 pig | a hen = 1")
    b = Benchmark(world, tok, 150, 0, 0)
    lists = {tuple(sorted(x.choices)) for item in b.copain + b.held_out for x in (item, *item.shots)}
    assert all(is_reserved(order) for elements in lists for order in itertools.permutations(elements))
    for source in SOURCES:
        for text in write_corpus(world, source, 1000, seed=0):
            assert not lists_in(text) & lists
            assert not re.search(r"; \w+ =>", text)  # the held-out format, of lists and of labels


def test_an_oracle_scores_100_percent_everywhere(world, tok):
    b = Benchmark(world, tok, 4, 6, 0)
    labels = [item for tasks in b.label.values() for item in tasks["label"]]
    answers = {item.text(): item.answer for item in [*b.copain, *b.held_out, *b.probes["recall"], *labels]}
    row = b(Scripted(tok, lambda prompt: answers.get(prompt, "?")))
    for key in ("copain", "copain_restricted", "five", "gain", "label_english", "label_target", "recall",
                "held_out_rule", "held_out_restricted"):
        assert row[key] == 100, key
    assert row["copain_not_in_list"] == row["copain_wrong_element"] == row["copain_zero-shot"] == 0
    assert row["label_ppl_target"] == pytest.approx(1, abs=1e-3)


def test_a_random_picker_scores_the_chance_line_and_only_wrong_elements(world, tok):
    items, rng, picks = copain_items(world, 30), Random(0), {}
    choices = {item.text(): item.choices for item in items}
    model = Scripted(tok, lambda p: picks.setdefault(p, rng.choice(choices.get(p, "?"))))
    row = copain_metrics(model, tok, items)
    assert copain_chance(COPAIN_TASKS) == pytest.approx(100 * (5 / 3 + 2 / 4) / 7)
    assert abs(row["copain"] - copain_chance(COPAIN_TASKS)) < 3 * 100 * math.sqrt(0.31 * 0.69 / 210)
    assert (row["copain"] + row["copain_wrong_element"], row["copain_not_in_list"]) == pytest.approx((100, 0))


def test_an_answer_is_whole_however_many_tokens_it_has_and_none_if_it_does_not_end(tok):
    said = {" 1; 2 =>": "123456", " 3; 4 =>": "12345", " 5; 6 =>": "123456 7", " 7 =>": "1 " * 50}
    assert len(tok.encode(" 123456")) > 2
    answers = greedy_answers(Scripted(tok, said.get), tok, [tok.encode(p) for p in said], max_new_tokens=12)
    outgrown = greedy_answers(random_gpt(tok, 8), tok, [[1] * 7], max_new_tokens=5)
    assert answers == [*said.values()][:3] + [None] and outgrown == [None]  # a context of 8


def test_answers_do_not_depend_on_what_shares_the_batch(tok):
    model = random_gpt(tok)
    prompts = [tok.encode(text) for text in (" 1; 2 => 1\n 3; 4 =>", " a =>", " b =>", " dog => x; cat =>")]
    assert greedy_answers(model, tok, prompts, 3) == [greedy_answers(model, tok, [p], 3)[0] for p in prompts]


def test_choice_logprobs_are_the_summed_log_probabilities_by_hand_whatever_shares_the_batch(tok):
    model, prompts = random_gpt(tok), [[5, 6, 7], [8], [*range(9)]]
    choices = [[[1], [2], [3, 4, 9]], [[3, 1], [3, 2], [3, 1, 7]], [[1], [2]]]
    for prompt, some, scores in zip(prompts, choices, choice_logprobs(model, prompts, choices)):
        for choice, score in zip(some, scores):
            idx = torch.tensor([prompt + choice])
            logp = model(idx, targets=idx)[0][0].log_softmax(-1)                     # (T, V)
            by_hand = sum(logp[len(prompt) - 1 + j, token].item() for j, token in enumerate(choice))
            assert score == pytest.approx(by_hand, rel=1e-4)


def test_where_an_element_of_a_list_begins_another_the_end_of_the_line_is_scored_too():
    tok = data.Tokenizer({bytes([b]): b for b in range(256)})  # a token a byte
    for choices, between, first in (("6 68", "\n", " 6\n"), ("7 68", "\n", " 7"), ("6 68", "\n\n", " 6")):
        item = bench.Item("rule", " 6; 68 =>", "68", tuple(choices.split()), between)  # "\n\n": of --task
        assert tok.decode(bench.encode_item(tok, item)[1][0]) == first


def test_a_score_that_is_not_finite_stops_with_the_task(world, tok):
    model = random_gpt(tok, 128)
    with torch.no_grad():
        model.transformer.wte.weight[7, 0] = math.nan
    items = copain_items(world, 1)
    with pytest.raises(ValueError, match="max_integer_in_list: the model is broken"):
        choice_metrics(model, tok, items)


def test_perplexity_is_exp_of_the_loss_of_the_first_blocks_and_needs_one(tiny):
    ids = np.arange(49, dtype=np.uint16) % 10
    x = torch.from_numpy(ids.astype(np.int64))
    for n in (1, 3):  # blocks of 16
        loss = tiny(x[:16 * n].view(n, 16), x[1:16 * n + 1].view(n, 16))[1].item()
        assert bench.perplexity(tiny, ids, n_blocks=n) == pytest.approx(math.exp(loss), rel=1e-5)
    with pytest.raises(ValueError, match="16 tokens"):
        bench.perplexity(tiny, ids[:16])


def test_parameter_shift_is_the_mean_of_the_norms_per_tensor(tiny):
    before = {n: p.detach().clone() for n, p in tiny.named_parameters()}
    assert set(bench.parameter_shift(tiny, before).values()) == {0}
    with torch.no_grad():
        tiny.transformer.wpe.weight[0, 0] += 3.0
    shift = bench.parameter_shift(tiny, before)
    assert shift["shift_l2"] == pytest.approx(3 / len(before), rel=1e-5)
    assert shift["shift_embeddings"] == pytest.approx(3 / 2) and shift["shift_blocks"] == 0
    norm = math.sqrt(sum(p.square().sum().item() for p in before.values()))
    assert shift["shift_relative"] == pytest.approx(3 / norm, rel=1e-5)


def test_perplexity_per_word_and_per_character_share_out_the_same_nats_and_no_end_of_a_document_is_a_word(tok):
    ids = tok.encode_documents(["a dog eats"] * 40)
    row, text = bench.perplexities(random_gpt(tok), tok, "x", ids, 2, 32), tok.decode(ids[:65])
    nats, text = 65 * math.log(row["ppl_x"]), text.replace("<|endoftext|>", "\n")
    assert set(text.split()) == {"a", "dog", "eats"}
    assert math.log(row["ppl_word_x"]) == pytest.approx(nats / len(text.split()))
    assert math.log(row["ppl_char_x"]) == pytest.approx(nats / len(text))


def test_the_shift_of_token_embeddings_is_told_apart_by_the_texts_that_use_them(tiny):
    before = {n: p.detach().clone() for n, p in tiny.named_parameters()}
    with torch.no_grad():
        tiny.transformer.wte.weight[:4, 0] += torch.tensor([1.0, 2.0, 4.0, 9.0])
    shift = bench.token_shift(tiny, before, english=np.array([0, 1, 2]), target=np.array([1, 3, 3]))
    assert shift == pytest.approx({"shift_target_tokens": (2 + 9) / 2, "shift_english_tokens": (1 + 4) / 2})
    shift = bench.token_shift(tiny, before, english=np.array([1]), target=np.array([1]))  # in both
    assert shift == {"shift_target_tokens": 2.0}


def test_rows_hold_plain_numbers_of_the_same_items_in_float32_under_autocast_too(world, tok, monkeypatch):
    b, gpt = Benchmark(world, tok, 3, 9, 6, block_size=64), random_gpt(tok)
    before = {n: p.detach().clone() for n, p in gpt.named_parameters()}
    ids = {"target": np.arange(64 * 7 + 1) % tok.vocab_size}
    with torch.autocast("cpu", torch.bfloat16):
        middle = evaluate(gpt, b, ids, before, 7, full=False)
    end = evaluate(gpt, b, ids, before, 7)
    assert middle == {key: end[key] for key in middle} == middle | b(gpt, full=False)
    assert set(end) - set(middle) == {
        "cloze_english", "cloze_target", "recall", "held_out_rule", "held_out_restricted", "copain_shuffled",
        "label_english_shuffled", "label_target_shuffled", *(f"label_{x}_zero-shot" for x in b.label)}
    monkeypatch.setattr(bench, "parameter_shift", lambda *_: {"x": np.float32(0.5), "y": torch.tensor(2)})
    assert str(evaluate(gpt, b, ids, before, 7, full=False)).startswith("{'x': 0.5, 'y': 2, ")
