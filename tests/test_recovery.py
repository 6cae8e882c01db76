"""What happens to files and processes when something goes wrong. tests/soak.py kills at random."""
import dataclasses
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

import train
from conftest import ROOT, SMOKE, equal, rows_of, times
from model import load_checkpoint


def start(path, *flags, code=None, nice=0):
    """A training run in a process of its own, in a group of its own."""
    command = ["-c", code] if code else [str(ROOT / "train.py")]
    return subprocess.Popen([sys.executable, *command, *SMOKE, *flags], cwd=path, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                            preexec_fn=lambda: (os.nice(nice), signal.signal(signal.SIGINT, signal.SIG_DFL)))


def wait_until(condition):
    deadline = time.time() + 60
    while not condition():
        assert time.time() < deadline
        time.sleep(0.05)


def have_ended(group):
    """Whether no process of a group is left."""
    try:
        os.killpg(group, 0)
        return False
    except ProcessLookupError:
        return True


@pytest.fixture(scope="module", autouse=True)
def running(smoke, tmp_path_factory):
    """{"interrupt", "kill"}: two long studies, (folder, process), which begin while other tests run."""
    found = {}
    for what in ("interrupt", "kill"):
        path = tmp_path_factory.mktemp(what)
        found[what] = path, start(path, "--init", smoke[1] / "base.pt", "--steps", "100000",
                                  "--checkpoint_every", "5", "--only", "target,ema", nice=19)
    yield found
    for _, process in found.values():
        process.kill()  # if no test has stopped it


@pytest.fixture(scope="module", autouse=True)
def failing(study, tmp_path_factory):
    """A rerun of the study without two arms of seed 3000: one kills its process, the other has a mistake."""
    path = tmp_path_factory.mktemp("failing")
    shutil.copytree(study[0] / "runs", path / "runs")
    for name in ("target", "ema"):
        for file in (path / "runs/smoke/seed3000").glob(f"{name}.*"):
            file.unlink()
    (path / "bad.py").write_text("import os, signal\ndef run_job(job, *args):\n    if job.name == 'ema': "
                                 "os.kill(os.getpid(), signal.SIGKILL)\n    raise OSError('the disk is gone')\n")
    return path, start(path, "--seeds", "2", code="import bad, train; train.run_job = bad.run_job; train.main()")


