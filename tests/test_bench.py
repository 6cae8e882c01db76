"""Items, scores, the leak check, intervals and verdicts: against hand computations and scripted models."""
import dataclasses
import json
import math
import re
from random import Random

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import bench
import train
from bench import (Benchmark, Estimate, choice_logprobs, choice_metrics, choice_scores, cloze_items, copain_answers,
                   copain_items, copain_metrics, encode_item, greedy_answers, label_items)
from data import CATEGORIES, COPAIN_TASKS, HELD_OUT_FORMAT, NOUNS, VERBS, list_line, make_language, sha256
from model import GPT, GPTConfig

BENCH = dict(n_copain=30, n_label=40, n_cloze=40)


class Stand(torch.nn.Module):
    """A stand-in for a model: `logits(idx)` of shape (B, T, V) is what it thinks."""

    def __init__(self, tok, logits):
        super().__init__()
        self.config, self.weight, self.logits = GPTConfig(tok.vocab_size), torch.nn.Parameter(torch.zeros(1)), logits

    def forward(self, idx, targets=None):
        logits = self.logits(idx)
        return (logits[:, -1] if targets is None else logits), None


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


def lines_of(item):
    """[(elements, answer)] of a Copain or label prompt; the answer of the last, the question, is empty."""
    separator, arrow = HELD_OUT_FORMAT
    text = item.prompt if item.task in COPAIN_TASKS else item.prompt.replace(separator, "\n")
    pairs = [line.split(arrow) for line in text.split("\n")]
    return [(left.replace(separator, " ").split(), right.strip()) for left, right in pairs]


# ------------------------------------------------------------------------------------------------------------ items
def test_copain_has_seven_tasks_of_150_items_with_three_shots_each(world):
    items = copain_items(world)
    assert len(items) == 1050 and [sum(i.task == t for i in items) for t in COPAIN_TASKS] == [150] * 7
    assert all(len(lines_of(i)) == 4 for i in items) and len({i.prompt for i in items}) == 1050


def test_every_item_has_one_right_answer_among_its_choices(world):
    languages = world.languages()
    for item in copain_items(world, 40) + label_items(languages["target"], languages["target"], 40):
        assert item.choices.count(item.answer) == 1 and len(set(item.choices)) == len(item.choices)
        *shots, (question, nothing) = lines_of(item)
        assert nothing == "" and question not in [elements for elements, _ in shots]


def test_label_items_use_no_cognate_and_both_labels_equally_in_the_shots(world):
    lang = world.languages()["target"]
    for item in label_items(lang, lang, 50):
        *shots, (question, _) = lines_of(item)
        words = [elements[0] for elements, _ in shots] + question
        assert len(set(words)) == 7 and not any(w in lang.words for w in words)  # keys are the English words
        assert sorted([answer for _, answer in shots].count(c) for c in item.choices) == [3, 3]


def test_the_english_twin_of_a_label_item_is_its_translation(world):
    english, target, _ = world.languages().values()
    back = {v: k for k, v in target.words.items()}
    for a, b in zip(label_items(english, target, 20), label_items(target, target, 20)):
        assert [(back[words[0]], answer) for words, answer in lines_of(b)] == [(w[0], x) for w, x in lines_of(a)]
        assert a.answer == b.answer


@pytest.mark.parametrize("order", ["SVO", "SOV", "VSO", "OVS"])
def test_the_one_right_end_of_a_cloze_sentence_is_the_one_that_the_world_admits(order):
    lang = make_language("x", 0, order, 0.25)
    kind = {lang.words[n]: c for c in CATEGORIES for n in NOUNS[c] if lang.words[n] != n}
    verb = {lang.words[v]: categories for categories, v in VERBS.items()}
    for item in cloze_items(lang, lang, 50):
        assert len(set(item.choices)) == 4
        for choice in item.choices:
            words = f"{item.prompt} {choice}".rstrip(".").split()
            assert lang.case_marker in words and lang.determiner in words
            nouns = {("O" if lang.case_marker in words[i + 1:i + 3] else "S"): kind[w]
                     for i, w in enumerate(words) if w in kind}
            subject, obj = next(verb[w] for w in words if w in verb)
            assert nouns["S"] == subject and (nouns["O"] == obj) == (choice == item.answer)


def test_an_end_of_several_tokens_is_scored_whole(world, tok):
    uniform = Stand(tok, lambda idx: torch.zeros(*idx.shape, tok.vocab_size))  # every token equally likely: fewer tokens win
    items = cloze_items(world.languages()["target"], world.languages()["target"], 60)
    lengths = [[len(c) for c in encode_item(tok, item)[1]] for item in items]
    shortest = [min(range(4), key=lambda k: ls[k]) == item.choices.index(item.answer) for ls, item in zip(lengths, items)]
    accuracy, ppl = choice_metrics(items, choice_scores(uniform, tok, items))
    assert accuracy == pytest.approx(100 * sum(shortest) / 60)
    assert math.log(ppl) == pytest.approx(math.log(tok.vocab_size) * sum(
        ls[item.choices.index(item.answer)] for ls, item in zip(lengths, items)) / 60, rel=1e-4)


