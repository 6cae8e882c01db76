"""Real text and a GPT-2 from its files go through the same commands as the toy world. In miniature."""
import json
import random
import re

import pytest
import torch

import train
from conftest import rows_of, times
from data import Tokenizer, prepare
from model import GPT, GPTConfig, load_checkpoint, load_gpt2, model_from_checkpoint, save_gpt2
from results import report

WORDS = {"eu": "etxe mendi katu txakur ibai eguzki ilargi bide",  # Latin, Arabic and Devanagari script
         "ar": "بيت جبل قطة كلب نهر شمس قمر طريق", "hi": "घर पहाड़ बिल्ली कुत्ता नदी सूरज चाँद रास्ता"}
SMALL = ("--preset smoke --device cpu --dtype float32 --processes 1 --steps 6 --batch_size 4 "
         "--copain_items 2 --validation_blocks 2 --block_size 96").split()
SOURCES = "--source eu=data/eu --source en=data/ar".split()
ADAPT = [*SMALL, *SOURCES, *"--init gpt2 --shots 1 --name eu --only target,target+english,ema".split()]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder with sources of one tokenizer, one of another, a GPT-2 and two files of multiple choice."""
    pytest.importorskip("safetensors")
    path, rng = tmp_path_factory.mktemp("text"), random.Random(0)
    for name, words in WORDS.items():
        documents = [" ".join(rng.choices(words.split(), k=30)) for _ in range(60)]
        (path / f"{name}.txt").write_text("\n\n".join(documents))
    files = [path / f"{name}.txt" for name in WORDS]
    prepare("all", files, path / "data", tokenizer="bpe", vocab_size=330, val=0.3)
    for name, file in zip(WORDS, files):
        prepare(name, [file], path / "data", tokenizer=path / "data/all", val=0.3)
    prepare("other", files[:1], path / "data", tokenizer="bpe", vocab_size=300, val=0.3)
    tok = Tokenizer.from_json((path / "data/eu/tokenizer.json").read_text())
    torch.manual_seed(0)
    save_gpt2(GPT(GPTConfig(tok.vocab_size + 5, 128, 2, 2, 32)), path / "gpt2")
    rows = [{"context": word, "choices": [word, "ez", "bai"], "label": 0} for word in WORDS["eu"].split()]
    (path / "task.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (path / "other.jsonl").write_text("\n".join(map(json.dumps, rows[::-1])))
    return path


@pytest.fixture(scope="module")
def adapted(text):
    """The folder after arms of the study main from the GPT-2."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(text)
        patch.setattr(report, "draw_figure", lambda *_: None)
        train.main([*ADAPT, "--task", "task.jsonl"])
    return text


def test_a_gpt2_is_adapted_with_and_without_english_and_the_report_has_the_claims_of_main(adapted):
    folder = adapted / "runs/eu/main"
    rows, page = rows_of(folder / "metrics.jsonl"), (folder / "report.md").read_text()
    assert {row["arm"] for row in rows} == {"target", "target+english", "ema"}
    assert all({"ppl_target", "ppl_english", "copain", "label_target"} <= row.keys() for row in rows)
    assert "| C1 |" in page and "label task %" in page and "cloze task %" not in page
    assert "label task 33%" in page  # the chance, of the three choices in the file
    first, last = (next(r for r in rows if r["arm"] == "target" and r["step"] == step) for step in (0, 6))
    assert last["ppl_target"] < first["ppl_target"] and last["tokens_target"] == 6 * 4 * 96


def test_what_was_adapted_exports_to_the_published_format_with_equal_logits(adapted, call):
    code, out, err = call(adapted, "model.py", "runs/eu/seed3000/ema.pt", "--export", "out")
    ours = model_from_checkpoint(load_checkpoint(adapted / "runs/eu/seed3000/ema.pt"))
    idx = torch.arange(96).view(1, 96)
    assert code == 0 and torch.equal(load_gpt2(adapted / "out")(idx)[0], ours(idx)[0]), err


