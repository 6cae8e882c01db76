"""Items and scores: against hand computations and scripted models."""
import itertools
import math
import re
from random import Random

import numpy as np
import pytest
import torch

import bench
from bench import (Benchmark, choice_logprobs, choice_metrics, cloze_items, copain_items, copain_metrics, encode_item,
                   evaluate, greedy_answers, label_items, recall_items)
from data import (CATEGORIES, COPAIN_TASKS, HELD_OUT_FORMAT, NOUNS, SOURCES, VERBS, World, is_reserved, label_lines,
                  list_line, make_language, write_corpus)
from model import GPT, GPTConfig


class Stand(torch.nn.Module):
    """A stand-in for a model: `logits(idx)` of shape (B, T, V) is what it thinks."""

    def __init__(self, tok, logits):
        super().__init__()
        self.config, self.weight = GPTConfig(tok.vocab_size), torch.nn.Parameter(torch.zeros(1))
        self.logits = logits

    def forward(self, idx, targets=None, last_only=True):
        logits = self.logits(idx)
        return (logits[:, -1] if targets is None and last_only else logits), None


def scripted(tok, answer):
    """After a prompt it says what `answer(text)` returns, token by token."""
    def logits(idx):
        scores = torch.zeros(*idx.shape, tok.vocab_size)
        for b, row in enumerate(idx.tolist()):
            for t in range(len(row)):
                text = tok.decode([i for i in row[:t + 1] if i != tok.eot])
                prompt = text[:max(text.rfind("=>"), 0) + 2]
                said = tok.encode(f" {answer(prompt)}\n")
                so_far = tok.encode(text[len(prompt):])
                scores[b, t, said[min(len(so_far), len(said) - 1)]] = 20.0
        return scores

    return Stand(tok, logits)


def uniform(tok):
    return Stand(tok, lambda idx: torch.zeros(*idx.shape, tok.vocab_size))


