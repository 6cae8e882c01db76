"""Real text and a GPT-2 from its files go through the same commands as the toy world, in miniature: three scripts, no
download."""
import dataclasses
import json
import random
import re

import numpy as np
import pytest
import torch

import train
from curriculum import Curriculum
from data import Tokenizer, prepare
from model import GPT, GPTConfig, load_checkpoint, load_gpt2, model_from_checkpoint, save_gpt2

WORDS = {"eu": "etxe mendi katu txakur ibai eguzki ilargi bide".split(),     # Latin, Arabic and Devanagari script
         "ar": "بيت جبل قطة كلب نهر شمس قمر طريق".split(), "hi": "घर पहाड़ बिल्ली कुत्ता नदी सूरज चाँद रास्ता".split()}
SMALL = ("--preset", "smoke", "--device", "cpu", "--dtype", "float32", "--steps", "6", "--batch_size", "4", "--copain_items", "2",
         "--validation_blocks", "2", "--block_size", "96")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder with three prepared sources of one tokenizer, a GPT-2 of random weights and a file of multiple choice."""
    path, rng = tmp_path_factory.mktemp("text"), random.Random(0)
    for name, words in WORDS.items():
        (path / f"{name}.txt").write_text("\n\n".join(" ".join(rng.choices(words, k=30)) for _ in range(60)))
    every = path / "all"
    every.mkdir()
    for name in WORDS:
        (every / f"{name}.txt").write_text((path / f"{name}.txt").read_text())
    prepare("all", [every], path / "data", tokenizer="bpe", vocab_size=330, val=0.3, workers=1)
    for name in WORDS:
        prepare(name, [path / f"{name}.txt"], path / "data", tokenizer=str(path / "data/all"), val=0.3, workers=1)
    tok = Tokenizer.from_json((path / "data/eu/tokenizer.json").read_text())
    torch.manual_seed(0)
    save_gpt2(GPT(GPTConfig(tok.vocab_size + 5, 128, 2, 2, 32)), path / "gpt2")
    (path / "task.jsonl").write_text("".join(json.dumps(
        {"context": f"{a} {b}:", "choices": [a, b], "label": 0}) + "\n" for a, b in zip(WORDS["eu"], WORDS["eu"][1:])))
    return path


SOURCES = ("--source", "eu=data/eu", "--source", "en=data/ar")


@pytest.fixture(scope="module")
def adapted(text):
    """The study main, two of its arms, from the GPT-2."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(text)
        train.main([*SMALL, *SOURCES, "--init", "gpt2", "--task", "task.jsonl", "--shots", "1", "--name", "eu", "--only",
                    "target,target+english,ema"])
    return text


def test_a_gpt2_is_adapted_with_and_without_english_and_the_report_has_the_same_claims(adapted):
    report = (adapted / "runs/eu/main/report.md").read_text()
    rows = [json.loads(line) for line in (adapted / "runs/eu/main/metrics.jsonl").read_text().splitlines()]
    assert {r["arm"] for r in rows} == {"target", "target+english", "ema"}
    assert all({"curve_ppl_target", "curve_ppl_english", "curve_copain", "curve_label_target"} <= set(r) for r in rows)
    assert all({"ppl_target", "ppl_english", "copain", "label_target"} <= set(r) for r in rows if r["step"] in (0, 6))
    assert "| C1 |" in report and "| C6 |" in report and "cloze task %" not in report and "label task %" in report
    first, last = (next(r for r in rows if r["arm"] == "target" and r["step"] == step) for step in (0, 6))
    assert last["ppl_target"] < first["ppl_target"] and last["tokens_target"] == 6 * 4 * 96


def test_what_was_adapted_exports_to_the_published_format_with_equal_logits(adapted, call):
    code, out, err = call(adapted, "model.py", "runs/eu/seed3000/ema.pt", "--export", "out")
    idx = torch.arange(192).view(2, 96)
    ours = model_from_checkpoint(load_checkpoint(adapted / "runs/eu/seed3000/ema.pt"))
    assert code == 0 and torch.equal(load_gpt2(adapted / "out")(idx)[0], ours(idx)[0]), err
    assert call(adapted, "model.py", "none.pt", "--export", "out2")[0] == 2