def test_items_depend_on_the_benchmark_seed_alone(world):
    assert copain_items(world, 5, seed=1) == copain_items(world, 5, seed=1) != copain_items(world, 5, seed=2)


def test_shuffled_shots_keep_the_form_and_lose_the_rule(world):
    for item in copain_items(world, 10):
        shuffled = dataclasses.replace(item, prompt=item.shuffled)
        for (elements, right), (same, wrong) in zip(lines_of(item)[:-1], lines_of(shuffled)[:-1]):
            assert elements == same and wrong in elements and wrong != right
        assert item.prompt.endswith(item.zero_shot) and item.zero_shot.count("=>") == 1


def test_the_sample_of_curves_is_the_first_third_of_every_task(world, tok):
    items = copain_items(world, 7)
    sample = bench.first_third(items)
    assert [sum(i.task == t for i in sample) for t in COPAIN_TASKS] == [3] * 7 and set(sample) < set(items)
    assert sample[:3] == items[:3]


# ------------------------------------------------------------------------------------------------- corpora and leaks
def test_no_prompt_and_no_list_of_the_benchmark_occurs_in_the_corpora(world, tok, sources):
    Benchmark(world, tok, 150, 100, 10).check_disjoint(sources)


@pytest.mark.parametrize("fmt", [(",", " ->"), ("", " :"), (";", " =>")])
def test_a_list_that_leaks_into_a_corpus_is_found_in_any_format(world, tok, sources, fmt):
    b = Benchmark(world, tok, 5, 5, 5)
    leak = tok.encode_documents([list_line(lines_of(b.copain[7])[-1][0], b.copain[7].answer, fmt)])
    with pytest.raises(ValueError, match="leak.*'english'"):
        b.check_disjoint({"english": np.concatenate([sources["english"], leak])})


def test_a_label_prompt_that_leaks_is_found(world, tok, sources):
    b = Benchmark(world, tok, 5, 5, 5)
    leak = tok.encode_documents([b.label["target"][3].prompt])
    with pytest.raises(ValueError, match="leak"):
        b.check_disjoint({"target": np.concatenate([sources["target"], leak])})


# ---------------------------------------------------------------------------------------------------------- scoring
def test_an_oracle_scores_100_percent_everywhere(world, tok):
    b = Benchmark(world, tok, 4, 6, 6)
    answers = {item.prompt: item.answer for items in (b.copain, *b.label.values()) for item in items}
    row = b(scripted(tok, lambda prompt: answers.get(prompt, "?")))
    assert row["copain"] == row["label_target"] == row["label_english"] == 100
    assert row["curve_copain"] == row["curve_label_target"] == row["curve_label_english"] == 100
    assert row["copain_not_in_list"] == row["copain_wrong_element"] == 0
    assert row["label_ppl_target"] == pytest.approx(1, abs=1e-3)


def test_a_random_picker_scores_the_chance_line_and_only_wrong_elements(world, tok):
    b = Benchmark(world, tok, **BENCH)
    rng = Random(0)

    def pick(prompt):
        return rng.choice(prompt.rsplit("\n", 1)[-1].replace("=>", "").replace(";", "").split())

    picks = {}
    model = scripted(tok, lambda p: picks.setdefault(p, pick(p) if p.strip() else "?"))
    row = copain_metrics(b.copain, copain_answers(model, tok, b.copain))
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


def test_an_answer_that_does_not_end_is_none(tok):
    prompt = tok.encode(" 1; 2 =>")
    assert greedy_answers(scripted(tok, lambda p: "1 " * 50), tok, [prompt], max_new_tokens=3) == [None]


def test_an_answer_that_outgrows_the_longest_row_goes_on_with_what_fits(tok):
    model = GPT(GPTConfig(tok.vocab_size, 8, 1, 2, 16))
    assert greedy_answers(model, tok, [[1] * 7], max_new_tokens=5) == [None]


def test_answers_do_not_depend_on_what_shares_the_batch(tok):
    torch.manual_seed(0)
    model = GPT(GPTConfig(tok.vocab_size, 32, 1, 2, 16))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(20)  # far from ties
    prompts = [tok.encode(" 1; 2 => 1\n 3; 4 =>"), tok.encode(" a =>"), tok.encode(" dog => x; cat =>")]
    together = greedy_answers(model, tok, prompts, 3)
    assert together == [greedy_answers(model, tok, [p], 3)[0] for p in prompts]


