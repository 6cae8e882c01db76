"""Benchmarks from files: the rows as published, the scores as computed by hand, and mistakes named with file and line."""
import dataclasses
import json
import math
import re

import pytest
import torch

from bench import Benchmark, encode_item, read_choices, read_copain, score_files
from data import Tokenizer, World, train_bpe
from model import GPT, GPTConfig, save_checkpoint, save_gpt2

ROWS = [{"context": f"Question {i}: which?", "choices": ["the cat", "a much longer dog", "two"], "label": i % 3}
        for i in range(5)]
LISTS = [{"id": i, "list": [30 + i, 7, 12 + i], "target": 30 + i} for i in range(5)]


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def model():
    """A small model with a tokenizer for these texts, far from ties."""
    tok = Tokenizer(train_bpe([json.dumps(ROWS), "1; 2 => 3"], 330))
    torch.manual_seed(0)
    model = GPT(GPTConfig(tok.vocab_size, 64, 2, 2, 32))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8)
    return model, tok


def test_copain_is_read_from_one_file_or_a_folder_of_tasks_as_published(tmp_path):
    lines(tmp_path / "CoPain/max_integer_in_list/test.jsonl", LISTS)
    lines(tmp_path / "CoPain/first_character_in_list.jsonl", [{"input": ["b", "a"], "target": "a"}] * 4)
    items = read_copain(tmp_path / "CoPain", n_shots=3)
    assert [i.task for i in items] == ["first_character_in_list"] * 4 + ["max_integer_in_list"] * 5
    assert items[4].prompt == " 31; 7; 13 => 31\n 32; 7; 14 => 32\n 33; 7; 15 => 33\n 30; 7; 12 =>"
    assert items[4].answer == "30" and items[4].choices == ("30", "7", "12")
    assert read_copain(tmp_path / "CoPain/max_integer_in_list/test.jsonl", 1)[0].prompt.count("\n") == 1


def test_shots_come_from_the_task_itself_without_the_question(tmp_path):
    own = read_choices(lines(tmp_path / "task.jsonl", ROWS), 2)
    assert own[0].prompt == "Question 1: which? a much longer dog\n\nQuestion 2: which? two\n\nQuestion 0: which?"
    assert all(item.prompt.count(item.zero_shot) == 1 for item in own)


def by_hand(model, tok, context, choice):
    """Summed log-probability of a choice, one token after another."""
    ids, total = [tok.eot, *tok.encode(context)], 0.0
    for t in tok.encode(f"{context} {choice}")[len(ids) - 1:]:
        total += model(torch.tensor([ids]))[0][0].log_softmax(-1)[t].item()
        ids.append(t)
    return total


def test_scores_equal_a_computation_by_hand(tmp_path, model):
    gpt, tok = model
    path = lines(tmp_path / "task.jsonl", ROWS)
    row, items = score_files(gpt, tok, tasks=[path], n_shots=1), read_choices(path, 1)
    with torch.no_grad():
        scores = [[by_hand(gpt, tok, item.prompt, c) for c in item.choices] for item in items]
    right = [item.choices.index(item.answer) for item in items]
    summed = [max(range(3), key=lambda k: s[k]) == r for s, r in zip(scores, right)]
    assert row[f"{path} %"] == pytest.approx(100 * sum(summed) / 5)
    assert math.log(row[f"{path} ppl"]) == pytest.approx(-sum(s[r] for s, r in zip(scores, right)) / 5, rel=1e-4)


def test_a_prompt_longer_than_the_context_loses_its_beginning(tmp_path, model):
    gpt, tok = model
    long = [dict(row, context="many words " * 100 + row["context"]) for row in ROWS]
    path = lines(tmp_path / "task.jsonl", long)
    items = read_choices(path, 3)
    for item in items:
        prompt, choices = encode_item(tok, item, longest=gpt.config.block_size)
        assert len(prompt) + max(map(len, choices)) == gpt.config.block_size
        assert tok.decode(prompt[1:]).endswith(item.zero_shot[-20:])
    assert 0 <= score_files(gpt, tok, tasks=[path], n_shots=3)[f"{path} %"] <= 100


