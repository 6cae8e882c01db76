"""What must hold on a GPU; skipped without one. NANOCPT_TEST_DEVICE=cpu tests the tests themselves."""
import dataclasses
import os
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector

import train
from conftest import train_until, weights
from model import load_checkpoint

DEVICE = os.environ.get("NANOCPT_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU is found")


@pytest.fixture
def make(fresh):
    """fresh() on the GPU."""
    torch.set_float32_matmul_precision("highest")  # TF32 has too few digits to compare with a CPU
    return partial(fresh, device=DEVICE)


def losses(rows):
    return [row[key] for row in rows for key in ("train_loss", "train_loss_max") if key in row]


@pytest.mark.parametrize("name", ["base", "target+english", "ema", "lora-4", "l2-10"])
def test_training_in_float32_has_the_losses_of_the_cpu(make, name):
    here, cpu = train.train(make(name)), train.train(make(name, device="cpu"))
    assert len(losses(here)) > 2 and losses(here) == pytest.approx(losses(cpu), abs=1e-3)


@pytest.mark.parametrize("name", ["base", "ema"])
def test_training_in_bfloat16_stays_near_float32(make, name):
    coarse, fine = train.train(make(name, dtype="bfloat16")), train.train(make(name))
    assert losses(coarse) == pytest.approx(losses(fine), abs=0.05) and losses(coarse) != losses(fine)


@pytest.mark.parametrize("mode, name", [("default", "ema"), ("reduce-overhead", "base")])
def test_compiled_training_has_the_losses_of_eager_and_skips_no_cuda_graph(make, mode, name):
    eager = train.train(make(name))
    torch._dynamo.reset()
    counters.clear()
    assert losses(train.train(make(name, compile=mode))) == pytest.approx(losses(eager), abs=1e-3)
    assert counters["stats"]["unique_graphs"] == 1
    assert DEVICE == "cpu" or not counters["inductor"]["cudagraph_skips"]


def test_distributed_data_parallel_with_one_rank_has_the_losses_of_one_process(make, monkeypatch):
    alone, job = train.train(make("ema")), make("ema", compile="default")
    # One GPU takes one rank, for which train() wraps nothing. So what it calls to compile wraps the model.
    monkeypatch.setattr(torch, "compile", lambda model, mode: DistributedDataParallel(model))
    dist.init_process_group(store=dist.HashStore(), rank=0, world_size=1)
    assert losses(train.train(job)) == pytest.approx(losses(alone), abs=1e-3)
    dist.destroy_process_group()


@pytest.mark.parametrize("name, at", [("base", 5), ("ema", 9)])
def test_a_stopped_run_goes_on_to_the_end_of_an_uninterrupted_one(make, name, at, monkeypatch):
    parts, whole = make(name), make(name)
    train_until(parts, at, monkeypatch)
    assert 0 < load_checkpoint(parts.path)["step"] < at
    assert losses(train.train(parts)) == pytest.approx(losses(train.train(whole)), abs=1e-3)
    # A GPU adds up in any order, and Adam enlarges the noise of a key's bias, which has no effect.
    a, b = (parameters_to_vector(weights(job.path).values()) for job in (parts, whole))
    assert (a - b).norm() < 1e-3 * b.norm()


def test_muon_makes_the_steps_of_the_cpu():
    start, gradients, ends = torch.randn(96, 32), torch.randn(5, 96, 32), {}
    for device in ("cpu", DEVICE):
        ends[device] = start.to(device, copy=True).requires_grad_()
        muon = train.Muon([ends[device]], dict(lr=0.02, weight_decay=0.01, dtype=torch.float32))
        for gradient in gradients:
            ends[device].grad = gradient.to(device)
            muon.step()
    torch.testing.assert_close(ends[DEVICE].cpu(), ends["cpu"], atol=1e-4, rtol=1e-4)


def test_a_checkpoint_written_here_is_evaluated_alike_and_trained_on_the_cpu(make):
    job = make("ema")
    last, ckpt = train.train(job)[-1], load_checkpoint(job.path)
    assert {x.device.type for part in ("model", "ema") for x in ckpt[part].values()} == {"cpu"}
    first = train.train(dataclasses.replace(make("target", device="cpu"), start=str(job.path)))[0]
    for key in ("ppl_target", "label_ppl_target"):
        assert first[key] == pytest.approx(last[key], rel=1e-4)
    one_near_tie = 100 / (7 * job.settings.copain_items)
    assert first["copain"] == pytest.approx(last["copain"], abs=one_near_tie)
