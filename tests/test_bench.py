import math
import time
from random import Random

import numpy as np
import pytest
import torch

import bench
from bench import (Benchmark, Estimate, choice_logprobs, cloze_items, copain_chance, copain_items, greedy_answers,
                   label_items)
from data import CATEGORIES, COPAIN_TASKS, NOUNS, VERBS, list_line, make_language
from model import GPT, GPTConfig

BENCH = dict(n_copain=30, n_label=40, n_cloze=40)


class Scripted(torch.nn.Module):
    """A stand-in for a model: after a prompt it says what `answer(text)` returns, token by token."""

    def __init__(self, tok, answer):
        super().__init__()
        self.tok, self.answer, self.weight = tok, answer, torch.nn.Parameter(torch.zeros(1))

    def forward(self, idx, targets=None, last=None):
        logits = torch.zeros(*idx.shape, self.tok.vocab_size)
        for b, row in enumerate(idx.tolist()):
            for t in range(len(row)) if last is None else last[b].view(-1).tolist():
                text = self.tok.decode([i for i in row[:t + 1] if i != self.tok.eot])
                prompt = text[:max(text.rfind("=>"), 0) + 2]
                said = self.tok.encode(f" {self.answer(prompt)}\n")
                so_far = self.tok.encode(text[len(prompt):])
                logits[b, t, said[min(len(so_far), len(said) - 1)]] = 20.0
        rows = torch.arange(len(idx)) if last is None or last.dim() == 1 else torch.arange(len(idx))[:, None]
        return (logits if last is None else logits[rows, last]), None


# ------------------------------------------------------------------------------------------------------------ items
def test_copain_has_seven_tasks_of_150_items_with_three_shots_each(world):
    items = copain_items(world)
    assert len(items) == 1050 and [sum(i.task == t for i in items) for t in COPAIN_TASKS] == [150] * 7
    assert all(len(i.shots) == 3 for i in items) and len({i.prompt() for i in items}) == 1050


def test_every_item_has_one_right_answer_among_its_choices(world):
    languages = world.languages()
    for item in copain_items(world, 40) + label_items(languages["target"], languages["target"], 40):
        assert item.choices.count(item.answer) == 1 and len(set(item.choices)) == len(item.choices)
        assert item.elements not in [e for e, _ in item.shots]


def test_label_items_use_no_cognate_and_both_labels_equally_in_the_shots(world):
    lang = world.languages()["target"]
    for item in label_items(lang, lang, 50):
        words = [e[0] for e, _ in item.shots] + [item.elements[0]]
        assert len(set(words)) == 7 and not any(w in lang.words for w in words)  # keys are the English words
        assert sorted([a for _, a in item.shots].count(c) for c in item.choices) == [3, 3]


def test_the_english_twin_of_a_label_item_is_its_translation(world):
    english, target, _ = world.languages().values()
    back = {v: k for k, v in target.words.items()}
    for a, b in zip(label_items(english, target, 20), label_items(target, target, 20)):
        assert a.elements == (back[b.elements[0]],) and a.answer == b.answer


@pytest.mark.parametrize("order", ["SVO", "SOV", "VSO", "OVS"])
def test_the_one_right_end_of_a_cloze_sentence_is_the_one_that_the_world_admits(order):
    lang = make_language("x", 0, order, 0.25)
    kind = {lang.words[n]: c for c in CATEGORIES for n in NOUNS[c] if not lang.is_cognate(n)}
    verb = {lang.words[v]: categories for categories, v in VERBS.items()}
    for item in cloze_items(lang, lang, 50):
        assert len(set(item.choices)) == 4
        for choice in item.choices:
            words = f"{item.prompt()} {choice}".rstrip(".").split()
            assert lang.case_marker in words and lang.determiner in words
            nouns = {("O" if lang.case_marker in words[i + 1:i + 3] else "S"): kind[w]
                     for i, w in enumerate(words) if w in kind}
            subject, obj = next(verb[w] for w in words if w in verb)
            assert nouns["S"] == subject and (nouns["O"] == obj) == (choice == item.answer)


