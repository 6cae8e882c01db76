import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from model import (GPT, GPTConfig, add_lora, causal_attention, load_checkpoint, load_gpt2, merge_lora,
                   model_from_checkpoint, save_checkpoint)

IDX = torch.arange(10)[None]


# ------------------------------------------------------------------------------------------------- the network
def test_a_future_token_changes_no_earlier_logit(tiny):
    idx = torch.arange(8)[None]
    changed = idx.clone()
    changed[0, 5] = 9
    a, b = tiny(idx, last_only=False)[0], tiny(changed, last_only=False)[0]
    assert torch.equal(a[0, :5], b[0, :5]) and not torch.equal(a[0, 5], b[0, 5])


def test_loss_is_the_mean_negative_log_probability_of_the_targets_that_count(tiny):
    idx, targets = torch.tensor([[1, 2, 3]]), torch.tensor([[2, -1, 4]])
    with torch.no_grad():
        logits, loss = tiny(idx, targets)
    p = torch.exp(logits[0]) / torch.exp(logits[0]).sum(-1, keepdim=True)
    assert loss.item() == pytest.approx(-(math.log(p[0, 2]) + math.log(p[2, 4])) / 2, abs=1e-6)


def test_without_targets_the_logits_are_those_after_the_last_token_or_after_every_token(tiny):
    idx = torch.randint(10, (3, 7), generator=torch.Generator().manual_seed(1))
    last, every = tiny(idx), tiny(idx, last_only=False)
    assert last[1] is None and every[1] is None
    assert last[0].shape == (3, 10) and every[0].shape == (3, 7, 10)
    assert torch.allclose(last[0], every[0][:, -1], atol=1e-6)
    assert torch.equal(every[0], tiny(idx, idx)[0])


def test_input_and_output_embeddings_are_one_tensor(tiny):
    assert tiny.lm_head.weight is tiny.transformer.wte.weight
    assert sum("wte" in n or "lm_head" in n for n, _ in tiny.named_parameters()) == 1


def test_the_124m_shape_has_the_parameter_count_of_gpt2():
    with torch.device("meta"):
        assert sum(p.numel() for p in GPT(GPTConfig()).parameters()) == 124_439_808


def test_residual_projections_start_smaller_by_the_square_root_of_twice_the_layers():
    torch.manual_seed(0)
    mlp = GPT(GPTConfig(100, 8, 8, 4, 128)).transformer.h[0].mlp
    assert mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert not mlp.c_fc.bias.any() and not mlp.c_proj.bias.any()


@pytest.mark.parametrize("dtype, error", [(torch.float32, 5e-7), (torch.bfloat16, 0.01)])
def test_attention_equals_its_formula_in_values_and_gradients(dtype, error):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 20, 8, generator=g).to(dtype).requires_grad_() for _ in range(3))
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    ours, theirs = causal_attention(q, k, v), F.scaled_dot_product_attention(*exact, is_causal=True)
    for a, b in ((ours, theirs), *zip(torch.autograd.grad(ours.square().sum(), (q, k, v)),
                                      torch.autograd.grad(theirs.square().sum(), exact))):
        assert a.dtype == dtype and (a - b).norm() < error * b.norm()


def test_biases_and_the_activation_are_settings_of_the_shape():
    model = GPT(GPTConfig(10, 8, 1, 1, 8, bias=False, activation="gelu"))
    assert not any(n.endswith("bias") for n, _ in model.named_parameters())
    mlp, x = model.transformer.h[0].mlp, torch.linspace(-3, 3, 8)
    assert torch.equal(mlp(x), mlp.c_proj(F.gelu(mlp.c_fc(x))))


def test_greedy_generation_takes_the_argmax_and_slides_past_the_block(tiny):
    out = tiny.generate(torch.tensor([[1, 2]]), 20, temperature=0)
    assert out.shape == (1, 22)
    assert out[0, -1] == tiny(out[:, -17:-1])[0][0].argmax()


def test_a_row_longer_than_the_block_and_an_impossible_shape_are_refused_with_their_sizes(tiny):
    with pytest.raises(ValueError, match="17 tokens.*block_size=16"):
        tiny(torch.zeros(1, 17, dtype=torch.long))
    for wrong in ({"n_embd": 10, "n_head": 3}, {"n_layer": 0}, {"activation": "relu"}):
        with pytest.raises(ValueError, match="{}={!r}".format(*list(wrong.items())[-1])):
            GPTConfig(**wrong)


# -------------------------------------------------------------------------------------------------------- LoRA
def checkpoint(model, rank=0, **more):
    arm = {"lora_rank": rank, "shadow": "ema" in more}
    return {"config": vars(model.config), "model": model.state_dict(), "job": {"name": "x", "arm": arm}} | more


def with_lora(model, rank):
    """LoRA that is not zero any more."""
    add_lora(model, rank)
    for n, p in model.named_parameters():
        if "lora_B" in n:
            torch.nn.init.normal_(p, std=0.1)
    return model