def test_the_same_files_at_another_path_or_behind_a_link_are_the_same_on_a_rerun(adapted, call):
    (adapted / "english").symlink_to(adapted / "data/ar")  # the name of a toy corpus
    (adapted / "gpt2/older_models").mkdir()
    before = times(adapted / "runs/eu", "seed3000/*.pt")
    flags = [x.replace("data/ar", "english").replace("data/eu", f"{adapted}/data/eu/") for x in ADAPT]
    code, _, err = call(adapted, "train.py", *flags, "--task", adapted / "task.jsonl")
    assert code == 0 and times(adapted / "runs/eu", "seed3000/*.pt") == before, err


def test_any_mixture_is_a_line_of_ARMS_with_a_third_language_and_toy_patterns(text, call, monkeypatch):
    monkeypatch.setitem(train.ARMS, "mine", train.Arm("target=rest hi=constant(0.25) patterns=constant(0.5)"))
    more = "--source hi=data/hi --source patterns=english-patterns --documents 200 --init gpt2 --only mine"
    code, _, err = call(text, "train.py", *SMALL, *SOURCES, *more.split(), "--name", "mixed")
    last = rows_of(text / "runs/mixed/seed3000/mine.jsonl")[-1]
    tokens = {name: last[f"tokens_{name}"] for name in ("target", "hi", "patterns")}
    assert code == 0 and tokens == {"target": 6 * 96, "hi": 6 * 96, "patterns": 12 * 96}, err


def test_text_is_the_preset_of_real_text_with_a_base_and_the_block_that_of_the_base(adapted, monkeypatch):
    monkeypatch.chdir(adapted)
    for init, block in (("gpt2", 128), ("runs/eu/seed3000/ema.pt", 96)):
        s = train.parse_flags([*SOURCES, "--init", init])
        assert (s.preset, s.name, s.block_size, s.lr, s.lr_until) == ("text", "text", block, 2e-4, 1.0)
        assert train.parse_flags([*SOURCES, "--init", init, "--block_size", "32"]).block_size == 32
    assert train.parse_flags([*SOURCES, "--init", "gpt2", "--preset", "smoke"]).preset == "smoke"
    assert train.parse_flags([*SOURCES, "--device", "cpu"]).preset == "laptop"


@pytest.mark.parametrize("flags, words", [
    ("--source eu=nowhere", "nowhere"), ("--source eu", "source is eu, expected NAME=FOLDER"),
    ("--source eu=data/eu --source en=data/ar --source english=data/hi", "expected NAME=FOLDER.*`english`"),
    ("--source eu=data/eu --source en=data/other", "different tokenizers.*one --tokenizer"),
    ("--source eu=data/eu --only target+english", "'english'.*target"),
    ("--source eu=data/eu --source en=data/ar --block_size 100000", "needs 100001"),
    ("--source eu=data/eu --source en=data/ar --task none.jsonl", "none.jsonl"),
    ("--source eu=data/eu --source en=data/ar --init data", "data/config.json is missing"),
    ("--source eu=data/eu --source en=data/ar --init none", "no none:.*hf download openai-community/gpt2"),
    ("--source eu=data/eu --source en=data/ar --init gpt2 --block_size 200", "block_size is above 128"),
    ("--init gpt2", "gpt2 is for real text: give sources"), ("--source english=x", "the first becomes `tar"),
    ("--init runs/eu/seed3000/target.pt", "target.pt is for real text: give sources"),
    ("--init gpt2 --source eu=data/hi --source en=data/ar --name eu", "source target '.* there"),
    ("--init gpt2 --source eu=data/eu --source en=english-prose --name eu", "english .*'english-prose'"),
    ("--init runs/eu/seed3000/ema.pt --source eu=data/eu --source en=data/ar --name eu", "init file '"),
    ("--source eu=data/eu --source en=data/ar --name eu", "init file '.*' there, None here"),
    ("--init gpt2 --source eu=data/eu --source en=data/ar --name eu --shots 1 --task other.jsonl",
     "settings: task 1 '.* there, '.* here: choose")])  # so a file is known by what it holds
def test_a_mistake_about_sources_gets_one_line_and_writes_nothing(adapted, call, flags, words):
    before = times(adapted)
    code, _, err = call(adapted, "train.py", *SMALL, "--name", "wrong", *flags.split())
    assert code == 2 and len(err.splitlines()) == 1 and re.search(words, err), err
    assert times(adapted) == before