def test_an_end_of_several_tokens_is_scored_whole_and_per_token(world, tok):
    b = Benchmark(world, tok, 1, 2, 3)

    class Uniform(torch.nn.Module):  # every token equally likely: fewer tokens win the sum, and nothing the mean
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, idx, last):
            return torch.zeros(*last.shape, tok.vocab_size), None

    items = cloze_items(world.languages()["target"], world.languages()["target"], 60)
    lengths = [[len(c) for c in cs] for cs in b.encode(items, "few-shot")[1]]
    shortest = [min(range(4), key=lambda k: ls[k]) == item.choices.index(item.answer) for ls, item in zip(lengths, items)]
    row = b.choice_scores(Uniform(), items)
    summed, ppl = row["summed"], row["ppl"]
    assert summed == pytest.approx(100 * sum(shortest) / 60) != row["per_token"]
    assert math.log(ppl) == pytest.approx(math.log(tok.vocab_size) * sum(
        ls[item.choices.index(item.answer)] for ls, item in zip(lengths, items)) / 60, rel=1e-4)


def test_items_depend_on_the_benchmark_seed_alone(world):
    assert copain_items(world, 5, seed=1) == copain_items(world, 5, seed=1) != copain_items(world, 5, seed=2)


def test_shuffled_shots_keep_the_form_and_lose_the_rule(world):
    for item in copain_items(world, 10):
        for (elements, right), (same, wrong) in zip(item.shots, item.shuffled_shots()):
            assert elements == same and wrong in elements and wrong != right
    assert copain_items(world, 1)[0].prompt(()).count("=>") == 1  # zero-shot: the query alone


# ------------------------------------------------------------------------------------------------- corpora and leaks
def test_no_prompt_and_no_list_of_the_benchmark_occurs_in_the_corpora(world, tok, sources):
    Benchmark(world, tok, 150, 100, 10).check_disjoint(sources)


@pytest.mark.parametrize("fmt", [(",", " ->"), ("", " :"), (";", " =>")])
def test_a_list_that_leaks_into_a_corpus_is_found_in_any_format(world, tok, sources, fmt):
    b = Benchmark(world, tok, 5, 5, 5)
    leak = tok.encode_documents([list_line(b.copain[7].elements, b.copain[7].answer, fmt)])
    with pytest.raises(ValueError, match="leak.*'english'"):
        b.check_disjoint({"english": np.concatenate([sources["english"], leak])})


def test_a_label_prompt_that_leaks_is_found(world, tok, sources):
    b = Benchmark(world, tok, 5, 5, 5)
    leak = tok.encode_documents([b.label["target"][3].prompt()])
    with pytest.raises(ValueError, match="leak"):
        b.check_disjoint({"target": np.concatenate([sources["target"], leak])})


# ---------------------------------------------------------------------------------------------------------- scoring
def test_an_oracle_scores_100_percent_everywhere(world, tok):
    b = Benchmark(world, tok, 4, 6, 6)
    answers = {item.prompt(): item.answer for items in (b.copain, *b.label.values()) for item in items}
    row = b(Scripted(tok, lambda prompt: answers.get(prompt, "?")))
    assert row["copain"] == row["label_target"] == row["label_english"] == 100
    assert row["copain_not_in_list"] == row["copain_wrong_element"] == 0
    assert row["label_ppl_target"] == pytest.approx(1, abs=1e-3)


def test_a_random_picker_scores_the_chance_line_and_only_wrong_elements(world, tok):
    b = Benchmark(world, tok, **BENCH)
    rng = Random(0)

    def pick(prompt):
        return rng.choice(prompt.rsplit("\n", 1)[-1].replace("=>", "").replace(";", "").split())

    picks = {}
    row = b.copain_scores(Scripted(tok, lambda p: picks.setdefault(p, pick(p) if p.strip() else "?")), b.copain)
    assert copain_chance() == pytest.approx(100 * (5 / 3 + 2 / 4) / 7)
    assert abs(row["copain"] - copain_chance()) < 3 * 100 * math.sqrt(0.31 * 0.69 / 210)
    assert row["copain_not_in_list"] == 0
    assert row["copain"] + row["copain_wrong_element"] == pytest.approx(100)


def test_exact_match_counts_whole_answers_of_several_tokens(tok):
    said = {" 1; 2 =>": "123456", " 3; 4 =>": "12345", " 5; 6 =>": "123456 7"}
    assert len(tok.encode(" 123456")) > 2
    prompts = [tok.encode(p) for p in said]
    answers = greedy_answers(Scripted(tok, said.get), tok, prompts, max_new_tokens=12)
    assert answers == list(said.values())


