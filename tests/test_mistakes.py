"""Every mistake of a user gets one line that says what was found and what to do, exit code 2, and changes no file."""
import re

import pytest
import torch

from conftest import SMOKE
from model import load_checkpoint


class Hostile:
    """What a pickle can do to one who loads it."""

    def __reduce__(self):
        return exec, ("open('hostile', 'w').close()",)


def make(path, name):
    """Makes the broken file of that name; returns nothing."""
    good = (path / "study/runs/smoke/seed3000/ema.pt").read_bytes()
    file = path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if name == "folder.pt":
        file.mkdir()
    elif name == "hostile.pt":
        torch.save({"model": Hostile()}, file)
    elif name == "changed.pt":  # one bit of a weight is not what was written
        weight = load_checkpoint(path / "study/runs/smoke/seed3000/ema.pt")["model"]["transformer.wpe.weight"]
        data, start = bytearray(good), good.find(weight.numpy().tobytes()[:64])
        data[start + 5] ^= 4
        file.write_bytes(data)
    elif name == "other.pt":
        torch.save({"a": 1}, file)
    else:
        file.write_bytes({"empty.pt": b"", "garbage.pt": b"not a checkpoint", "half.pt": good[:len(good) // 2],
                          "runs/no_record/settings.json": b"{", "runs/list_record/settings.json": b"[]", "a_file": b"",
                          "runs/null_record/settings.json": b'{"settings": null, "machines": [], "commits": []}',
                          "runs/smoke": b""}[name])


@pytest.fixture
def folder(tmp_path, study):
    (tmp_path / "study").symlink_to(study[0])
    return tmp_path


def files(path):
    return {p.relative_to(path): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file() and "study" not in p.parts}


GOOD = "study/runs/smoke/seed3000/base.pt"
TRAIN = [
    # flags
    (["--stepz", "5"], "--stepz.*--steps"), (["nonsense"], "nonsense"), (["--lr"], "lr"), (["--steps", "many"], "steps.*many"),
    (["--steps", "1e3"], "steps.*1e3"), (["--list_lengths", "a"], "list_lengths"), (["--preset", "huge"], "huge.*laptop"),
    (["--study", "avg"], "study is 'avg'.*averaging"), (["--only", "taget"], "taget.*target"), (["--only", "ema,"], "only is ''"),
    (["--device", "tpu"], "tpu.*cpu"), (["--dtype", "int8"], "int8.*float32"),
    (["--compile", "fast"], "compile is 'fast'.*max-autotune"),
    (["--compile", "reduce-overhead", "--accumulate", "2"], "CUDA graphs.*--accumulate.*take default"),
    (["--name", "../elsewhere"], "name is '../elsewhere'"), (["--name", ".."], "name is"), (["--name", ""], "name is ''"),
    # settings
    (["--steps", "0"], "steps is 0.*from 1"), (["--steps", "-5"], "steps is -5"), (["--seeds", "0"], "seeds is 0"),
    (["--seeds", "x"], "seeds.*x"), (["--seed", "-1"], "seed is -1"), (["--data_seed", "-1"], "data_seed is -1"),
    (["--lr", "nan"], "lr is nan"), (["--lr", "0"], "lr is 0"), (["--lr", "inf"], "lr is inf"),
    (["--base_lr", "-1"], "base_lr is -1"), (["--muon_lr", "nan"], "muon_lr is nan"), (["--grad_clip", "0"], "grad_clip is 0"),
    (["--weight_decay", "-0.1"], "weight_decay is -0.1"), (["--warmup", "2"], "warmup is 2.0.*from 0 to 1"),
    (["--lr_until", "-0.5"], "lr_until is -0.5"), (["--lr_floor", "1.5"], "lr_floor is 1.5"),
    (["--base_warmup", "-3"], "base_warmup is -3"), (["--n_head", "3"], "n_embd=32.*n_head=3"), (["--n_head", "0"], "n_head is 0"),
    (["--n_layer", "0"], "n_layer is 0"), (["--block_size", "0"], "block_size is 0"), (["--batch_size", "0"], "batch_size is 0"),
    (["--documents", "3"], "documents is 3.*from 100"), (["--vocab_size", "10"], "vocab_size is 10.*from 257"),
    (["--vocab_size", "10000000"], "vocab_size is 10000000.*1,000,000"), (["--copain_items", "0"], "copain_items is 0"),
    (["--max_integer", "4"], "max_integer is 4.*from 9"), (["--max_integer", "19", "--list_lengths", "12"], "list_lengths is"),
    (["--list_lengths", "2"], "list_lengths is"), (["--checkpoint_every", "0"], "checkpoint_every is 0"),
    (["--accumulate", "0"], "accumulate is 0"), (["--accumulate", "9"], "accumulate is 9.*divisor"),
    (["--study", "scale", "--n_embd", "260", "--n_head", "4", "--preset", "laptop"], r"\[96, 260, 256\], which do not rise"),
    (["--study", "scale", "--n_embd", "144", "--n_head", "12"], "n_embd=256.*n_head=12"),
    # languages
    (["--target_order", "SVX"], "word order 'SVX'"), (["--target_order", ""], "word order ''"),
    (["--cognates", "-1"], "cognates is -1"), (["--cognates", "0.9"], "cognates is 0.9.*0.8"),
    # schedules
    (["--base_curriculum", ""], "curriculum ''"), (["--base_curriculum", "english"], "curriculum 'english'"),
    (["--base_curriculum", "english=rest target=rest"], "more than one 'rest'"),
    (["--base_curriculum", "english=rest english=constant(0.1)"], "'english' twice"),
    (["--base_curriculum", "english=constant(2)"], "must sum to 1"),
    (["--base_curriculum", "english=rest target=constant(-0.1)"], "lie in"),
    (["--base_curriculum", "english=rest target=constant(x)"], r"cannot read 'constant\(x\)'"),
    (["--base_curriculum", "english=rest target=wave(0.1)"], r"cannot read 'wave"),
    (["--base_curriculum", "english=rest target=window(0.2)"], r"cannot read 'window"),
    (["--base_curriculum", "english=rest target=linear(0, 2, 0, 1)"], "lie in"),
    (["--base_curriculum", "english=rest french=constant(0.1)"], "french.*english"),
    # checkpoints
    (["--init", "none.pt"], "no checkpoint at none.pt"), (["--init", "empty.pt"], "empty.pt is damaged"),
    (["--init", "garbage.pt"], "garbage.pt is damaged"), (["--init", "half.pt"], "half.pt is damaged"),
    (["--init", "hostile.pt"], "hostile.pt is damaged or is not"), (["--init", "folder.pt"], "folder.pt"),
    (["--init", "changed.pt"], "changed.pt is damaged"), (["--init", GOOD, "--seeds", "2"], "one run, but --seeds is 2"),
    (["--init", GOOD, "--only", "near"], "near.* other bases"), (["--init", "other.pt"], "not a nanoCPT checkpoint"),
    (["--init", GOOD, "--target_order", "VSO"], "target_order is 'VSO', but the base .* has 'SOV'"),
    (["--init", GOOD, "--cognates", "0.1"], "cognates is 0.1, but"),
    (["--init", GOOD, "--block_size", "128"], "block_size is 128, but"),
    (["--init", GOOD, "--only", "base"], "--init gives the base"), (["--list_lengths", "3-5"], "invalid numbers value: '3-5'"),
    (["--curriculum", "target=rest", "--only", "target,ema"], "expected one name for your own arm"),
    (["--curriculum", "target=rest", "--only", "base"], "expected one name for your own arm"),
    (["--ema_alpha", "0.5"], "go with --curriculum"), (["--curriculum", "target=rest", "--only", "ema"], "ema is an arm already"),
    (["--shots", "-1"], "shots is -1"), (["--vocab_size", "-100"], "vocab_size is -100"),
    (["--steps", "99999999999999"], "steps is 99999999999999"), (["--leak_check", "maybe"], "leak_check"),
    # run folders
    (["--name", "no_record"], "not the record of a run"), (["--name", "list_record"], "not the record of a run"),
    (["--name", "null_record"], "not the record of a run"),
    (["--name", "smoke"], "runs/smoke")]
BENCH = [
    ([], "give a model"), ([GOOD, "--sample", "--language", "klingon"], "'klingon'.*english, target"),
    ([GOOD, "--shots", "-1"], "shots is -1"), (["--shwo"], "--shwo"), (["none.pt"], "none.pt"), (["hostile.pt"], "hostile.pt"),
    (["changed.pt"], "changed.pt is damaged"), (["--report", "none"], "none is not the folder"), (["--report"], "--report"),
    (["--report", "a_file"], "a_file"), (["--findings", "nowhere"], "nowhere holds no study")]
DATA = [(["--cognates", "2"], "cognates is 2"), (["--target_order", "XYZ"], "'XYZ'"), (["--seed", "x"], "seed"),
        (["--language", "x"], "--language")]


MODEL = [([GOOD, "--exprt", "out"], "--exprt"), (["none.pt", "--export", "out"], "none.pt"), ([GOOD], "--export")]


@pytest.mark.parametrize("script, flags, words", [("train.py", *case) for case in TRAIN] + [("bench.py", *case) for case in BENCH]
                         + [("data.py", *case) for case in DATA] + [("model.py", *case) for case in MODEL])
def test_a_mistake_gets_one_line_exit_code_2_and_writes_nothing(folder, call, script, flags, words):
    given = {"no_record": "runs/no_record/settings.json", "list_record": "runs/list_record/settings.json",
             "null_record": "runs/null_record/settings.json", "smoke": "runs/smoke"}
    for flag in flags:
        if flag in given or flag in ("a_file", "folder.pt") or flag.endswith(".pt") and flag not in ("none.pt", GOOD):
            make(folder, given.get(flag, flag))
    before = files(folder)
    code, _, err = call(folder, script, *(SMOKE if script == "train.py" else ()), *flags)
    assert code == 2 and err.startswith("error: ") and len(err.splitlines()) == 1, err
    assert re.search(words, err), err
    assert {k: v for k, v in files(folder).items() if k.name != ".lock"} == before and not (folder / "hostile").exists()