def test_choice_logprobs_are_the_summed_log_probabilities_by_hand(tok):
    torch.manual_seed(0)
    model = GPT(GPTConfig(tok.vocab_size, 32, 1, 2, 16))
    prompts, choices = [[5, 6, 7], [8]], [[[1], [2], [3, 4, 9]], [[3, 1], [3, 2]]]
    for prompt, cs, scores in zip(prompts, choices, choice_logprobs(model, prompts, choices)):
        for c, score in zip(cs, scores):
            idx = torch.tensor([prompt + c])
            logp = model(idx, targets=idx)[0][0].log_softmax(-1)                     # (T, V)
            by_hand = sum(logp[len(prompt) - 1 + j, t].item() for j, t in enumerate(c))
            assert score == pytest.approx(by_hand, abs=1e-5)


def test_perplexity_is_exp_of_the_loss_and_needs_one_block(tiny):
    ids = np.arange(33, dtype=np.uint16) % 10
    x = torch.from_numpy(ids.astype(np.int64))
    loss = tiny(x[:-1].view(2, 16), x[1:].view(2, 16))[1].item()
    assert bench.perplexity(tiny, ids)[1] == pytest.approx(math.exp(loss), rel=1e-5)
    with pytest.raises(ValueError, match="16 tokens"):
        bench.perplexity(tiny, ids[:16])


def test_the_first_third_of_the_blocks_is_scored_alone_and_as_part_of_all(tiny):
    ids = np.random.default_rng(0).integers(0, 10, 16 * 8 + 1).astype(np.uint16)
    third, whole = bench.perplexity(tiny, ids, 8)
    assert bench.perplexity(tiny, ids, 8, full=False) == (third, None)
    assert third == pytest.approx(bench.perplexity(tiny, ids, 3)[1], rel=1e-6)  # 3 of 8 blocks
    assert whole != pytest.approx(third, rel=1e-6)


def test_curves_are_of_the_same_sample_at_every_step_and_ends_add_all_items(world, tok):
    b, gpt = Benchmark(world, tok, 6, 9, 6, block_size=64), GPT(GPTConfig(tok.vocab_size, 64, 1, 2, 16))
    before = {n: p.detach().clone() for n, p in gpt.named_parameters()}
    ids = {"target": np.arange(64 * 7 + 1) % tok.vocab_size}
    middle, end = (bench.evaluate(gpt, b, ids, before, 7, full=full) for full in (False, True))
    shared = {key for key in middle if key.startswith("curve_")}
    for key in shared:  # in other batches, which round otherwise
        assert middle[key] == pytest.approx(end[key], rel=1e-5)
    assert {"curve_copain", "curve_copain_not_in_list", "curve_label_target", "curve_label_ppl_target",
            "curve_ppl_target", "curve_gain", "curve_copain_restricted"} <= shared
    assert set(middle) - shared == {"shift_l2", "shift_embeddings", "shift_blocks", "shift_relative"}
    assert {"copain", "label_target", "label_ppl_target", "ppl_target", "copain_restricted", "cloze_target",
            "copain_zero-shot", "label_english_shuffled", "gain", "recall", "held_out_rule"} <= set(end)
    assert end["ppl_target"] != end["curve_ppl_target"]


def test_the_benchmark_gives_no_item_to_the_model_twice(world, tok):
    b, fed = Benchmark(world, tok, 6, 9, 0), []
    b(Stand(tok, lambda idx: fed.extend(map(tuple, idx.tolist())) or torch.zeros(*idx.shape, tok.vocab_size)), full=True)
    items = [item for item in b.label["target"] if item.prompt != item.shuffled]
    prompts = [encode_item(tok, item)[0] for item in items]
    of_labels = [row for row in fed if any(list(row[:len(prompt)]) == prompt for prompt in prompts)]
    assert len(items) > 4 and len(set(of_labels)) == len(of_labels) >= len(items)


def test_parameter_shift_is_the_mean_of_the_norms_per_tensor(tiny):
    before = {n: p.detach().clone() for n, p in tiny.named_parameters()}
    assert set(bench.parameter_shift(tiny, before).values()) == {0}
    with torch.no_grad():
        tiny.transformer.wpe.weight[0, 0] += 3.0
    shift = bench.parameter_shift(tiny, before)
    assert shift["shift_l2"] == pytest.approx(3 / len(before), rel=1e-5)
    assert shift["shift_embeddings"] == pytest.approx(3 / 2) and shift["shift_blocks"] == 0
    assert shift["shift_relative"] == pytest.approx(3 / math.sqrt(sum(p.square().sum().item() for p in before.values())), rel=1e-5)


# ----------------------------------------------------------------------------------------------- intervals, verdicts
def test_the_t_interval_of_a_hand_computed_case():
    e = Estimate.of([1.0, 2.0, 3.0])  # s = 1, t(2) = 4.303, 4.303 / sqrt(3) = 2.484
    assert (e.mean, e.low, e.high) == pytest.approx((2, -0.4843, 4.4843), abs=1e-3)
    assert Estimate.of([5.0]) == Estimate(5, 5, 5)