def test_an_answer_that_does_not_end_is_none(tok):
    prompt = tok.encode(" 1; 2 =>")
    assert greedy_answers(Scripted(tok, lambda p: "1 " * 50), tok, [prompt], max_new_tokens=3) == [None]


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
            logp = model(torch.tensor([prompt + c]))[0][0].log_softmax(-1)
            by_hand = sum(logp[len(prompt) - 1 + j, t].item() for j, t in enumerate(c))
            assert score == pytest.approx(by_hand, abs=1e-5)


def test_perplexity_is_exp_of_the_loss_and_needs_one_block(tiny):
    ids = np.arange(33, dtype=np.uint16) % 10
    x = torch.from_numpy(ids.astype(np.int64))
    loss = tiny(x[:-1].view(2, 16), x[1:].view(2, 16))[1].item()
    assert bench.perplexity(tiny, ids) == pytest.approx(math.exp(loss), rel=1e-5)
    with pytest.raises(ValueError, match="16 tokens"):
        bench.perplexity(tiny, ids[:16])


def test_parameter_shift_is_the_mean_of_the_norms_per_tensor(tiny):
    before = {n: p.detach().clone() for n, p in tiny.named_parameters()}
    assert bench.parameter_shift(tiny, before) == (0, 0)
    with torch.no_grad():
        tiny.transformer.wpe.weight[0, 0] += 3.0
    mean, relative = bench.parameter_shift(tiny, before)
    assert mean == pytest.approx(3 / len(before), rel=1e-5)
    assert relative == pytest.approx(3 / math.sqrt(sum(p.square().sum().item() for p in before.values())), rel=1e-5)


# ----------------------------------------------------------------------------------------------- intervals, verdicts
def test_the_t_interval_of_a_hand_computed_case():
    e = Estimate.of([1.0, 2.0, 3.0])  # s = 1, t(2) = 4.303, 4.303 / sqrt(3) = 2.484
    assert (e.mean, e.low, e.high) == pytest.approx((2, -0.4843, 4.4843), abs=1e-3)
    assert Estimate.of([5.0]) == Estimate(5, 5, 5)


BASE = dict(ppl_target=10.0, ppl_english=5.0, copain=90.0, label_target=50.0, label_ppl_target=3.0, shift_l2=0.0)
EQUAL = dict(ppl_target=4.7, copain=85.0, label_target=95.0, label_ppl_target=1.1, shift_l2=5.0)


def a_log(seeds=3, **arms):
    """A log of arms at steps 0, 10 and 100; what an arm does not give is as target+english has it."""
    rows = []
    for seed in range(seeds):
        for arm, given in arms.items():
            for step in (0, 10, 100):
                end = BASE | EQUAL | given
                row = BASE if step == 0 else end | {"copain": end.get("copain_early", end["copain"])} if step == 10 else end
                rows.append({"arm": arm, "seed": seed, "step": step} | row | {"ppl_target": row["ppl_target"] + 0.01 * seed})
    return bench.Log(rows)


def judged(log, study="main"):
    return {v["id"]: v["verdict"] for v in bench.verdicts(log, study)}


COLLAPSED = dict(copain_early=5.0, copain=20.0, label_target=51.0, label_ppl_target=3.0, shift_l2=40.0)


def test_a_log_in_which_everything_happens_is_reproduced():
    log = a_log(**{"target": COLLAPSED, "target+english": {}, "curriculum": {}, "ema": {}, "low-lr": {}})
    assert judged(log) == dict.fromkeys(["C1", "C2", "C3", "C4", "C5", "C6"], "reproduced")


def test_a_null_effect_is_not_reproduced_and_leaves_nothing_to_repair():
    log = a_log(**{"target": {}, "target+english": {}, "curriculum": {}, "ema": {}, "low-lr": {}})
    assert judged(log) == dict(C1="reproduced", C2="not reproduced", C3="not reproduced", C4="not reproduced",
                               C5="inconclusive", C6="inconclusive")


def test_a_reversed_effect_is_not_reproduced():
    log = a_log(**{"target": {"ppl_target": 9.0, "shift_l2": 1.0}, "target+english": COLLAPSED | {"shift_l2": 5.0}})
    assert [judged(log)[c] for c in ("C1", "C2", "C3", "C4")] == ["not reproduced"] * 4


def test_half_a_repair_is_partly_and_a_repair_that_costs_perplexity_is_no_full_one():
    arms = {"target": COLLAPSED, "target+english": {}, "curriculum": {"copain": 60.0, "label_target": 51.0},
            "ema": {"ppl_target": 6.0}}
    assert judged(a_log(**arms))["C5"] == judged(a_log(**arms))["C6"] == "partly"
    arms["curriculum"] = {"copain": 30.0, "label_target": 51.0}
    assert judged(a_log(**arms))["C5"] == "not reproduced"