def test_a_gpt2_folder_is_benchmarked_from_the_command_line(tmp_path, model, call):
    gpt, tok = model
    save_gpt2(gpt, tmp_path / "gpt2")
    (tmp_path / "gpt2/tokenizer.json").write_text(tok.to_json())
    (tmp_path / "gpt2/manifest.json").write_text("{}")
    lines(tmp_path / "max_integer_in_list.jsonl", LISTS)
    lines(tmp_path / "task.jsonl", ROWS)
    code, out, err = call(tmp_path, "bench.py", "gpt2", "--copain", "max_integer_in_list.jsonl", "--task", "task.jsonl",
                          "--shots", "2")
    assert code == 0 and "copain " in out and "task.jsonl %" in out and "max_integer_in_list" in out, err
    assert call(tmp_path, "bench.py", "gpt2")[0] == 2  # of the toy world it knows nothing
    code, out, err = call(tmp_path, "bench.py", "gpt2", "--sample", "Question 0")
    assert code == 0 and out.splitlines()[:2] == ["gpt2", "--- documents that begin with 'Question 0'"], err
    assert out.count("\nQuestion 0") == 3


def test_samples_of_a_checkpoint_begin_in_the_language_and_say_whose_they_are(tmp_path, model, call):
    gpt, tok = model
    ckpt = {"config": dataclasses.asdict(gpt.config), "model": gpt.state_dict(), "ema": {}, "step": 7,
            "job": {"name": "ema", "arm": {"lora_rank": 0, "shadow": False}}, "tokenizer": tok.to_json(),
            "world": dataclasses.asdict(World()), "benchmark": [2, 0, 2, 0, "", 5, 64], "settings": {"source": []}}
    save_checkpoint(tmp_path / "x.pt", ckpt)
    code, out, err = call(tmp_path, "bench.py", "x.pt", "--sample")
    assert code == 0 and out.startswith("x.pt: ema, step 7\n--- documents in the language target\n "), err
    code, out, _ = call(tmp_path, "bench.py", "x.pt", "--sample", "--language", "english")
    assert code == 0 and "in the language english" in out
    code, _, err = call(tmp_path, "bench.py", "x.pt", "--sample", "--language", "French")
    assert code == 2 and "language 'French' is not in this checkpoint: english, target, third" in err


GOOD = json.dumps(ROWS[0])
LIST = json.dumps(LISTS[0])
BAD = [  # flag, second line of the file, words
    ("--task", '{"context": ', "line 2: not JSON"), ("--task", "[1, 2]", "line 2: .* not an object"),
    ("--task", GOOD.replace("context", "ctx"), "line 2: `context` is None"),
    ("--task", GOOD.replace('"Question 0: which?"', "3"), "line 2: `context` is 3"),
    ("--task", GOOD.replace('"choices"', '"options"'), "line 2: `choices` is None"),
    ("--task", GOOD.replace('"two"', '"the cat"'), "line 2: `choices` is .*different"),
    ("--task", GOOD.replace(', "a much longer dog", "two"', ""), "line 2: `choices`.*two or more"),
    ("--task", GOOD.replace('"label": 0', '"label": 3'), "line 2: `label` is 3, expected a number from 0 to 2"),
    ("--task", GOOD.replace('"label": 0', '"label": "A"'), "line 2: `label` is 'A'"),
    ("--task", GOOD.replace('"label": 0', '"label": true'), "line 2: `label` is True"),
    ("--copain", LIST.replace("[30, 7, 12]", "[30]"), "line 2: expected one list of two or more"),
    ("--copain", LIST.replace("[30, 7, 12]", '"30, 7, 12"'), "line 2: expected one list"),
    ("--copain", LIST.replace("[30, 7, 12]", "[[1], [2]]"), "line 2: expected one list"),
    ("--copain", LIST.replace('"target": 30', '"target": 31'), "line 2: the target is 31, expected one element"),
    ("--copain", LIST.replace("target", "answer"), "line 2: the target is None")]


