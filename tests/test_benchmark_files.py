"""Benchmarks from files: rows as published, their shots, what fits, and mistakes named with file and line."""
import dataclasses
import json
import math
import re
import sys

import pytest
import torch

import bench
from bench import Benchmark, Item, choice_metrics, encode_item, fit, read_choices, read_copain
from data import Tokenizer, train_bpe
from model import GPT, GPTConfig, save_gpt2

ROWS = [{"context": f"Question {i}: which?", "choices": ["the cat", "a much longer dog"], "label": i % 2}
        for i in range(5)]
LISTS = [{"id": i, "list": [30 + i, 7, 12 + i], "target": 30 + i} for i in range(5)]
OTHER = [dict(row, choices=row["choices"][::-1], label=1 - row["label"]) for row in ROWS]
SPACES = [dict(row, context=f" {row['context'].replace(' ', '  ')} ") for row in ROWS]
REVERSED = [dict(row, list=row["list"][::-1]) for row in LISTS]
GOOD, LIST = json.dumps(ROWS[0]), json.dumps(LISTS[0])


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def model():
    """A small model with a tokenizer for these texts."""
    tok = Tokenizer(train_bpe([json.dumps(ROWS), "1; 2 => 3"], 330))
    torch.manual_seed(0)
    return GPT(GPTConfig(tok.vocab_size, 128, 2, 2, 32)), tok


def test_rows_become_items_with_the_next_rows_as_shots_around_the_end_of_the_file(tmp_path):
    file = lines(tmp_path / "CoPain/max_integer_in_list/test.jsonl", LISTS)
    letters = [{"input": [x, "a", "a"], "target": "a"} for x in "bcde"]  # a list may repeat an element
    lines(tmp_path / "CoPain/first_character_in_list.jsonl", letters)
    items = read_copain(tmp_path / "CoPain")
    assert [i.task for i in items] == ["first_character_in_list"] * 4 + ["max_integer_in_list"] * 5
    assert items[4].text() == " 31; 7; 13 => 31\n 32; 7; 14 => 32\n 33; 7; 15 => 33\n 30; 7; 12 =>"
    assert items[4].answer == "30" and items[4].choices == ("30", "7", "12")
    assert items[0].choices == ("b", "a") and read_copain(file, 1)[0].text().count("\n") == 1
    item = read_choices(lines(tmp_path / "task.jsonl", ROWS), 2)[3]
    assert item.text() == "Question 4: which? the cat\n\nQuestion 0: which? the cat\n\nQuestion 3: which?"


@pytest.mark.parametrize("read, rows", [
    (read_choices, ROWS + ROWS), (read_choices, sorted(ROWS * 3, key=str)), (read_choices, ROWS + OTHER),
    (read_choices, SPACES + ROWS), (read_copain, LISTS + LISTS), (read_copain, LISTS + REVERSED)])
def test_shots_never_hold_the_question_nor_each_other(tmp_path, read, rows):
    for item in read(lines(tmp_path / "x.jsonl", rows), 4):
        asked = [sorted(re.findall(r"\w+", x.question)) for x in (item, *item.shots)]
        assert len({str(words) for words in asked}) == 5


@pytest.mark.parametrize("n_shots", [5, -1])
def test_too_few_different_rows_are_a_mistake_that_says_how_many_there_are(tmp_path, n_shots):
    words = f"--shots is {n_shots}; the questions of .*x.jsonl allow 0 to 4"
    for read, rows in ((read_choices, ROWS + SPACES), (read_copain, LISTS + REVERSED)):
        with pytest.raises(ValueError, match=words):
            read(lines(tmp_path / "x.jsonl", rows), n_shots)


def test_a_prompt_that_is_too_long_loses_whole_shots_from_the_left(tmp_path, model):
    tok, (item, *_) = model[1], read_choices(lines(tmp_path / "task.jsonl", ROWS), 3)

    def tokens(n_shots):
        fewer = dataclasses.replace(item, shots=item.shots[3 - n_shots:])
        forms = [encode_item(tok, fewer, form) for form in ("prompt", "shuffled")]
        return max(len(prompt) + len(choice) for prompt, choices in forms for choice in choices)

    for n in range(4):
        (fitting,), lost = fit(tok, [item], tokens(n) + n)
        assert fitting.shots == item.shots[3 - n:] and fitting.question == item.question
        assert lost == {"lost_shots": int(n < 3), "cut": 0}
    (fitting,), lost = fit(tok, [item], tokens(0) - 2)
    assert fitting.shots == () and lost == {"lost_shots": 1, "cut": 1}
    assert item.question.endswith(fitting.question) and fitting.question


def test_a_benchmark_counts_what_prompts_lost_and_refuses_impossible_items(world, tok, tmp_path, monkeypatch):
    rows, long = [dict(row) for row in ROWS], "many words " * 30
    rows[2]["context"] = long + rows[2]["context"]
    b = Benchmark(world, tok, 3, 0, 0, 0, [lines(tmp_path / "task.jsonl", rows)], 1, 64)
    assert b.lost == {"task": {"lost_shots": 2, "cut": 1}}  # one shows the long row, one asks it
    rows[2]["choices"] = ["two", long]
    with pytest.raises(ValueError, match="task.jsonl: 64 tokens cannot hold the choices of 'many words many"):
        Benchmark(world, tok, 3, 0, 0, 0, [lines(tmp_path / "task.jsonl", rows)], 1, 64)
    monkeypatch.setattr(bench, "recall_items", lambda *_, **__: [Item("mine", " 1 =>", "3", ("1", "2"))])
    with pytest.raises(ValueError, match="mine: an answer is none of its choices"):
        Benchmark(world, tok, 3, 0, 0)


