"""Benchmarks from files: the rows as published, the scores as computed by hand, and mistakes named with file and line."""
import json
import math
import re

import pytest
import torch

import bench
from bench import read_choices, read_copain, score_files
from data import Tokenizer, train_bpe
from model import GPT, GPTConfig, save_gpt2

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
    assert items[4].prompt() == " 31; 7; 13 => 31\n 32; 7; 14 => 32\n 33; 7; 15 => 33\n 30; 7; 12 =>"
    assert items[4].answer == "30" and items[4].choices == ("30", "7", "12")
    assert len(read_copain(tmp_path / "CoPain/max_integer_in_list/test.jsonl", 1)[0].shots) == 1


def test_shots_come_from_the_task_itself_without_the_question_or_from_a_given_file(tmp_path):
    path = lines(tmp_path / "task.jsonl", ROWS)
    own = read_choices(path, 2)
    assert own[0].prompt() == "Question 1: which? a much longer dog\n\nQuestion 2: which? two\n\nQuestion 0: which?"
    assert all(item.elements not in [e for e, _ in item.shots] for item in own)
    other = lines(tmp_path / "train.jsonl", [dict(ROWS[0], context="Other?")])
    assert all(i.prompt().startswith("Other? the cat\n\nQuestion") for i in read_choices(path, 1, other))


def by_hand(model, tok, context, choice):
    """Summed log-probability of a choice, one token after another."""
    ids, total = [tok.eot, *tok.encode(context)], 0.0
    for t in tok.encode(f"{context} {choice}")[len(ids) - 1:]:
        total += model(torch.tensor([ids]))[0][0, -1].log_softmax(-1)[t].item()
        ids.append(t)
    return total


def test_scores_equal_a_computation_by_hand(tmp_path, model):
    gpt, tok = model
    row = score_files(gpt, tok, tasks=[lines(tmp_path / "task.jsonl", ROWS)], n_shots=1)
    items = read_choices(tmp_path / "task.jsonl", 1)
    with torch.no_grad():
        scores = [[by_hand(gpt, tok, item.prompt(), c) for c in item.choices] for item in items]
    right = [item.choices.index(item.answer) for item in items]
    summed = [max(range(3), key=lambda k: s[k]) == r for s, r in zip(scores, right)]
    per_byte = [max(range(3), key=lambda k: s[k] / len(i.choices[k])) == r for s, i, r in zip(scores, items, right)]
    assert row["task summed"] == pytest.approx(100 * sum(summed) / 5)
    assert row["task per_byte"] == pytest.approx(100 * sum(per_byte) / 5)
    assert math.log(row["task ppl"]) == pytest.approx(-sum(s[r] for s, r in zip(scores, right)) / 5, rel=1e-4)


def test_a_prompt_longer_than_the_context_loses_its_beginning(tmp_path, model):
    gpt, tok = model
    long = [dict(row, context="many words " * 100 + row["context"]) for row in ROWS]
    path = lines(tmp_path / "task.jsonl", long)
    items = read_choices(path, 3)
    prompts, choices = bench.encode_items(tok, items, [i.prompt() for i in items], gpt.config.block_size - 1)
    assert all(len(p) + max(map(len, cs)) <= gpt.config.block_size for p, cs in zip(prompts, choices))
    assert all(tok.decode(p[1:]).endswith(i.elements[0][-20:]) for p, i in zip(prompts, items))
    assert 0 <= score_files(gpt, tok, tasks=[path], n_shots=3)["task summed"] <= 100


def test_a_gpt2_folder_is_benchmarked_from_the_command_line(tmp_path, model, call):
    gpt, tok = model
    save_gpt2(gpt, tmp_path / "gpt2")
    (tmp_path / "gpt2/tokenizer.json").write_text(tok.to_json())
    (tmp_path / "gpt2/manifest.json").write_text("{}")
    lines(tmp_path / "max_integer_in_list.jsonl", LISTS)
    lines(tmp_path / "task.jsonl", ROWS)
    code, out, err = call(tmp_path, "bench.py", "gpt2", "--copain", "max_integer_in_list.jsonl", "--task", "task.jsonl",
                          "--shots", "2")
    assert code == 0 and "copain " in out and "task per_byte" in out and "max_integer_in_list" in out, err
    assert call(tmp_path, "bench.py", "gpt2")[0] == 2  # of the toy world it knows nothing


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
    (b"\xff", 0, "byte 0xff at offset 0 is not UTF-8"), (b"", 0, "has no row"),
    (GOOD.encode(), 1, "has 1 rows, too few for 1 shots beside the question")])
def test_a_file_that_cannot_be_used_is_named(tmp_path, content, shots, words):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_choices(tmp_path / "rows.jsonl", shots)
