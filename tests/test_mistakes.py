"""A user's mistake gets one line that says what was found and what to do, code 2, and changes no file."""
import re

import pytest
import torch

from conftest import SMOKE, load_checkpoint, times


class Hostile:
    """What a pickle can do to one who loads it."""

    def __reduce__(self):
        return exec, ("open('hostile', 'w').close()",)


@pytest.fixture
def folder(tmp_path, study):
    """A folder with a study, and checkpoints that are none."""
    (tmp_path / "study").symlink_to(study[0])
    (tmp_path / "folder.pt").mkdir()
    torch.save({"a": 1}, tmp_path / "other.pt")
    torch.save(load_checkpoint(study[0] / "runs/smoke/seed3000/base.pt") | {"step": 3}, tmp_path / "half.pt")
    torch.save({"model": Hostile()}, tmp_path / "hostile.pt")
    return tmp_path


GOOD = "study/runs/smoke/seed3000/base.pt"


@pytest.mark.parametrize("command, words", [
    # flags, names, ranges and curricula
    ("train.py --stepz 5", "--stepz.*--steps"), ("train.py --base_curriculum frensh=rest", "frensh.*english"),
    ("train.py nonsense", "nonsense"), ("train.py --accumulate 9", "8 rows cannot be cut into 9 equal parts"),
    ("train.py --lr", "lr"), ("train.py --device tpu", "tpu.*cpu"), ("train.py --seeds -1", "seeds is -1"),
    ("train.py --steps 1e3", "steps.*1e3"), ("train.py --base_curriculum english", "curriculum 'english'"),
    ("train.py --preset huge", "huge.*laptop"), ("train.py --n_head 3", "n_head=3.*multiple of n_head"),
    ("train.py --study avg", "study is 'avg'.*averaging"), ("train.py --only taget", "taget.*target"),
    ("train.py --dtype int8", "int8.*float32"), ("train.py --warmup 2", "warmup is 2.0.*from 0 to 1"),
    ("train.py --compile fast", "compile is 'fast'.*max-autotune"), ("train.py --lr 0", "lr is 0.*above 0"),
    ("train.py --lr nan", "lr is nan"), ("train.py --base_curriculum english=wave(1)", r"cannot read 'wave"),
    ("train.py --steps 0", "steps is 0.*from 1"), ("train.py --vocab_size 10", "vocab_size is 10.*from 257"),
    ("train.py --cognates 0.9", "cognates is 0.9.*0.8"), ("train.py --name ../x", "name is '../x'"),
    ("train.py --warmup 0.5", "0.5 ends after"), ("train.py --task rows.jsonl", "--task is for real text"),
    ("train.py --base_curriculum english=constant(2)", "must sum to 1"),
    # checkpoints; test_model.py has more of them
    ("train.py --init none.pt", "none.pt"), ("train.py --init hostile.pt", "hostile.pt"),
    ("train.py --init half.pt", "half.pt is unfinished, at step 3"),
    ("train.py --init folder.pt", "folder.pt"), ("train.py --init other.pt", "not a nanoCPT checkpoint"),
    (f"train.py --init {GOOD} --seeds 2", "--init gives the one base of one run"),
    (f"train.py --init {GOOD} --cognates 0.1", "cognates is 0.1, but .* has 0.5: leave --cogn"),
    # the other files; test_real_text.py has those of real text
    ("bench.py", "give one model"), ("bench.py none.pt", "none.pt"), ("bench.py --shwo", "--shwo"),
    (f"bench.py {GOOD} {GOOD.replace('3000', '3001')} --show", "one run"), ("results/report.py none", "none"),
    (f"bench.py {GOOD} --shots 0", "--shots goes with"), ("bench.py --hide", "--show"),
    ("data.py shw", "choose from .*prepare"), ("data.py prepare nowhere.txt --name x", "nowhere.txt"),
    ("model.py none.pt --export out", "none.pt"), ("curriculum.py target=rest=rest", "target=rest=rest")])
def test_a_mistake_gets_one_line_exit_code_2_and_writes_nothing(folder, call, command, words):
    before, (script, *flags) = times(folder), command.split()
    code, _, err = call(folder, script, *(SMOKE if script == "train.py" else ()), *flags)
    assert code == 2 and err.startswith("error: ") and len(err.splitlines()) == 1, err
    assert re.search(words, err), err
    assert times(folder) == before  # so Hostile was not run


@pytest.mark.parametrize("command, words", [("data.py", "--- english, lists"), ("curriculum.py", "50.0%"),
                                            ("bench.py --show", "--- last_element")])
def test_what_a_file_shows_without_more_flags(tmp_path, call, command, words):
    code, out, err = call(tmp_path, *command.split())
    assert code == 0 and words in out, err