BASE = dict(ppl_target=10.0, ppl_english=5.0, copain=90.0, gain=45.0, label_target=50.0, label_ppl_target=3.0, shift_l2=0.0)
EQUAL = dict(ppl_target=4.7, copain=85.0, gain=40.0, label_target=95.0, label_ppl_target=1.1, shift_l2=5.0)


def a_log(seeds=3, **arms):
    """A log of arms at steps 0, 10 and 100; what an arm does not give is as target+english has it."""
    rows = []
    for seed in range(seeds):
        for arm, given in arms.items():
            for step in (0, 10, 100):
                end = BASE | EQUAL | given
                row = BASE if step == 0 else end | {"copain": end.get("copain_early", end["copain"])} if step == 10 else end
                row = row | {"ppl_target": row["ppl_target"] + 0.01 * seed}
                sample = {f"curve_{key}": x for key, x in row.items()}
                rows.append({"arm": arm, "seed": seed, "step": step} | row | sample)
    return bench.Log(rows)


def judged(log, study="main"):
    return {v["id"]: v["verdict"] for v in bench.verdicts(log, study)}


COLLAPSED = dict(copain_early=5.0, copain=20.0, gain=1.0, label_target=51.0, label_ppl_target=3.0, shift_l2=40.0)


def test_a_log_in_which_everything_happens_is_reproduced():
    log = a_log(**{"target": COLLAPSED, "target+english": {}, "curriculum": {}, "ema": {}})
    assert judged(log) == dict.fromkeys(["C1", "C2", "C3", "C4", "C5", "C6"], "reproduced")


def test_a_null_effect_is_not_reproduced_and_leaves_nothing_to_repair():
    log = a_log(**{"target": {}, "target+english": {}, "curriculum": {}, "ema": {}})
    assert judged(log) == dict(C1="reproduced", C2="not reproduced", C3="not reproduced", C4="not reproduced",
                               C5="inconclusive", C6="inconclusive")


def test_a_reversed_effect_is_not_reproduced():
    log = a_log(**{"target": {"ppl_target": 9.0, "shift_l2": 1.0}, "target+english": COLLAPSED | {"shift_l2": 5.0}})
    assert [judged(log)[c] for c in ("C1", "C2", "C3", "C4")] == ["not reproduced"] * 4


def test_half_a_repair_is_partly_and_a_repair_that_costs_perplexity_is_no_full_one():
    arms = {"target": COLLAPSED, "target+english": {},
            "curriculum": {"copain": 60.0, "gain": 5.0, "label_target": 51.0},
            "ema": {"ppl_target": 6.0}}
    assert judged(a_log(**arms))["C5"] == judged(a_log(**arms))["C6"] == "partly"
    arms["curriculum"] = {"copain": 30.0, "gain": 5.0, "label_target": 51.0}
    assert judged(a_log(**arms))["C5"] == "not reproduced"


def test_a_claim_without_its_arms_or_their_ends_is_not_run_and_without_icl_in_the_base_inconclusive():
    assert judged(a_log(target=COLLAPSED))["C1"] == "not run"
    log = a_log(seeds=1, **{"target": COLLAPSED, "target+english": {}})
    log = bench.Log([r for r in log.rows.values() if not (r["arm"] == "target" and r["step"] == 100)])
    assert judged(log)["C2"] == "not run"
    rows = [r | {"gain": 0.0} for r in a_log(**{"target": {}, "target+english": {}}).rows.values()]
    assert judged(bench.Log(rows))["C2"] == "inconclusive"


def test_a_study_of_five_steps_has_an_early_step_too():
    rows = [r | {"step": {0: 0, 10: 1, 100: 5}[r["step"]]} for r in a_log(**{"target": COLLAPSED, "target+english": {}}).rows.values()]
    assert judged(bench.Log(rows))["C2"] == "reproduced"


def test_noise_over_seeds_that_straddles_a_bound_is_not_taken_for_equality():
    rows = a_log(**{"target": {}, "target+english": {}}).rows.values()
    for r in rows:
        if r["arm"] == "target":
            r["ppl_target"] *= (0.9, 1.0, 1.2)[r["seed"]]
    assert judged(bench.Log(rows))["C1"] == "inconclusive"


def test_c7_wants_a_smaller_shift_and_a_higher_perplexity_at_every_rank():
    hindered = dict(ppl_target=5.5, shift_l2=1.0)
    arms = {"target": {}} | dict.fromkeys(bench.RANKS, hindered)
    assert judged(a_log(**arms), "constraints") == {"C7": "reproduced"}
    assert judged(a_log(**arms | {"lora-64": {"shift_l2": 1.0}}), "constraints") == {"C7": "partly"}
    assert judged(a_log(**{"target": {}} | dict.fromkeys(bench.RANKS, {})), "constraints") == {"C7": "not reproduced"}
    assert judged(a_log(**{"target": {}, "lora-1": hindered}), "constraints") == {"C7": "not run"}


