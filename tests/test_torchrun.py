"""Several processes train one model, as under `torchrun --nproc_per_node=2 train.py ...`, here with gloo on the CPU. The
processes are started without torchrun itself, which CI runs once, to spare the suite its start-up."""
import os
import signal
import socket
import sys

import pytest
import torch

import train
from conftest import CONTEXT, SMOKE, rows_of


def one_rank(rank, folder, port, dies):
    """The body of a process: the command line of train.py, where torchrun would have set the environment."""
    os.chdir(folder)
    sys.stdout, sys.stderr = (open(f"{name}{rank}", "w") for name in ("out", "err"))
    os.environ.update(TORCHELASTIC_RUN_ID="test", RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
                      MASTER_ADDR="localhost", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    factor = train.lr_factor

    def hook(step, job):
        if dies and rank == 1 and job.name == "curriculum" and step == 11:
            os.kill(os.getpid(), signal.SIGKILL)
        return factor(step, job)

    train.lr_factor = hook
    train.main([*SMOKE, "--only", "curriculum"])


def run(folder, dies):
    """Exit codes of two ranks, and what the first wrote to stdout and stderr."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    processes = [CONTEXT.Process(target=one_rank, args=(rank, folder, port, dies)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    return [process.exitcode for process in processes], (folder / "out0").read_text(), (folder / "err0").read_text()


def test_two_processes_train_as_one_and_when_one_dies_the_run_ends_and_a_rerun_goes_on(study, tmp_path):
    codes, _, err = run(tmp_path, dies=True)
    assert codes == [1, -signal.SIGKILL] and "a process of this run failed" in err.splitlines()[-1], err
    assert train.load_checkpoint(tmp_path / "runs/smoke/seed3000/curriculum.pt")["step"] == 10
    codes, out, err = run(tmp_path, dies=False)
    assert codes == [0, 0], err
    assert out.count("report: ") == 1 and not (tmp_path / "out1").read_text()  # the first alone evaluates and writes
    for name in ("base", "curriculum"):
        together, alone = (rows_of(path / "runs/smoke/seed3000" / f"{name}.jsonl") for path in (tmp_path, study[0]))
        assert [r["step"] for r in together] == [r["step"] for r in alone]
        for key in ("train_loss", "train_loss_max"):
            assert [r[key] for r in together[1:]] == pytest.approx([r[key] for r in alone[1:]], abs=1e-5)
        assert together[-1]["ppl_target"] == pytest.approx(alone[-1]["ppl_target"], rel=1e-5)


@pytest.mark.parametrize("world, accumulate", [(1, 2), (2, 1), (2, 2), (4, 2)])
def test_the_parts_of_a_batch_on_all_ranks_are_the_batch_once(world, accumulate):
    batch, seen = torch.arange(16).view(8, 2), []                                     # (B, T)
    for rank in range(world):
        for part in batch[rank::world].chunk(accumulate):                             # as train() cuts it
            assert len(part) == 8 // world // accumulate
            seen += part[:, 0].tolist()
    assert sorted(seen) == batch[:, 0].tolist()


def test_a_batch_that_cannot_be_cut_for_all_processes_is_refused(fresh, monkeypatch):
    monkeypatch.setattr(train, "rank_and_world", lambda: (0, 16))
    with pytest.raises(ValueError, match="a batch of 8 rows cannot be cut.*16 processes"):
        train.train(fresh("target"))


@pytest.mark.parametrize("device, processes, jobs, cores, gpus, at_once", [
    ("cpu", 0, 4, 2, 1, 2), ("cpu", 0, 5, 2, 1, 3), ("cpu", 5, 4, 2, 1, 5), ("cuda", 0, 4, 16, 1, 8),
    ("cuda", 0, 4, 1, 4, 4), ("cuda", 0, 4, 64, 8, 64), ("cuda", 2, 4, 64, 8, 2)])
def test_every_core_and_gpu_gets_a_process_and_no_gpu_more_than_eight(device, processes, jobs, cores, gpus, at_once):
    assert train.processes_at_once(train.Settings(device=device, processes=processes), jobs, cores, gpus) == at_once


def test_with_compile_the_training_goes_through_torch_compile_in_that_mode_and_evaluation_does_not(fresh, monkeypatch):
    modes, seen = [], []

    def compile(model, mode):
        modes.append(mode)
        return lambda x, y: seen.append(x.shape) or model(x, y)

    monkeypatch.setattr(torch, "compile", compile)
    job = fresh("target", compile="max-autotune")
    train.train(job)
    assert modes == ["max-autotune"] and seen == [(job.batch_size, job.settings.block_size)] * job.steps
