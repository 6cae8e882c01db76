"""Two processes train one model, on the CPU, as torchrun would start them. CI runs torchrun itself."""
import os
import signal
import socket
import sys
from dataclasses import replace
from datetime import timedelta

import pytest
import torch

import train
from conftest import CONTEXT, SMOKE, rows_of


def environment():  # what torchrun tells the first of two processes
    with socket.create_server(("localhost", 0)) as s:
        port = s.getsockname()[1]
    return dict(TORCHELASTIC_RUN_ID="x", RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="localhost",
                MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")


def one_rank(rank, folder, env, dies):
    def dying(step, job):
        if dies and rank == 1 and job.name == "curriculum" and step == 11:
            os.kill(os.getpid(), signal.SIGKILL)
        return factor(step, job)
    os.chdir(folder)
    os.environ |= env | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    sys.stdout, sys.stderr = (open(f"{name}{rank}", "w") for name in ("out", "err"))
    factor, train.lr_factor = train.lr_factor, dying
    train.main([*SMOKE, "--only", "curriculum", "--accumulate", "2"])


def test_two_processes_train_as_one_and_when_one_dies_the_run_ends_and_a_rerun_goes_on(study, tmp_path):
    for dies, codes, step in (True, [1, -signal.SIGKILL], 10), (False, [0, 0], 12):
        env = environment()
        ranks = [CONTEXT.Process(target=one_rank, args=(rank, tmp_path, env, dies)) for rank in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(timeout=60)
        out, err = ((tmp_path / name).read_text() for name in ("out0", "err0"))
        assert [process.exitcode for process in ranks] == codes and ("a process failed" in err) == dies
        assert train.load_checkpoint(tmp_path / "runs/smoke/seed3000/curriculum.pt")["step"] == step
    assert out.count("report: ") == 1 and not (tmp_path / "out1").read_text()
    for name in ("base", "curriculum"):
        both, alone = (rows_of(path / f"runs/smoke/seed3000/{name}.jsonl") for path in (tmp_path, study[0]))
        for a, b in zip(both, alone, strict=True):
            for key in {"step", "train_loss", "train_loss_max", "ppl_target"} & b.keys():
                assert a[key] == pytest.approx(b[key], rel=1e-5)


def test_a_batch_that_cannot_be_cut_into_equal_parts_is_refused(smoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "rank_and_world", lambda: (0, 4))
    train.plan(replace(smoke[0], accumulate=2))
    with pytest.raises(ValueError, match="8 rows cannot be cut into 16 equal parts"):
        train.plan(replace(smoke[0], accumulate=4))


def test_variables_that_torchrun_left_behind_give_one_line_that_names_them(call, tmp_path, monkeypatch):
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(train, "timedelta", lambda minutes: timedelta(seconds=minutes))  # not a real minute
    code, _, err = call(tmp_path, "train.py", *SMOKE)
    assert code == 1 and len(err.splitlines()) == 1 and "WORLD_SIZE is 2" in err, err


def test_training_goes_through_torch_compile_in_its_mode_and_evaluation_does_not(fresh, monkeypatch):
    def compile(model, mode):
        return lambda x, y: seen.append((mode, *x.shape)) or model(x, y)
    monkeypatch.setattr(torch, "compile", compile)
    job, seen = fresh("target", compile="max-autotune"), []
    train.train(job)
    assert seen == [("max-autotune", job.batch_size, job.settings.block_size)] * job.steps