@pytest.mark.parametrize("flag, line, words", BAD)
def test_a_wrong_row_is_refused_with_file_and_line(tmp_path, model, call, flag, line, words):
    gpt, tok = model
    save_gpt2(gpt, tmp_path / "gpt2")
    (tmp_path / "gpt2/tokenizer.json").write_text(tok.to_json())
    (tmp_path / "gpt2/manifest.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text("\n".join([GOOD if flag == "--task" else LIST, line]))
    code, _, err = call(tmp_path, "bench.py", "gpt2", flag, "rows.jsonl", "--shots", "0")
    assert code == 2 and len(err.splitlines()) == 1 and re.search("rows.jsonl, " + words, err), err


@pytest.mark.parametrize("content, shots, words", [
    (b"\xff", 0, "UTF-8"), (b"", 0, "the 0 rows of .*rows.jsonl"),
    (GOOD.encode(), 1, "--shots is 1, expected 0 or more, and fewer than the 1 rows of .*rows.jsonl")])
def test_a_file_that_cannot_be_used_is_named(tmp_path, content, shots, words):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_choices(tmp_path / "rows.jsonl", shots)


def test_two_task_files_of_one_name_keep_two_results(tmp_path, model):
    """Issue 15, item 4: the first result vanished."""
    gpt, tok = model
    paths = [lines(tmp_path / "eu/task.jsonl", ROWS), lines(tmp_path / "es/task.jsonl", ROWS[::-1])]
    row = score_files(gpt, tok, tasks=paths, n_shots=1)
    assert len({row[f"{path} ppl"] for path in paths}) == 2


@pytest.mark.parametrize("name", ["cloze", "label", "max_integer_in_list"])
def test_the_name_of_a_task_file_has_no_meaning(tmp_path, model, name):
    """Issue 15, item 5: the shots of cloze.jsonl were ignored, and label.jsonl was asked in another format."""
    gpt, tok = model
    rows = {stem: score_files(gpt, tok, tasks=[lines(tmp_path / f"{stem}.jsonl", ROWS)], n_shots=2)
            for stem in (name, "other")}
    assert list(rows[name].values()) == list(rows["other"].values())
    assert read_choices(tmp_path / f"{name}.jsonl", 2)[0].prompt == read_choices(tmp_path / "other.jsonl", 2)[0].prompt


def test_a_negative_number_of_shots_is_refused(tmp_path, call):
    """Issue 15, item 7: it was taken for none."""
    with pytest.raises(ValueError, match="--shots is -1, expected 0 or more"):
        read_choices(lines(tmp_path / "task.jsonl", ROWS), -1)
    with pytest.raises(ValueError, match="--shots is -1, expected 0 or more"):
        read_copain(lines(tmp_path / "lists.jsonl", LISTS), -1)
    code, _, err = call(tmp_path, "bench.py", "x.pt", "--shots", "-1")
    assert code == 2 and "--shots is -1" in err


def test_lines_end_at_a_newline_alone(tmp_path):
    """Issue 15, item 14: raw U+2028 and U+0085, which JSON allows, were taken for ends of lines."""
    row = dict(ROWS[0], context="one\u2028two\x85three")
    (tmp_path / "task.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_choices(tmp_path / "task.jsonl")[0].zero_shot == row["context"]


def test_a_list_that_repeats_its_target_is_skipped_and_counted(tmp_path, capsys):
    """Issue 15, item 18: one such row refused the whole benchmark."""
    path = lines(tmp_path / "max.jsonl", [*LISTS, {"list": [5, 5, 1], "target": 5}])
    assert len(read_copain(path, 1)) == 5
    assert "max.jsonl: rows skipped because their list repeats the target: 1" in capsys.readouterr().err


def leaky(world, tok, tmp_path, context):
    """A benchmark whose task file asks one context, and a source of training that holds it."""
    rows = [dict(ROWS[0], context=context)] + ROWS[1:]
    return Benchmark(world, tok, 3, 0, 0, 0, str(lines(tmp_path / "task.jsonl", rows)), 1), {
        "target": tok.encode_documents(["something", f"so, {context} and on"])}


def test_a_short_context_of_a_task_file_is_no_leak(world, tok, tmp_path):
    """Issue 15, item 17: the first tokens of a few words are everywhere."""
    benchmark, sources = leaky(world, tok, tmp_path, "What is it?")
    benchmark.check_disjoint(sources, lists=False)
    benchmark, sources = leaky(world, tok, tmp_path, "the dog eats the egg and the cat eats the ham, who eats more?")
    sources["target"] = sources["target"][:-8]  # not the whole context
    benchmark.check_disjoint(sources, lists=False)


def test_a_whole_context_of_a_task_file_is_a_leak(world, tok, tmp_path):
    benchmark, sources = leaky(world, tok, tmp_path, "the dog eats the egg and the cat eats the ham, who eats more?")
    with pytest.raises(ValueError, match="benchmark leak: .*who eats more.*'target'"):
        benchmark.check_disjoint(sources, lists=False)


def test_prompts_of_a_task_file_are_shortened_and_do_not_count_as_the_longest(world, tok, tmp_path):
    rows = [dict(row, context="many words " * 100) for row in ROWS]
    path = str(lines(tmp_path / "task.jsonl", rows))
    assert Benchmark(world, tok, 3, 0, 0, 0, path, 1, 64).longest() == Benchmark(world, tok, 3, 0, 0).longest()