@pytest.mark.parametrize("gaps, verdict", [([40, 30, 25, 20, 5], "reproduced"), ([12, 10, 9, 8, 5], "partly"),
                                           ([20] * 5, "not reproduced"), ([5, 10, 15, 20, 30], "not reproduced")])
def test_c8_wants_a_larger_gap_from_the_weaker_base(gaps, verdict):
    arms = {}
    for base, gap in zip(bench.SEEN, gaps):
        arms |= {base: {"label_target": 90.0 - gap}, f"{base}+english": {"label_target": 90.0}}
    assert judged(a_log(**arms), "languages") == {"C8": verdict}
    floor = arms | {"seen-0.1+english": {"label_target": 55.0}}
    assert judged(a_log(**floor), "languages") == {"C8": "inconclusive"}  # nothing emerges that could be saved


def test_the_shift_at_equal_perplexity_lies_between_two_evaluations():
    rows = []
    for step, ppl, shift in ((0, 100.0, 0.0), (10, 10.0, 2.0), (100, 1.0, 6.0)):
        rows.append({"arm": "a", "seed": 0, "step": step, "curve_ppl_target": ppl, "shift_l2": shift})
    assert bench.shift_at(bench.Log(rows), "a", [10 ** 0.5]) == pytest.approx([4.0])


def test_the_gain_from_shots_is_of_the_five_rules_that_need_them(world):
    items = bench.copain_items(world, 4)
    shots = {item: item.answer for item in items}
    none = {item: item.answer if item.task.endswith("_group") else "" for item in items}
    row = bench.copain_row(items, {"prompt": shots, "zero_shot": none}, {item: [0.0] * 4 for item in items})
    assert (row["copain"], row["five"], row["five_zero-shot"], row["gain"]) == (100, 100, 0, 100)
    assert row["copain_zero-shot"] == pytest.approx(200 / 7)


def test_the_query_of_the_recall_probe_is_one_of_its_shots_with_the_same_letter():
    for item in bench.recall_items(20):
        *shots, query = item.prompt.split(";")
        assert f"{query} {item.answer}" in shots and len(set(item.choices)) == 6


@pytest.mark.parametrize("values, low, high", [
    ([0.0, 1.0], -5.853, 6.853),                  # s = 0.7071, t(1) = 12.706, 12.706 * 0.7071 / 1.4142 = 6.353
    ([1.0, 2.0, 3.0, 4.0, 5.0], 1.0368, 4.9632),  # s = 1.5811, t(4) = 2.776, 2.776 * 1.5811 / 2.2361 = 1.9632
    ([2.0] * 7, 2.0, 2.0)])
def test_the_t_interval_against_the_closed_form(values, low, high):
    e = Estimate.of(values)
    assert (e.low, e.high) == pytest.approx((low, high), abs=1e-3)


@pytest.mark.parametrize("n, t", [(2, 1), (3, 2), (5, 4)])
def test_the_quantiles_are_students_by_their_closed_form_distribution_functions(n, t):
    x = bench.T_975[n - 2]
    cdf = {1: lambda: 0.5 + math.atan(x) / math.pi, 2: lambda: 0.5 + x / (2 * math.sqrt(2 + x * x)),
           4: lambda: 0.5 + 3 / 8 * (x / math.sqrt(1 + x * x / 4)) * (1 - x * x / (12 * (1 + x * x / 4)))}[t]()
    assert cdf == pytest.approx(0.975, abs=2e-5)


def test_pairing_by_run_takes_the_spread_between_runs_out_of_a_difference():
    rows = [{"arm": arm, "seed": seed, "step": 1, "copain": 10.0 * seed + (5 if arm == "a" else 0) + 0.01 * seed}
            for arm in "ab" for seed in range(4)]
    log = bench.Log(rows)
    difference = bench.difference(log, "copain", "a", "b")
    assert difference.mean == pytest.approx(5) and difference.high - difference.low < 0.1
    assert Estimate.of(log("a", "copain")).high > 30


def test_intervals_end_where_percentages_and_perplexities_do():
    values = dict(copain=[99.0, 100.0, 95.0], label_ppl_target=[1.01, 1.2, 1.001], shift_l2=[0.1, 0.2, 0.9])
    log = bench.Log([{"arm": "a", "seed": seed, "step": 1} | {key: xs[seed] for key, xs in values.items()}
                     for seed in range(3)])
    copain, ppl, shift = (log.estimate("a", key) for key in values)
    assert copain.high == 100 and ppl.low == 1 and shift.low < 0
    assert ppl.mean == pytest.approx((1.01 * 1.2 * 1.001) ** (1 / 3))


def test_a_curve_is_of_the_sample_and_c2_compares_sample_with_sample():
    log = a_log(**{"target": COLLAPSED, "target+english": {}})
    assert log.curve("target", "copain", 10).tolist() == [5.0] * 3
    rows = [r | {"curve_copain": 8.0} if r["step"] == 0 else r for r in log.rows.values()]
    log = bench.Log(rows)
    assert log.curve("target", "copain", 0).tolist() == [8.0] * 3
    assert bench.judge_c2(log) == ("partly", bench.judge_c2(log)[1])  # 5 is more than half of 8
    assert "lowest early Copain without English 62% of" in bench.judge_c2(log)[1]