def test_any_mixture_of_sources_is_one_arm_of_your_own(text, monkeypatch):
    monkeypatch.chdir(text)
    monkeypatch.setattr(train, "ARMS", dict(train.ARMS))
    s = train.parse_flags([*SMALL, *SOURCES, "--source", "hi=data/hi", "--init", "gpt2", "--curriculum",
                           "target=constant(0.7) english=constant(0.2) hi=constant(0.1)", "--only", "mixed"])
    (job,) = train.plan(s)
    assert job.name == "mixed" and list(Curriculum(job.arm.curriculum).shapes) == ["target", "english", "hi"]
    s = train.parse_flags([*SMALL, *SOURCES, "--init", "gpt2", "--curriculum", "target=rest english=window(0.2, 0, 0.5)",
                           "--ema_alpha", "0.92", "--ema_every", "10"])
    (job,) = train.plan(s)
    assert job.arm == train.Arm("target=rest english=window(0.2, 0, 0.5)", ema_alpha=0.92, ema_every=10)


def test_the_patterns_of_the_toy_world_are_a_source_for_a_base_on_real_text(text, monkeypatch, tmp_path):
    monkeypatch.chdir(text)
    s = train.parse_flags([*SMALL, *SOURCES, "--source", "patterns=english-patterns", "--documents", "200", "--base_steps",
                           "4", "--base_curriculum", "english=rest patterns=constant(0.5)", "--gate_label", "0"])
    base = dataclasses.replace(train.make_job(s, 0, "base"), folder=tmp_path)
    train.prepare(base)
    rows = train.train(base)
    assert rows[-1]["tokens_english"] == rows[-1]["tokens_patterns"] > 0 and "copain" in rows[-1]


def test_a_prepared_source_in_a_folder_with_the_name_of_a_toy_corpus_is_the_prepared_source(text, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "english").symlink_to(text / "data/ar")
    s = train.Settings(source=("eu=elsewhere", "en=english", "patterns=english-patterns"))
    assert [*s.prepared()] == ["target", "english"]


def test_a_base_for_real_text_is_not_continued_on_toy_languages(adapted, call):
    base = "runs/eu/seed3000/target.pt"
    code, _, err = call(adapted, "train.py", *SMALL, "--init", base, "--name", "wrong")
    assert code == 2 and "is a base for real text: give its sources" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("flags, words", [
    (["--source", "eu"], "source is 'eu', expected NAME=FOLDER"), (["--source", "eu=nowhere"], "nowhere is not a prepared source"),
    (["--source", "eu=data/eu", "--source", "eu=data/ar"], "names a source twice"),
    ([*SOURCES, "--curriculum", "target=constant(0.5) xx=constant(0.5)"], "names the source 'xx'; there are target, english"),
    ([*SOURCES, "--curriculum", "target=constant(0.5) english=constant(0.6)"], "must sum to 1, here 1.1"),
    ([*SOURCES, "--curriculum", "eu"], "curriculum"), ([*SOURCES, "--ema_alpha", "0.9"], "go with"),
    ([*SOURCES, "--curriculum", "target=rest", "--only", "ema"], "ema is an arm already"),
    ([*SOURCES, "--curriculum", "target=rest", "--ema_alpha", "7"], "ema_alpha is 7.0"),
    (["--source", "eu=data/eu"], "names the source 'english'"), ([*SOURCES, "--task", "none.jsonl"], "none.jsonl"),
    ([*SOURCES, "--block_size", "100000"], "a block of 100000 needs 100001"), (["--init", "gpt2"], "is a GPT-2, for real text"),
    (["--source", "english=data/eu", "--source", "target=data/ar"], "these names can have no other place"),
    ([*SOURCES, "--source", "english=data/hi"], "these names can have no other place"),
    ([*SOURCES, "--init", "data"], "data/config.json is missing"), (["--source", "eu=data/changed"], "is not what its manifest says")])
def test_a_mistake_about_sources_gets_one_line_and_writes_nothing(text, call, flags, words):
    changed = text / "data/changed"
    if not changed.exists():
        changed.mkdir()
        for file in (text / "data/eu").iterdir():
            (changed / file.name).write_bytes(file.read_bytes())
        with open(changed / "train.bin", "ab") as f:
            f.write(np.zeros(3, dtype=np.uint16).tobytes())
    code, _, err = call(text, "train.py", *SMALL, "--name", "wrong", *flags)
    assert code == 2 and len(err.splitlines()) == 1 and re.search(words, err), err
    assert not (text / "runs/wrong").exists()


def test_sources_of_different_tokenizers_never_mix(text, tmp_path):
    folder = prepare("other", [text / "hi.txt"], tmp_path, tokenizer="bpe", vocab_size=300, val=0.3, workers=1)
    s = train.Settings(name="x", source=("eu=" + str(text / "data/eu"), f"hi={folder}"))
    with pytest.raises(ValueError, match="have different tokenizers"):
        train.plan(s)