def test_a_missing_arm_an_unfinished_seed_or_no_icl_in_the_base_is_inconclusive():
    assert judged(a_log(target=COLLAPSED))["C1"] == "inconclusive"
    log = a_log(seeds=1, **{"target": COLLAPSED, "target+english": {}})
    log = bench.Log([r for r in log.rows if not (r["arm"] == "target" and r["step"] == 100)])
    assert judged(log)["C2"] == "inconclusive"
    rows = [r | {"copain": 20.0} for r in a_log(**{"target": {}, "target+english": {}}).rows]
    assert judged(bench.Log(rows))["C2"] == "inconclusive"


def test_noise_over_seeds_that_straddles_a_bound_is_not_taken_for_equality():
    rows = a_log(**{"target": {}, "target+english": {}}).rows
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
    assert judged(a_log(**{"target": {}, "lora-1": hindered}), "constraints") == {"C7": "inconclusive"}


@pytest.mark.parametrize("gaps, verdict", [([40, 30, 20, 5], "reproduced"), ([12, 9, 8, 5], "partly"),
                                           ([20, 20, 20, 20], "not reproduced"), ([5, 10, 20, 30], "not reproduced")])
def test_c8_wants_a_larger_gap_from_the_weaker_base(gaps, verdict):
    arms = {}
    for base, gap in zip(bench.SEEN, gaps):
        arms |= {base: {"label_target": 60.0 - gap}, f"{base}+english": {"label_target": 60.0}}
    assert judged(a_log(**arms), "languages") == {"C8": verdict}


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
    difference = log.paired(lambda a, b: a - b, ("a", "copain"), ("b", "copain"))
    assert difference.mean == pytest.approx(5) and difference.high - difference.low < 0.1
    assert Estimate.of(log.at("a", "copain").values()).high > 30


# ---------------------------------------------------------------------------------------------------------------- speed
def test_every_part_of_a_step_is_timed_and_peak_memory_is_that_of_the_process(monkeypatch):
    monkeypatch.setattr(bench, "Benchmark", lambda *_: None)
    monkeypatch.setattr(bench, "evaluate", lambda *_, **__: time.sleep(0.02))
    ms = bench.step_phases(dict(vocab_size=800, block_size=16, n_layer=1, n_head=1, n_embd=8), 2, "float32", "cpu", steps=3)
    assert set(ms) == {*bench.PHASES, "step", "evaluation", "MB"} and all(x > 0 for x in ms.values())
    assert 20 <= ms["evaluation"] < 200 and 50 < ms["MB"] < 5000


def test_a_batch_from_a_large_sparse_file_takes_no_more_memory_than_it_reads():
    ms, megabytes = bench.batch_time(2, 10 ** 8)
    assert ms < 50 and megabytes < 20  # the file has 200 MB


def test_nanogpt_is_timed_beside_from_its_own_folder(tmp_path, call):
    (tmp_path / "model.py").write_text(
        "from dataclasses import dataclass\nimport torch, model\n"
        "@dataclass\nclass GPTConfig:\n    block_size: int\n    vocab_size: int\n    n_layer: int\n    n_head: int\n"
        "    n_embd: int\n    bias: bool\n    dropout: float\n"
        "class GPT(model.GPT):\n"
        "    def configure_optimizers(self, decay, lr, betas, device):\n"
        "        return torch.optim.AdamW(self.parameters(), lr=lr)\n")
    shape = dict(vocab_size=50, block_size=16, n_layer=1, n_head=1, n_embd=8)
    assert len(bench.bare_steps(tmp_path, False, shape, 2, "float32", "cpu", steps=4)) == 4
    assert (bench.beside(tmp_path, shape, 2, "float32", "cpu", "", 2, turns=1) > 0).tolist() == [True] * 3
    code, _, err = call(tmp_path, "bench.py", "--speed", "--nanogpt", "nowhere")
    assert code == 2 and "nowhere holds no model.py" in err


def test_steps_that_were_to_be_compiled_and_are_not_are_not_timed(no_compiler):
    with pytest.raises(RuntimeError, match="no C compiler"):
        bench.bare_steps("", False, dict(vocab_size=50, block_size=16, n_layer=1, n_head=1, n_embd=8), 2, "float32", "cpu",
                         "default")