def test_verdicts_at_the_best_rates_take_each_arm_where_its_perplexity_is_lowest():
    slow = dict(ppl_target=4.0)
    log = a_log(**{"target": COLLAPSED, "target-lr-0.5": slow, "target+english": {}, "target+english-lr-0.5": {"ppl_target": 5.0}})
    (chosen,) = bench.variants(log, dataclasses.asdict(train.STUDIES["learning-rate"])).values()
    assert chosen == {"target": "target-lr-0.5", "target+english": "target+english"}
    best = bench.renamed(log, chosen)
    assert judged(log)["C2"] == "reproduced" and judged(best)["C2"] == "not reproduced"  # the slower arm loses nothing


def test_c8_is_judged_again_where_each_arm_has_the_rate_of_its_lowest_perplexity():
    arms = {base + end: {"label_target": 90.0 if end else 50.0} for base in bench.SEEN for end in ("", "+english")}
    log = a_log(**arms, **{"seen-0.1-lr-0.1": {"label_target": 90.0, "ppl_target": 4.0}})
    (chosen,) = bench.variants(log, dataclasses.asdict(train.STUDIES["languages"])).values()
    assert chosen == dict(zip(arms, arms)) | {"seen-0.1": "seen-0.1-lr-0.1"}
    common, best = (bench.verdicts(x, "languages")[0]["number"] for x in (log, bench.renamed(log, chosen)))
    assert "weakest base 40.0, strongest 40.0" in common and "weakest base 0.0, strongest 40.0" in best


def test_the_study_schedule_judges_the_claims_of_main_with_each_schedule():
    log = a_log(**{"target": COLLAPSED, "target+english": {}, "target-paper": {}, "target+english-paper": {}})
    chosen = bench.variants(log, dataclasses.asdict(train.STUDIES["schedule"])).values()
    verdicts = [judged(bench.renamed(log, arms))["C2"] for arms in chosen]
    assert verdicts == ["reproduced", "not run", "not reproduced"]  # at -at-40 there is no arm


def test_a_variant_is_judged_on_the_runs_that_have_finished_all_arms_of_the_study():
    rows = [*a_log(**{arm: {} for arm in ("near", "near+english", "far")}).rows.values()]
    log = bench.Log([row for row in rows if (row["arm"], row["seed"], row["step"]) != ("far", 2, 100)], last=100)
    assert log.seeds == [0, 1] and bench.renamed(log, {"target": "near", "target+english": "near+english"}).seeds == [0, 1]


@pytest.mark.parametrize("study, collapsed, sound", [
    ("scale", ("small-target", "small-target+english"), ("large-target", "large-target+english")),
    ("distance", ("far", "far+english"), ("none", "none+english")),
    ("optimizer", ("target", "target+english"), ("filled-moments", "filled+english"))])
def test_a_study_of_models_languages_or_optimizers_judges_the_claims_for_each(study, collapsed, sound):
    log = a_log(**{collapsed[0]: COLLAPSED, collapsed[1]: {}, sound[0]: {}, sound[1]: {}})
    chosen = bench.variants(log, dataclasses.asdict(train.STUDIES[study])).values()
    found = [(arms, judged(bench.renamed(log, arms))["C2"]) for arms in chosen if arms]
    assert [(tuple(arms.values()), verdict) for arms, verdict in found] == [(collapsed, "reproduced"), (sound, "not reproduced")]


def test_a_share_of_a_gap_is_of_what_english_gains_in_the_same_variant():
    low, high = dict(copain=20.0), dict(copain=80.0)
    log = a_log(**{"target-paper": low, "target+english-paper": high, "ema-paper": dict(copain=50.0), "target": low})
    rows = bench.pairs_table(log, [("ema-paper", "target-paper"), ("ema-paper", "target")]).splitlines()[2:]
    assert "| 50% " in rows[0] and "%" not in rows[1]  # there is no target+english beside target


@pytest.mark.parametrize("verdicts, words", [
    (["C1", "C2", "C5", "C6"], "Without English: same perplexity, but in-context learning collapses; a curriculum or an EMA prevents it"),
    (["C2", "C5"], "Without English, in-context learning collapses; a curriculum prevents it"), (["C1", "C5"], "")])
def test_the_title_of_a_figure_says_no_more_than_the_verdicts(verdicts, words):
    claims = [dict(id=c, verdict="reproduced" if c in verdicts else "partly") for c in ("C1", "C2", "C3", "C4", "C5", "C6")]
    assert bench.headline(claims) == words
    assert bench.headline([dict(claim="LoRA hinders learning", verdict="partly")]) == "LoRA hinders learning: partly"