def test_lora_at_initialisation_is_the_base_exactly_and_joins_parameters_whose_names_stay(tiny):
    before, names = tiny(IDX)[0], {n for n, _ in tiny.named_parameters()}
    add_lora(tiny, 4)
    assert torch.equal(tiny(IDX)[0], before)
    after = {n for n, _ in tiny.named_parameters()}
    assert names < after and len(after - names) == 2 * 4 * 2  # A and B of four Linears in two blocks
    assert all(n.endswith((".lora_A", ".lora_B")) for n in after - names)


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_merged_lora_is_the_same_function_with_the_names_of_a_plain_gpt(tiny, rank):
    names, base = [n for n, _ in tiny.named_parameters()], tiny(IDX)[0]
    unmerged = with_lora(tiny, rank)(IDX)[0]
    merged = merge_lora(tiny)
    assert [n for n, _ in merged.named_parameters()] == names
    assert merged.lm_head.weight is merged.transformer.wte.weight
    assert torch.allclose(merged(IDX)[0], unmerged, atol=1e-5) and not torch.allclose(unmerged, base, atol=1e-2)
    loaded = model_from_checkpoint(checkpoint(tiny, rank))  # a checkpoint comes back merged
    assert [n for n, _ in loaded.named_parameters()] == names and torch.equal(loaded(IDX)[0], merged(IDX)[0])


def test_merging_lora_changes_neither_the_model_nor_the_random_numbers(tiny):
    with_lora(tiny, 4)
    before, state = {n: x.clone() for n, x in tiny.state_dict().items()}, torch.get_rng_state()
    merge_lora(tiny)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(tiny.state_dict()) == list(before)
    assert all(torch.equal(x, before[n]) for n, x in tiny.state_dict().items())


# ------------------------------------------------------------------------------------------------- checkpoints
@pytest.fixture
def saved(tiny, tmp_path):
    save_checkpoint(tmp_path / "x.pt", checkpoint(tiny) | {"step": 1})
    return tmp_path / "x.pt"


def test_a_checkpoint_comes_back_as_it_was_and_stays_so_while_its_file_is_replaced(saved, tiny):
    old = load_checkpoint(saved)
    with torch.no_grad():
        before = {n: x.clone() for n, x in tiny.state_dict().items()}
        tiny.transformer.wpe.weight.add_(1)
    save_checkpoint(str(saved), checkpoint(tiny) | {"step": 2})
    assert load_checkpoint(saved)["step"] == 2 and old["step"] == 1
    assert torch.equal(load_checkpoint(saved)["model"]["transformer.wpe.weight"], tiny.transformer.wpe.weight)
    assert all(torch.equal(old["model"][n], x) for n, x in before.items())
    assert [p.name for p in saved.parent.iterdir()] == ["x.pt"]


def test_a_checkpoint_with_a_shadow_gives_the_average(tiny):
    average = {n: p.detach() + 1 for n, p in tiny.named_parameters()}
    for ckpt, expected in ((checkpoint(tiny), tiny.state_dict()), (checkpoint(tiny, ema=average), average)):
        loaded = model_from_checkpoint(ckpt)
        assert all(torch.equal(p, expected[n]) for n, p in loaded.named_parameters())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_a_full_disk_is_named_and_leaves_the_checkpoint_that_was_there_and_nothing_else(saved, tiny):
    before = saved.read_bytes()
    saved.with_name("x.pt.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="cannot write .*x.pt: .*No space left on device.*still there") as e:
        save_checkpoint(saved, checkpoint(tiny))
    assert "\n" not in str(e.value) and saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["x.pt"]


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(saved, tiny, monkeypatch):
    def die(_, file):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", die)
        save_checkpoint(saved, checkpoint(tiny))
    assert load_checkpoint(saved)["step"] == 1


class Hostile:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of a checkpoint was run')",)


CONTENTS = {"text": b"not a checkpoint", "empty": b"", "lfs": b"version https://git-lfs.github.com/spec/v1\noid"}
OBJECTS = {"hostile": {"config": Hostile(), "model": 1, "job": 1}, "list": [1], "nanoGPT's": {"model": {}}}


@pytest.mark.parametrize("kind, words", [
    ("half", "damaged.*delete it to train again"), ("text", "damaged"), ("empty", "damaged"),
    ("hostile", "damaged"), ("list", "damaged"), ("nanoGPT's", "not a nanoCPT checkpoint"), ("lfs", "Git LFS")])
def test_what_is_no_checkpoint_is_refused_with_its_name_and_runs_no_code(saved, kind, words):
    if kind in OBJECTS:
        torch.save(OBJECTS[kind], saved)
    else:
        saved.write_bytes(CONTENTS.get(kind, saved.read_bytes()[:2000]))
    with pytest.raises(ValueError, match=words) as e:
        load_checkpoint(saved)
    assert "x.pt" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_out_of_memory_is_not_called_damage(saved, error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(OSError, match="not enough memory to load .*x.pt"):
        load_checkpoint(saved)


@pytest.mark.parametrize("arguments, words", [
    (["x.pt", "--exprt", "out"], "--export"), (["x.pt"], "--export"), (["none.pt", "--export", "out"], "none.pt")])
def test_a_wrong_command_is_refused_in_one_line(saved, call, arguments, words):
    code, _, err = call(saved.parent, "model.py", *arguments)
    assert code == 2 and len(err.splitlines()) == 1 and words in err, err


def test_the_command_line_exports_a_checkpoint(saved, tiny, call):
    pytest.importorskip("safetensors")
    assert "out" in call(saved.parent, "model.py", "x.pt", "--export", "out")[1]
    assert torch.equal(load_gpt2(saved.parent / "out")(IDX)[0], tiny(IDX)[0])