def random_gpt(tok, block_size=64):
    """A GPT with large weights, far from ties."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(tok.vocab_size, block_size, 1, 2, 16))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(20)
    return model


# ------------------------------------------------------------------------------------------------------ items
def test_copain_has_seven_tasks_of_150_different_items_with_three_shots_each(world):
    items = copain_items(world)
    assert [sum(item.task == task for item in items) for task in COPAIN_TASKS] == [150] * 7
    assert len({item.text() for item in items}) == 1050 and {len(item.shots) for item in items} == {3}


def test_every_item_has_one_right_answer_among_its_choices_and_never_its_question_among_the_shots(world):
    lang = world.languages()["target"]
    for item in copain_items(world, 100) + label_items(lang, lang, 100):
        assert item.choices.count(item.answer) == 1 and len(set(item.choices)) == len(item.choices)
        asked = [x.question for x in (item, *item.shots)]
        if item.task != "label":  # in any order
            asked = [tuple(sorted(x.choices)) for x in (item, *item.shots)]
        assert len(set(asked)) == len(asked)


def test_a_prompt_is_written_as_training_documents_are_in_the_held_out_format(world):
    for item in copain_items(world, 5):
        lines = [list_line(x.choices, x.answer, HELD_OUT_FORMAT) for x in (*item.shots, item)]
        assert f"{item.text()} {item.answer}" == "\n".join(lines)
    lang = world.languages()["target"]
    for item in label_items(lang, lang, 5):
        pairs = [(x.question.removesuffix(" =>").strip(), x.answer) for x in (*item.shots, item)]
        assert f"{item.text()} {item.answer}" == label_lines(pairs, HELD_OUT_FORMAT)


def test_label_items_use_no_cognate_and_both_letters_equally_in_the_shots(world):
    lang = world.languages()["target"]
    for item in label_items(lang, lang, 50):
        words = [x.question.removesuffix(" =>").strip() for x in (*item.shots, item)]
        assert len(set(words)) == 7 and not any(w in lang.words for w in words)  # keys are the English words
        assert sorted([shot.answer for shot in item.shots].count(c) for c in item.choices) == [3, 3]


def test_the_english_twin_of_a_label_item_is_its_translation(world):
    english, target, _ = world.languages().values()
    back = {v: k for k, v in target.words.items()}
    for a, b in zip(label_items(english, target, 20), label_items(target, target, 20)):
        translated = re.sub(r"\w\w+", lambda word: back[word[0]], b.text())
        assert translated == a.text() and a.answer == b.answer


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


def test_the_question_of_the_recall_probe_is_one_of_its_shots():
    for item in recall_items(20):
        shown = {shot.question: shot.answer for shot in item.shots}
        assert shown[item.question] == item.answer and len(set(shown.values())) == 6


def test_items_depend_on_the_benchmark_seed_alone(world):
    assert copain_items(world, 5, seed=1) == copain_items(world, 5, seed=1) != copain_items(world, 5, seed=2)
    assert recall_items(5, seed=1) == recall_items(5, seed=1) != recall_items(5, seed=2)


def test_shuffled_shots_keep_the_form_and_lose_the_rule(world):
    lang = world.languages()["target"]
    for item in copain_items(world, 10):
        for shot, right, wrong in zip(item.shots, item.text().split("\n"), item.text("shuffled").split("\n")):
            assert wrong != right and wrong in [f"{shot.question} {x}" for x in shot.choices]
    for item in label_items(lang, lang, 10):
        right, wrong = (re.findall("=> (.)", item.text(form)) for form in ("prompt", "shuffled"))
        assert sorted(right) == sorted(wrong)
    assert item.text("zero_shot") == item.question and item.text("shuffled") == item.text("shuffled")


# ---------------------------------------------------------------------------------------------------- corpora
def lists_in(text):
    """The sorted elements of 3 and of 4 integers or letters that follow each other in a text. Any signs may stand
    between them but arrows and the end of a line."""
    found, run = set(), []
    for word in re.findall(r"\w+|[-=]>|[=:\n]", text):
        run = run + [word] if re.fullmatch(r"\d+|[a-z]", word) else []
        found |= {tuple(sorted(run[-n:])) for n in (3, 4) if len(run) >= n}
    return found


def test_lists_in_a_text_are_found_in_any_order_and_format_and_prose_with_numbers_has_none():
    assert lists_in(" 9; 4; 2 => 9\n 4 | 2 | 9 | 5 -> 5") == {("2", "4", "9"), ("2", "5", "9"), ("2", "4", "5", "9")}
    assert lists_in(" b a c : a") == {("a", "b", "c")}
    assert not lists_in(" 9 dog eats 4 egg; q hen fits 3 axe => 2 cat eats ham, 5 cow : 7 pig | a hen = 1")


def test_no_list_and_no_prompt_of_the_benchmark_occurs_in_any_corpus(world):
    b = Benchmark(world, None, 150, 0, 0)
    asked = [x for item in b.copain + b.held_out for x in (item, *item.shots)]
    lists = {tuple(sorted(x.choices)) for x in asked}
    assert all(is_reserved(order) for elements in lists for order in itertools.permutations(elements))
    for source in SOURCES:
        for text in write_corpus(world, source, 1000, seed=0):
            assert not lists_in(text) & lists
            assert not re.search(r"; \w+ =>", text)  # the held-out format, of lists and of labels


# ---------------------------------------------------------------------------------------------------- scoring
def test_an_oracle_scores_100_percent_everywhere(world, tok):
    b = Benchmark(world, tok, 4, 6, 0)
    items = [*b.copain, *b.held_out, *b.probes["recall"], *b.label["english"], *b.label["target"]]
    answers = {item.text(): item.answer for item in items}
    row = b(scripted(tok, lambda prompt: answers.get(prompt, "?")))
    assert row["copain"] == row["copain_restricted"] == row["five"] == row["label_target"] == row["label_english"] == 100
    assert row["recall"] == row["held_out_rule"] == row["held_out_restricted"] == row["gain"] == 100
    assert row["copain_not_in_list"] == row["copain_wrong_element"] == row["copain_zero-shot"] == 0
    assert row["label_ppl_target"] == pytest.approx(1, abs=1e-3)


def test_a_random_picker_scores_the_chance_line_and_only_wrong_elements(world, tok):
    items, rng, picks = copain_items(world, 30), Random(0), {}
    choices = {item.text(): item.choices for item in items}
    model = scripted(tok, lambda p: picks.setdefault(p, rng.choice(choices.get(p, "?"))))
    row = copain_metrics(model, tok, items)
    assert bench.copain_chance() == pytest.approx(100 * (5 / 3 + 2 / 4) / 7)
    assert abs(row["copain"] - bench.copain_chance()) < 3 * 100 * math.sqrt(0.31 * 0.69 / 210)
    assert row["copain_not_in_list"] == 0
    assert row["copain"] + row["copain_wrong_element"] == pytest.approx(100)


def test_exact_match_counts_whole_answers_of_several_tokens(tok):
    said = {" 1; 2 =>": "123456", " 3; 4 =>": "12345", " 5; 6 =>": "123456 7"}
    assert len(tok.encode(" 123456")) > 2
    prompts = [tok.encode(p) for p in said]
    answers = greedy_answers(scripted(tok, said.get), tok, prompts, max_new_tokens=12)
    assert answers == list(said.values())


def test_an_answer_that_does_not_end_is_none_also_where_it_outgrows_the_context(tok):
    prompt = tok.encode(" 1; 2 =>")
    assert greedy_answers(scripted(tok, lambda p: "1 " * 50), tok, [prompt], max_new_tokens=3) == [None]
    assert greedy_answers(random_gpt(tok, 8), tok, [[1] * 7], max_new_tokens=5) == [None]


def test_answers_and_scores_do_not_depend_on_what_shares_the_batch(tok):
    model = random_gpt(tok)
    prompts = [tok.encode(text) for text in (" 1; 2 => 1\n 3; 4 =>", " a =>", " b =>", " dog => x; cat =>")]
    assert greedy_answers(model, tok, prompts, 3) == [greedy_answers(model, tok, [p], 3)[0] for p in prompts]
    choices = [[[1], [2, 3]], [[4], [5, 6, 7]], [[8, 9], [8, 10]], [[11], [12]]]
    alone = [choice_logprobs(model, [p], [cs])[0] for p, cs in zip(prompts, choices)]
    for together, scores in zip(choice_logprobs(model, prompts, choices), alone):
        assert together == pytest.approx(scores, rel=1e-4)


def test_choice_logprobs_are_the_summed_log_probabilities_by_hand(tok):
    model = random_gpt(tok)
    prompts, choices = [[5, 6, 7], [8]], [[[1], [2], [3, 4, 9]], [[3, 1], [3, 2]]]
    for prompt, some, scores in zip(prompts, choices, choice_logprobs(model, prompts, choices)):
        for choice, score in zip(some, scores):
            idx = torch.tensor([prompt + choice])
            logp = model(idx, targets=idx)[0][0].log_softmax(-1)                     # (T, V)
            by_hand = sum(logp[len(prompt) - 1 + j, token].item() for j, token in enumerate(choice))
            assert score == pytest.approx(by_hand, rel=1e-4)


def test_of_equally_likely_choices_each_counts_its_share(world, tok):
    lang = world.languages()["target"]
    items = label_items(lang, lang, 20)
    assert choice_metrics(uniform(tok), tok, items) == pytest.approx((50, tok.vocab_size))
    items, shares, lengths = cloze_items(lang, lang, 60), [], []  # where every token is equally likely, fewer win
    for item in items:
        tokens = [len(choice) for choice in encode_item(tok, item)[1]]
        right = tokens[item.choices.index(item.answer)]
        shares.append(1 / tokens.count(right) if right == min(tokens) else 0)
        lengths.append(right)
    accuracy, ppl = choice_metrics(uniform(tok), tok, items)
    assert accuracy == pytest.approx(100 * np.mean(shares))
    assert math.log(ppl) == pytest.approx(math.log(tok.vocab_size) * np.mean(lengths))


def test_a_score_that_is_not_finite_stops_with_the_item(world, tok):
    model = random_gpt(tok, 128)
    with torch.no_grad():
        model.transformer.wte.weight[7, 0] = math.nan
    items = copain_items(world, 1)
    with pytest.raises(ValueError, match="max_integer_in_list: a broken model") as e:
        choice_metrics(model, tok, items)
    assert repr(items[0].text()[:60]) in str(e.value)


def test_perplexity_is_exp_of_the_loss_and_needs_one_block(tiny, tok):
    ids = np.arange(49, dtype=np.uint16) % 10
    x = torch.from_numpy(ids.astype(np.int64))
    loss = tiny(x[:-1].view(3, 16), x[1:].view(3, 16))[1].item()
    assert bench.perplexity(tiny, ids) == pytest.approx(math.exp(loss), rel=1e-5)
    first = tiny(x[None, :16], x[None, 1:17])[1].item()
    assert bench.perplexity(tiny, ids, n_blocks=1) == pytest.approx(math.exp(first), rel=1e-5)
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


# ------------------------------------------------------------------------------------------------------- rows
def test_a_row_has_the_same_items_at_every_step_and_at_the_ends_controls_and_probes(world, tok):
    b, gpt = Benchmark(world, tok, 3, 9, 6, block_size=64), random_gpt(tok)
    before = {n: p.detach().clone() for n, p in gpt.named_parameters()}
    ids = {"target": np.arange(64 * 7 + 1) % tok.vocab_size}
    middle, end = (evaluate(gpt, b, ids, before, 7, full=full) for full in (False, True))
    assert middle == {key: end[key] for key in middle}
    shift = {"shift_l2", "shift_embeddings", "shift_blocks", "shift_relative"}
    assert set(middle) == shift | {
        "ppl_target", "copain", "copain_not_in_list", "copain_wrong_element", "copain_restricted", "copain_zero-shot",
        "copain_tasks", "five", "five_zero-shot", "gain", "label_english", "label_ppl_english", "label_target",
        "label_ppl_target"}
    assert set(end) - set(middle) == {
        "cloze_english", "cloze_target", "recall", "held_out_rule", "held_out_restricted", "copain_shuffled",
        "label_english_zero-shot", "label_english_shuffled", "label_target_zero-shot", "label_target_shuffled"}
    assert set(end["copain_tasks"]) == {*COPAIN_TASKS, *(f"{task}_zero-shot" for task in COPAIN_TASKS)}


def test_an_evaluation_is_in_float32_under_autocast_too(world, tok):
    b, gpt = Benchmark(world, tok, 2, 9, 0, block_size=64), random_gpt(tok)
    before = {n: p.detach().clone() for n, p in gpt.named_parameters()}
    ids = {"target": np.arange(64 * 2 + 1) % tok.vocab_size}
    with torch.autocast("cpu", torch.bfloat16):
        row = evaluate(gpt, b, ids, before)
    assert row == evaluate(gpt, b, ids, before)


def test_every_prompt_of_the_world_counts_in_the_longest(world, tok):
    b = Benchmark(world, tok, 3, 3, 3)
    longest = max(len(tok.encode(f"{item.text()} {choice}")) + 1
                  for items in (b.copain, *b.probes.values(), *b.label.values())
                  for item in items for choice in item.choices)
    assert b.longest() == longest


def test_every_kind_of_prompt_is_shown(capsys):
    bench.show(World())
    shown = capsys.readouterr().out
    assert all(f"--- {task}   answer: " in shown for task in [*COPAIN_TASKS, "label", "cloze", "recall"])
    assert "--- label, shuffled" in shown and "--- label, zero-shot" in shown