# ------------------------------------------------------------------------------------------------ reports of a log
def write_study(folder, rows, study="main", steps=100):
    """A study's folder as train.py leaves it."""
    arms = {row["arm"]: dict(curriculum="target=rest", lr_scale=1.0, base="", start="", steps=0) for row in rows}
    info = dataclasses.asdict(train.STUDIES[study]) | {
            "study": study, "question": "Why?", "pairs": [["target+english", "target"]], "arms": arms, "left_out": [],
            "machines": [dict(processor="CPU", cores=2, torch="2")], "commits": ["abc"],
            "settings": dict(preset="laptop", steps=steps, device="cpu", dtype="float32")}
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "settings.json").write_text(json.dumps(info | {"sha256": sha256(folder / "metrics.jsonl")}))
    return folder


def some_rows(seeds=2):
    """Rows of a sound log of two arms; its intermediate rows are of the sample alone."""
    rows = []
    for row in a_log(seeds, **{"target": COLLAPSED, "target+english": {}}).rows.values():
        metrics = {key: float(row[key]) for key in ("ppl_target", "ppl_english", "copain", "gain", "label_target",
                                                    "label_ppl_target")}
        metrics |= dict(copain_not_in_list=1.0, copain_wrong_element=2.0)
        metrics["copain_tasks"] = dict.fromkeys(COPAIN_TASKS, metrics["copain"])
        names = dict(arm=row["arm"], seed=row["seed"], step=row["step"], data_seed=row["seed"], bench_seed=7,
                     settings="x", train_loss=2.0 if row["step"] else None, shift_l2=1.0 + row["step"],
                     shift_relative=0.1, tokens_target=row["step"])
        sample = {f"curve_{key}": x for key, x in metrics.items()}
        rows.append(names | sample | (metrics if row["step"] != 10 else {}))
    return rows


def test_a_report_says_of_which_items_a_table_is_and_has_every_rule(tmp_path):
    bench.report(write_study(tmp_path / "study", some_rows()))
    report = (tmp_path / "study/report.md").read_text()
    assert "Of the same third of the items at every step; elsewhere: of all.\n\n" in report
    assert "Percent right with three shots / without, means over 2 runs." in report
    assert re.search(r"\| max_integer_in_list +\| 90 +\| 20 +\| 85 ", report)  # before, target, target+english
    assert (tmp_path / "study/figure.png").stat().st_size > 10_000


def test_chance_and_the_table_of_rules_are_of_the_rules_in_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "draw_figure", lambda *_: None)
    rows = some_rows(1)
    for row in rows:
        for key in [key for key in row if key.endswith("copain_tasks")]:
            row[key] = {"max_integer_in_list": 50.0, "even_integer_in_odd_group": 50.0}
    bench.report(write_study(tmp_path / "study", rows))
    text = (tmp_path / "study/report.md").read_text()
    assert f"Chance: Copain {100 * (1 / 3 + 1 / 4) / 2:.1f}%" in text and "min_integer_in_list" not in text


@pytest.mark.parametrize("study, arms", [
    ("main", ["target", "target+english"]), ("replay-dose", train.DOSES),
    ("learning-rate", ["target-lr-0.1", "target", "target-lr-2", "target+english"]),
    ("distance", ["near", "near+english", "far", "far+english"]), ("optimizer", ["target", "target+english", "no-warm-up"])])
def test_every_study_gets_the_picture_that_it_asks_for(tmp_path, monkeypatch, study, arms):
    drawn, info = [], dataclasses.asdict(train.STUDIES[study])
    for name in ("draw_curves", "draw_along", "draw_ends"):
        monkeypatch.setattr(bench, name, lambda *args, name=name, draw=getattr(bench, name): (drawn.append(name), draw(*args)))
    if study == "distance":
        info["x"] = dict(zip(arms, (0.5, 0.5, 0.25, 0.25)))  # as train.write_study() writes it for the setting `cognates`
    bench.draw_figure(a_log(**dict.fromkeys(arms, {})), info, tmp_path / "figure.png", "What it says")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert drawn == [{"main": "draw_curves", "optimizer": "draw_ends"}.get(study, "draw_along")]


def test_two_variants_that_share_their_first_arms_are_both_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "draw_figure", lambda *_: None)
    log = a_log(**dict.fromkeys(["target", "target+english", "up", "down"], {}))
    judge = [dict(zip(train.MAIN, ("target", "target+english", name))) for name in ("up", "down")]
    assert [arms["curriculum"] for arms in bench.variants(log, dict(judge=judge, judge_best=False)).values()] == ["up", "down"]


