"""What happens to files and processes when something goes wrong. tests/soak.py does the same at random and at length."""
import dataclasses
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import bench
import train
from conftest import SMOKE
from model import checksum, load_checkpoint, previous, save_checkpoint


@pytest.fixture
def arm(smoke, tmp_path):
    """(settings, folder, base, path) of an arm that was stopped at step 11 and has a checkpoint of step 10 before it."""
    s, folder = smoke
    shutil.copytree(folder, tmp_path / "run")
    base, job, calls = load_checkpoint(folder / "base.pt"), train.arm_job(s, "ema"), iter(range(100))
    train.train(s, job, tmp_path / "run", base, stopping=lambda: next(calls) == 11)
    return s, tmp_path / "run", base, tmp_path / "run/ema.pt"


@pytest.fixture(scope="module")
def whole(smoke, tmp_path_factory):
    """The same arm without interruption: (rows, checkpoint)."""
    s, folder = smoke
    path = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(folder, path)
    rows = train.train(s, train.arm_job(s, "ema"), path, load_checkpoint(folder / "base.pt"))
    return rows, load_checkpoint(path / "ema.pt")


# ------------------------------------------------------------------------------------------------------- checkpoints
def test_a_checksum_sees_every_change_of_value_type_order_and_shape():
    values = [{"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1, "b": 2.0}, [1, 2], (1, 2), [12], "12", torch.tensor([1.0, 2.0]),
              torch.tensor([[1.0, 2.0]]), torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([1.0, -2.0]), None]
    assert len({checksum(v) for v in values}) == len(values)
    assert checksum({"a": [torch.ones(2)]}) == checksum({"a": [torch.ones(2)]})


@pytest.mark.parametrize("harm", ["truncated", "emptied", "flipped", "removed"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_leads_to_the_same_end(arm, whole, harm, capsys):
    s, folder, base, path = arm
    data = bytearray(path.read_bytes())
    assert load_checkpoint(previous(path))["step"] == 10 and load_checkpoint(path)["step"] == 11
    if harm == "removed":
        path.unlink()
    else:
        start = data.find(load_checkpoint(path)["model"]["transformer.wpe.weight"].numpy().tobytes()[:64])
        data[start + 5] ^= 4
        path.write_bytes({"truncated": data[:len(data) // 2], "emptied": b"", "flipped": data}[harm])
    rows = train.train(s, train.arm_job(s, "ema"), folder, base)
    assert harm == "removed" or "ema.pt" in capsys.readouterr().err
    assert rows == whole[0] and checksum(load_checkpoint(path)) == checksum(whole[1])


@pytest.mark.parametrize("place", [0.01, 0.2, 0.4, 0.6, 0.8, 0.95])
def test_a_flipped_bit_is_refused_or_of_no_effect(arm, place):
    _, _, _, path = arm
    data, good = bytearray(path.read_bytes()), checksum(load_checkpoint(path))
    data[int(place * len(data))] ^= 16
    path.write_bytes(data)
    try:
        assert checksum(load_checkpoint(path)) == good
    except ValueError as e:
        assert "ema.pt" in str(e)


def test_a_checkpoint_holds_settings_tokenizer_and_code_version(arm):
    ckpt = load_checkpoint(arm[3])
    assert ckpt["settings"]["steps"] == 12 and json.loads(ckpt["tokenizer"]) and ckpt["code"] == train.code_version()


def test_a_checkpoint_of_other_settings_is_refused_with_the_fields_that_differ(arm):
    s, folder, base, path = arm
    before = path.read_bytes()
    for other, words in ((dict(lr=0.1), "lr 0.005 there, 0.1 here"), (dict(weight_decay=0.5), "weight_decay 0.1 there, 0.5")):
        other = dataclasses.replace(s, **other)
        with pytest.raises(ValueError, match=words):
            train.train(other, train.arm_job(other, "ema"), folder, base)
    assert path.read_bytes() == before


def test_a_full_disk_gives_one_line_and_leaves_the_checkpoint_before_it_usable(arm):
    _, _, _, path = arm
    ckpt, before = load_checkpoint(path), path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # no file may grow beyond this, as on a full disk
    try:
        with pytest.raises(OSError, match="cannot write .*ema.pt.*still there"):
            save_checkpoint(path, ckpt)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and not list(path.parent.glob("ema*.tmp"))


def test_a_folder_that_cannot_be_written_gives_one_line(tmp_path, call):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(0o500)
    if os.geteuid() == 0:  # root may write anywhere: a file in the place of the folder has the same effect
        (tmp_path / "runs").rmdir()
        (tmp_path / "runs").write_text("")
    code, _, err = call(tmp_path, "train.py", *SMOKE)
    assert code == 2 and err.startswith("error: ") and len(err.splitlines()) == 1


# ----------------------------------------------------------------------------------------------------- one owner
def test_a_second_process_on_a_run_folder_is_refused_and_the_lock_ends_with_its_owner(tmp_path, call):
    code = "import pathlib, sys, time, train\nwith train.owned(pathlib.Path('runs/smoke/.lock')): print(flush=True); time.sleep(60)"
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE)
    owner.stdout.readline()
    code, _, err = call(tmp_path, "train.py", *SMOKE)
    assert code == 2 and "runs/smoke is in use by another process" in err and len(err.splitlines()) == 1
    assert [p.name for p in (tmp_path / "runs/smoke").iterdir()] == [".lock"]
    owner.kill()
    owner.wait()
    with train.owned(tmp_path / "runs/smoke/.lock"):
        pass


# ----------------------------------------------------------------------------------------------------- interruptions
def test_ctrl_c_during_an_evaluation_ends_at_once_and_the_row_is_measured_when_the_run_goes_on(smoke, whole, tmp_path,
                                                                                              monkeypatch):
    s, folder = smoke
    shutil.copytree(folder, tmp_path / "run")
    base, evaluate = load_checkpoint(folder / "base.pt"), bench.evaluate

    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)

    monkeypatch.setattr(bench, "evaluate", interrupted)
    start = time.monotonic()
    part = train.train(s, train.arm_job(s, "ema"), tmp_path / "run", base)
    assert time.monotonic() - start < 10 and part[-1]["step"] == 0
    monkeypatch.setattr(bench, "evaluate", evaluate)
    rows = train.train(s, train.arm_job(s, "ema"), tmp_path / "run", base)
    assert rows == whole[0] and checksum(load_checkpoint(tmp_path / "run/ema.pt")) == checksum(whole[1])


def test_a_run_stopped_in_its_last_evaluation_is_not_finished_until_that_row_is_there(smoke, whole, tmp_path, monkeypatch):
    s, folder = smoke
    shutil.copytree(folder, tmp_path / "run")
    evaluate = bench.evaluate

    def interrupted(*args, full, **kwargs):
        if full and (tmp_path / "run/ema.jsonl").read_text().count("\n") > 1:
            raise KeyboardInterrupt
        return evaluate(*args, full=full, **kwargs)

    task = train.Task(s, train.arm_job(s, "ema"), tmp_path / "run", start=str(folder / "base.pt"))
    monkeypatch.setattr(bench, "evaluate", interrupted)
    train.train_task(task)
    assert task.so_far()["step"] == s.steps and not task.finished()
    monkeypatch.setattr(bench, "evaluate", evaluate)
    train.train_task(task)
    assert task.finished() and load_checkpoint(tmp_path / "run/ema.pt")["rows"] == whole[0]


def test_a_killed_child_is_named_the_others_finish_and_a_rerun_does_only_what_is_missing(study, tmp_path, call,
                                                                                        monkeypatch):
    shutil.copytree(study[0] / "runs", tmp_path / "runs")
    folder = tmp_path / "runs/smoke/seed2026"
    for name in ("target", "ema"):
        for file in folder.glob(f"{name}.*"):
            file.unlink()
    (tmp_path / "failing.py").write_text(
        "import os, signal, train\n"
        "def run_task(task, *more):\n"
        "    if task.job.name == 'ema': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    train.train = lambda *_: 1 / 0\n"
        "    train.run_task(task, *more)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(train, "run_task", importlib.import_module("failing").run_task)  # in the children alone
        code, _, err = call(tmp_path, "train.py", *SMOKE, "--seeds", "2")
    last = err.splitlines()[-1]
    assert code == 1 and "2026 ema: killed by signal 9" in last and "Traceback" not in err
    assert "2026 target: ended with exit code 1, see" in last and "ZeroDivisionError" in (folder / "target.log").read_text()
    assert "Not averaged: seed 2026, which has not finished" in (tmp_path / "runs/smoke/main/report.md").read_text()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs/smoke").glob("seed*/*.pt")}
    code, _, err = call(tmp_path, "train.py", *SMOKE, "--seeds", "2")
    assert code == 0 and {p: p.stat().st_mtime_ns for p in before} == before, err
    for name in ("target.jsonl", "ema.jsonl"):
        assert (folder / name).read_text() == (study[0] / "runs/smoke/seed2026" / name).read_text()


def test_a_lost_log_and_a_damaged_last_checkpoint_of_a_finished_study_come_back(study, tmp_path, call):
    shutil.copytree(study[0] / "runs", tmp_path / "runs")
    folder = tmp_path / "runs/smoke/seed2026"
    (folder / "ema.jsonl").unlink()
    shutil.copy(folder / "base.pt", previous(folder / "base.pt"))
    (folder / "base.pt").write_bytes(b"damaged")
    code, _, err = call(tmp_path, "train.py", *SMOKE, "--seeds", "2")
    assert code == 0 and "base.pt is not a readable nanoCPT checkpoint" in err
    log = "runs/smoke/main/metrics.jsonl"
    assert (tmp_path / log).read_text() == (study[0] / log).read_text()


# --------------------------------------------------------------------------------------------------- silent wrongness
def test_an_arm_that_was_run_is_not_taken_for_one_that_was_defined_anew_under_its_name(study, call, monkeypatch):
    monkeypatch.setitem(train.ARMS, "ema", dataclasses.replace(train.ARMS["ema"], ema_alpha=0.5))
    code, _, err = call(study[0], "train.py", *SMOKE, "--seeds", "2")
    assert code == 2 and "ema.pt was made by other settings: arm's ema_alpha 0.92 there, 0.5 here" in err


def test_a_source_prepared_anew_is_not_mixed_with_what_was_run_on_the_old_one(tmp_path):
    (tmp_path / "task.jsonl").write_text("1")
    s = train.Settings(task=str(tmp_path / "task.jsonl"))
    train.open_run(s, tmp_path / "run", {})
    (tmp_path / "task.jsonl").write_text("2")
    with pytest.raises(ValueError, match="contents of .*task.jsonl"):
        train.open_run(s, tmp_path / "run", {})


def test_rows_of_different_settings_or_the_same_row_twice_are_never_averaged(study, tmp_path, call):
    shutil.copytree(study[0] / "runs/smoke/main", tmp_path / "main")
    good = (tmp_path / "main/metrics.jsonl").read_text().splitlines()
    other = json.dumps(json.loads(good[-1]) | {"settings": "00000000"})
    for rows, words in (([*good[:-1], other], "2 different settings"), ([*good, good[-1]], "occurs twice")):
        (tmp_path / "main/metrics.jsonl").write_text("\n".join(rows))
        code, _, err = call(tmp_path, "bench.py", "--report", "main")
        assert code == 2 and words in err and len(err.splitlines()) == 1


def test_a_loss_spike_is_logged_and_named_in_the_report(study, tmp_path, call):
    shutil.copytree(study[0] / "runs/smoke/main", tmp_path / "main")
    rows = [json.loads(line) for line in (tmp_path / "main/metrics.jsonl").read_text().splitlines()]
    assert all(r["train_loss"] <= r["train_loss_max"] for r in rows if r["step"])
    rows[-1]["train_loss_max"] = 3 * rows[-1]["train_loss"]
    (tmp_path / "main/metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert call(tmp_path, "bench.py", "--report", "main")[0] == 0
    assert f"{rows[-1]['arm']} of seed 2027 before step 12" in (tmp_path / "main/report.md").read_text()


def test_a_leak_that_comes_into_the_data_of_a_run_is_found_at_the_next_start(smoke, tmp_path):
    s, folder = smoke
    shutil.copytree(folder, tmp_path / "run")
    tok = train.Tokenizer.from_json((folder / "tokenizer.json").read_text())
    item = bench.copain_items(s.world(), s.copain_items, seed=s.bench_seed)[3]
    with open(tmp_path / "run/data/english_train.bin", "ab") as f:
        f.write(tok.encode_documents([item.prompt()]).tobytes())
    with pytest.raises(ValueError, match="benchmark leak.*'english'"):
        train.train(s, train.arm_job(s, "curriculum"), tmp_path / "run", load_checkpoint(folder / "base.pt"))


def test_the_record_of_a_run_names_the_flags_that_decide_whether_it_is_deterministic(study):
    (machine,) = json.loads((study[0] / "runs/smoke/settings.json").read_text())["machines"]
    assert {"deterministic_algorithms", "float32_matmul_precision", "cudnn_deterministic"} == set(machine["flags"])