def test_accuracies_per_choice_and_per_byte_by_hand_where_equal_choices_share_a_hit(monkeypatch):
    items = [Item("t", "q", answer, ("ab", "año", "abcdefgh")) for answer in ("ab", "año", "abcdefgh", "ab")]
    scores = [[-4.0, -8.0, -8.0], [-4.0, -8.0, -8.1], [-2.0, -4.1, -8.0], [-8.0, -8.0, -9.0]]
    # by bytes, 2, 4 and 8 of them: -2, -2, -1    -2, -2, -1.01           -1, -1.025, -1      -4, -2, -1.125
    monkeypatch.setattr(bench, "choice_logprobs", lambda *_: scores)
    monkeypatch.setattr(bench, "encode_item", lambda *_: ([], []))
    found = choice_metrics(None, None, items).values()  # right: one and a half; per byte: half of the third
    assert [*found] == pytest.approx([100 * 1.5 / 4, 100 * 0.5 / 4, 100 / 3, 4, math.exp(28 / 4)])


def test_the_mean_over_several_tasks_is_the_label_task(world, model, tmp_path):
    gpt, tok = model
    files = [lines(tmp_path / f"{name}.jsonl", rows) for name, rows in (("a", ROWS), ("b", ROWS[:3]))]
    row = Benchmark(world, tok, 1, 0, 0, 0, files, 1, 128)(gpt)
    alone = [Benchmark(world, tok, 1, 0, 0, 0, [file], 1, 128)(gpt) for file in files]
    assert (row["a items"], row["b items"]) == (5, 3) and {"a acc_norm", "b acc_norm"} <= row.keys()
    for key in ("label_target", "label_target_zero-shot", "label_target_shuffled"):
        assert row[key] == pytest.approx((alone[0][key] + alone[1][key]) / 2)
    assert row["label_ppl_target"] ** 2 == pytest.approx(row["a ppl"] * row["b ppl"])
    assert [row["a acc"], row["b acc"]] == [x["label_target"] for x in alone]


@pytest.fixture
def command(tmp_path, model, call):
    """command(*flags): what `bench.py gpt2 FLAGS` prints in a folder with a GPT-2 and benchmark files."""
    pytest.importorskip("safetensors")
    save_gpt2(model[0], tmp_path / "gpt2")
    (tmp_path / "gpt2/tokenizer.json").write_text(model[1].to_json())
    (tmp_path / "gpt2/manifest.json").write_text("{}")
    lines(tmp_path / "max_integer_in_list.jsonl", LISTS)
    lines(tmp_path / "eu/task.jsonl", ROWS)
    lines(tmp_path / "es.jsonl", ROWS[::-1])
    lines(tmp_path / "task.jsonl", ROWS)
    return lambda *flags: "".join(call(tmp_path, "bench.py", "gpt2", *flags)[1:])


def test_a_gpt2_folder_is_benchmarked_on_files_by_default_with_three_shots_and_five(command):
    copain, task = ("--copain", "max_integer_in_list.jsonl"), ("--task", "eu/task.jsonl")
    assert command(*copain) == command(*copain, "--shots", "3") != command(*copain, "--shots", "1")
    assert command(*task).startswith("gpt2\nerror: --shots is 5")
    out = command(*copain, *task, "--task", "es.jsonl", "--shots", "4")
    for name in ("copain", "copain_restricted", "max_integer_in_list", "copain lost_shots", "task acc",
                 "task acc_norm", "task ppl", "es items", "es cut"):
        assert f"\n{name} " in out
    assert "error: two files of --task have one name" in command(*task, "--task", "task.jsonl")
    assert "error: gpt2 is not of the toy world" in command()


def test_samples_begin_as_asked_and_letters_that_a_terminal_lacks_are_replaced(command):
    sys.stdout.reconfigure(encoding="ascii")
    out = command("--sample", "Question é")
    assert out.startswith("gpt2\nQuestion ?") and out.count("Question ?") == 3


@pytest.mark.parametrize("read, line, words", [  # line: the second of the file
    (read_choices, GOOD.replace("context", "ctx"), "expected `context`, .*found {'ctx'"),
    (read_choices, GOOD.replace('"choices"', '"options"'), "expected .*`choices`"),
    (read_choices, GOOD.replace("a much longer dog", "the cat "), "expected .*different texts"),
    (read_choices, GOOD.replace('"a much longer dog"', "null"), "expected .*different texts"),
    (read_choices, GOOD.replace(', "a much longer dog"', ""), "expected .*two or more"),
    (read_choices, GOOD.replace('"label": 0', '"label": 2'), "expected .*`label`.*'label': 2"),
    (read_choices, GOOD.replace('"label": 0', '"label": true'), "expected .*'label': True"),
    (read_copain, LIST.replace("[30, 7, 12]", "[30, 30]"), "expected one list of different"),
    (read_copain, LIST.replace("[30, 7, 12]", "[[1], [2]]"), "expected one list"),
    (read_copain, LIST.replace('"target": 30', '"target": 31'), "expected .*one of them.*'target': 31"),
    (read_copain, LIST.replace("target", "answer"), "expected .*`target`.*'answer': 30")])
def test_a_wrong_row_is_refused_in_one_line_with_file_and_line(tmp_path, read, line, words):
    (tmp_path / "rows.jsonl").write_text("\n".join([GOOD if read is read_choices else LIST, line]))
    with pytest.raises(ValueError, match="rows.jsonl, line 2: " + words) as e:
        read(tmp_path / "rows.jsonl", 0)
    assert "\n" not in str(e.value)