def test_a_second_run_of_one_name_is_refused(tmp_path, call):
    (tmp_path / "runs/smoke").mkdir(parents=True)
    with open(tmp_path / "runs/smoke/.lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as another process has it
        code, _, err = call(tmp_path, "train.py", *SMOKE)
    assert code == 2 and "runs/smoke is in use by another process" in err and len(err.splitlines()) == 1
    assert [p.name for p in (tmp_path / "runs/smoke").iterdir()] == [".lock"]


def test_what_was_run_is_mixed_with_no_other_settings_and_stays_as_it_was(study, call, monkeypatch):
    def is_refused(file, words, *flags):
        code, _, err = call(path, "train.py", *SMOKE, "--seeds", "2", *flags)
        assert code == 2 and f"{file} was made with other settings: {words}" in err, err
        assert len(err.splitlines()) == 1

    path, _ = study
    before = times(path / "runs")
    is_refused("target.pt", f"lr {train.Settings.lr} there, 0.001 here", "--lr", "0.001")
    monkeypatch.setitem(train.ARMS, "ema", dataclasses.replace(train.ARMS["ema"], ema_alpha=0.5))
    is_refused("ema.pt", "ema_alpha 0.92 there, 0.5 here")
    is_refused("ema.pt", "ema_alpha 0.92 there, 0.5 here", "--only", "target")  # its report has all
    monkeypatch.setitem(train.SCHEDULES, "", dict(lr_until=0.5))
    is_refused(".pt", f"lr_until {train.Settings.lr_until} there, 0.5 here")
    monkeypatch.setattr(train.Settings, "world", lambda s: train.World(max_integer=49))
    is_refused("base.pt", "max_integer 99 there, 49 here")
    assert times(path / "runs") == before


def test_an_old_run_goes_on_when_the_code_has_a_new_field(fresh):
    job = fresh("target")
    train.train(job)
    ckpt = load_checkpoint(job.path)
    del ckpt["settings"]["accumulate"], ckpt["job"]["arm"]["l2"]  # as if they had come later
    train.check_same(job, ckpt)


def test_a_command_that_was_refused_before_its_first_checkpoint_does_not_burn_its_name(tmp_path, call):
    flags = ["--only", "base", "--name", "mine"]
    code, _, err = call(tmp_path, "train.py", *SMOKE, *flags, "--block_size", "20")
    assert code in (1, 2) and "--block_size is 20, " in err
    code, _, err = call(tmp_path, "train.py", *SMOKE, *flags, "--block_size", "64")
    assert code == 0, err


def test_rows_of_changed_code_never_join_those_of_the_old_code_under_one_name(fresh, monkeypatch):
    job = fresh("target", steps=1)
    train.train(job)
    old = train.content_hash
    monkeypatch.setattr(train, "content_hash", lambda path: "new" if path.name == "bench.py" else old(path))
    with pytest.raises(ValueError, match="bench.py '.*' there, 'new' here: choose another --name"):
        train.check_same(job, load_checkpoint(job.path))
    with pytest.raises(ValueError, match="changed since this command began"):
        train.run_job(job, train.contents(job.settings) | {"bench.py": "old"}, line=0, gpus=1, threads=1)


def test_an_arm_that_would_train_nothing_is_refused(fresh):
    job = fresh("target")
    with pytest.raises(ValueError, match="'loar_' names nothing to train"):
        train.train(dataclasses.replace(job, arm=dataclasses.replace(job.arm, trained="loar_")))


def test_killed_and_failed_arms_are_named_the_others_reported_and_a_rerun_does_the_rest(failing, study, call):
    path, process = failing
    out, err = process.communicate(timeout=60)
    last = err.splitlines()[-1]
    assert process.returncode == 1 and "Traceback" not in err and "BrokenProcessPool" not in err, err
    assert "3000 ema: its process was killed, perhaps for memory" in last
    assert "3000 target: the disk is gone" in last and "the same command runs the rest" in last
    assert all("Not averaged: seed 3000" in x for x in (out, (path / "runs/smoke/main/report.md").read_text()))
    before = times(path / "runs/smoke", "seed*/[!e]*.pt")  # without ema.pt
    rows = rows_of(log := path / "runs/smoke/seed3001/ema.jsonl")
    log.unlink()  # it is written again from its checkpoint
    code, _, err = call(path, "train.py", *SMOKE, "--seeds", "2")
    assert code == 0 and rows_of(log) == rows, err
    assert before.items() <= times(path / "runs/smoke").items()
    for name in ("target", "ema"):
        ends = [load_checkpoint(folder / f"runs/smoke/seed3000/{name}.pt") for folder in (path, study[0])]
        assert equal(*ends)
    log.with_suffix(".pt").unlink()  # then nothing tells with which settings its rows were made
    code, _, err = call(path, "train.py", *SMOKE, "--seeds", "2", "--only", "target")
    assert code == 2 and "ema.jsonl has lost its ema.pt" in err and len(err.splitlines()) == 1, err


@pytest.mark.parametrize("what", ["interrupt", "kill"])
def test_ctrl_c_and_a_killed_parent_leave_no_child_and_every_checkpoint(running, what):
    path, process = running[what]
    arms = [path / f"runs/smoke/seed3000/{name}.pt" for name in ("target", "ema")]
    wait_until(lambda: all(arm.exists() for arm in arms))
    began = time.time()
    if what == "interrupt":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        os.killpg(process.pid, signal.SIGINT)  # and a user who does not wait
    else:
        process.kill()
    _, err = process.communicate(timeout=30)
    wait_until(lambda: have_ended(process.pid))
    assert time.time() - began < 10 and all(load_checkpoint(arm)["step"] % 5 == 0 for arm in arms)
    if what == "interrupt":
        assert process.returncode == 130 and "Traceback" not in err
        assert "to continue: python train.py --preset smoke" in err