def test_every_arm_has_a_curve_of_its_own_and_a_metric_without_a_curve_has_no_panel(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(bench, "draw_lines", lambda log, path, heading, keys, lines, *_: drawn.append((keys, lines)))
    monkeypatch.setitem(bench.PANELS, "cloze_target", "Cloze")
    bench.draw_curves(a_log(**dict.fromkeys(["target", "near", "far", "far+english"], {})), tmp_path / "x", "")
    ((keys, lines),) = drawn
    assert len({style for style, _ in lines}) == 4 and "copain" in keys and "cloze_target" not in keys


def test_an_arm_without_a_place_along_x_makes_the_picture_one_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "draw_ends", lambda log, path, heading: path.write_text(heading))
    arms = {**train.DOSES, "no-place": 0}
    bench.draw_figure(a_log(**dict.fromkeys(arms, {})), dataclasses.asdict(train.STUDIES["replay-dose"]), tmp_path / "x", "What")
    assert "hollow: gain from shots" in (tmp_path / "x").read_text()


@pytest.mark.parametrize("break_it", [
    lambda text: text[:-1], lambda text: text + text.splitlines()[-1], lambda text: text.replace("85.0", "86.0", 1),
    lambda text: text.replace("85.0", "NaN"), lambda text: "\n".join(text.splitlines()[1:]) + "\n", lambda text: ""])
def test_a_log_with_any_change_is_refused_in_one_line(tmp_path, break_it):
    folder = write_study(tmp_path / "study", some_rows())
    good = (folder / "metrics.jsonl").read_text()
    assert break_it(good) != good
    (folder / "metrics.jsonl").write_text(break_it(good))
    with pytest.raises(ValueError, match="metrics.jsonl is not what train.py wrote") as e:
        bench.report(folder)
    assert str(folder) in str(e.value) and "rerun the study" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("rows", [[], [row for row in some_rows() if row["step"] < 100]])
def test_a_log_in_which_no_run_has_ended_is_refused(tmp_path, rows):
    with pytest.raises(ValueError, match="no run has finished|damaged"):
        bench.report(write_study(tmp_path / "study", rows))


@pytest.mark.parametrize("steps", [(0, 10, 100), (0,), (100,)])
def test_a_metric_that_some_rows_lack_since_other_code_ran_them_is_left_out(tmp_path, monkeypatch, steps):
    monkeypatch.setattr(bench, "draw_figure", lambda *_: None)
    rows = some_rows()
    for row in rows:
        if row["arm"] == "target" and row["step"] in steps:
            row.pop("ppl_english", None)
    bench.report(write_study(tmp_path / "study", rows))
    assert "English ppl" not in (tmp_path / "study/report.md").read_text()


def test_a_record_of_a_study_without_one_of_its_fields_and_a_study_that_stands_twice_are_refused(tmp_path):
    folder = write_study(tmp_path / "study", some_rows())
    write_study(tmp_path / "again", some_rows())
    with pytest.raises(ValueError, match="holds the study main twice"):
        bench.findings(tmp_path)
    info = json.loads((folder / "settings.json").read_text())
    for key in ("study", "question", "pairs", "judge", "figure", "x", "line", "left_out", "machines", "commits", "sha256"):
        (folder / "settings.json").write_text(json.dumps({name: x for name, x in info.items() if name != key}))
        with pytest.raises(ValueError, match=f"settings.json lacks {key}"):
            bench.report(folder)


def test_two_runs_settle_no_claim_and_three_can(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "draw_figure", lambda *_: None)
    for seeds in (2, 3):
        bench.report(write_study(tmp_path / "study", some_rows(seeds), study="distance"))
        text = (tmp_path / "study/report.md").read_text()
        found = {verdict for verdict in ("reproduced", "partly", "inconclusive") if f"**{verdict}**" in text}
        assert (found == {"inconclusive"}) == (seeds == 2)


def test_an_unfinished_seed_is_said_and_not_averaged(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "draw_figure", lambda *_: None)
    rows = [row for row in some_rows(seeds=3) if (row["arm"], row["seed"], row["step"]) != ("target", 1, 100)]
    assert "means over 2 runs" in bench.report(write_study(tmp_path / "study", rows))
    assert "Not averaged: seed 1, which has not finished target." in (tmp_path / "study/report.md").read_text()


def test_a_log_whose_runs_all_stopped_at_the_same_early_step_is_unfinished(tmp_path):
    with pytest.raises(ValueError, match="no run has finished"):
        bench.report(write_study(tmp_path / "study", [row for row in some_rows() if row["step"] < 100], steps=200))


@pytest.mark.parametrize("low, high", [(4.9, 5.3), (5, 41), (1, 20000), (1.0001, 1.0009), (1, 1e9), (18, 29)])
def test_every_logarithmic_axis_has_three_labelled_ticks_or_more(low, high):
    fig = Figure()
    FigureCanvasAgg(fig)
    ax = fig.subplots()
    ax.set_yscale("log")
    ax.set_ylim(low, high)
    bench.log_ticks(ax.yaxis)
    fig.canvas.draw()
    assert sum(bool(label.get_text()) and low <= y <= high for label, y in zip(ax.get_yticklabels(), ax.get_yticks())) >= 3
