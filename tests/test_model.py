import math
import resource
import zipfile

import pytest
import torch
from torch.nn import functional as F

from model import (GPT, GPTConfig, add_lora, causal_attention, load_checkpoint, load_gpt2,
                   merge_lora, model_from_checkpoint, newest_checkpoint, previous, save_checkpoint)


def test_a_future_token_changes_no_earlier_logit(tiny):
    idx = torch.arange(8)[None]
    changed = idx.clone()
    changed[0, 5] = 9
    a, b = tiny(idx, idx)[0], tiny(changed, idx)[0]
    assert torch.equal(a[0, :5], b[0, :5]) and not torch.equal(a[0, 5], b[0, 5])


def test_loss_is_the_mean_negative_log_probability_of_the_targets_that_count(tiny):
    idx, targets = torch.tensor([[1, 2, 3]]), torch.tensor([[2, -1, 4]])
    with torch.no_grad():
        logits, loss = tiny(idx, targets)
    p = torch.exp(logits[0]) / torch.exp(logits[0]).sum(-1, keepdim=True)
    assert loss.item() == pytest.approx(-(math.log(p[0, 2]) + math.log(p[2, 4])) / 2, abs=1e-6)


@pytest.mark.parametrize("V", [10, 32, 33])
def test_filling_the_vocabulary_up_changes_neither_logits_nor_loss_nor_gradients(V):
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=V, block_size=16, n_layer=1, n_head=2, n_embd=16))
    idx, targets = torch.randint(V, (2, 7)), torch.randint(V, (2, 7))
    logits, loss = model(idx, targets)
    plain = torch.stack([model(idx[:, :n])[0] for n in range(1, 8)], dim=1)  # one token after the other
    expected = F.cross_entropy(plain.flatten(0, 1), targets.flatten())
    assert logits.shape == (2, 7, V) and torch.allclose(logits, plain, atol=1e-6)
    assert torch.allclose(loss, expected)
    parameters = list(model.parameters())
    ours, theirs = torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_without_targets_the_logits_are_those_after_the_last_token(tiny):
    idx = torch.randint(10, (3, 7), generator=torch.Generator().manual_seed(1))
    logits, loss = tiny(idx)
    assert loss is None and logits.shape == (3, 10)
    assert torch.allclose(logits, tiny(idx, idx)[0][:, -1], atol=1e-6)


def test_input_and_output_embeddings_are_one_tensor(tiny):
    assert tiny.lm_head.weight is tiny.transformer.wte.weight
    assert sum("wte" in n or "lm_head" in n for n, _ in tiny.named_parameters()) == 1


def test_the_124m_shape_has_the_parameter_count_of_gpt2():
    with torch.device("meta"):
        assert GPT(GPTConfig()).num_params() == 124_439_808


@pytest.mark.parametrize("bias", [True, False])
def test_biases_are_switchable(bias):
    names = [n for n, _ in GPT(GPTConfig(10, 8, 1, 1, 8, bias)).named_parameters()]
    assert any(n.endswith("bias") for n in names) == bias


@pytest.mark.parametrize("dtype, error", [(torch.float32, 5e-7), (torch.bfloat16, 0.01)])
def test_attention_equals_its_formula_in_values_and_gradients(dtype, error):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 20, 8, generator=g).to(dtype).requires_grad_() for _ in range(3))
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    ours, theirs = causal_attention(q, k, v), F.scaled_dot_product_attention(*exact, is_causal=True)
    for a, b in ((ours, theirs), *zip(torch.autograd.grad(ours.square().sum(), (q, k, v)),
                                      torch.autograd.grad(theirs.square().sum(), exact))):
        assert a.dtype == dtype and (a - b).norm() < error * b.norm()


def test_attention_is_written_out_on_cpus_at_short_rows_in_bfloat16_and_nowhere_else(monkeypatch):
    taken = []

    def kernel(q, k, v, is_causal):
        taken.append((q.dtype, q.size(2)))

    monkeypatch.setattr(F, "scaled_dot_product_attention", kernel)
    for dtype, T in ((torch.bfloat16, 256), (torch.bfloat16, 257), (torch.float32, 255)):
        causal_attention(*torch.randn(3, 1, 1, T, 8).to(dtype))
    assert taken == [(torch.bfloat16, 257), (torch.float32, 255)]


def test_residual_projections_start_smaller_by_the_square_root_of_twice_the_layers():
    torch.manual_seed(0)
    model = GPT(GPTConfig(100, 8, 8, 4, 128))
    assert model.transformer.h[0].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.transformer.h[0].mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)


def test_greedy_generation_takes_the_argmax_and_slides_past_the_block(tiny):
    out = tiny.generate(torch.tensor([[1, 2]]), 20, temperature=0)
    assert out.shape == (1, 22)
    assert out[0, -1] == tiny(out[:, -17:-1])[0][0].argmax()


IDX = torch.arange(10)[None]


def checkpoint(model, rank=0, shadow=False, ema=None):
    return {"config": vars(model.config), "model": model.state_dict(), "ema": ema,
            "job": {"arm": {"lora_rank": rank, "shadow": shadow}}}


def with_lora(model, rank):
    """LoRA that is not zero any more."""
    add_lora(model, rank)
    for n, p in model.named_parameters():
        if "lora_B" in n:
            torch.nn.init.normal_(p, std=0.1)
    return model


def test_lora_at_initialisation_is_the_base_exactly(tiny):
    before = tiny(IDX, IDX)[0]
    add_lora(tiny, 4)
    assert torch.equal(tiny(IDX, IDX)[0], before)
    assert sum("lora" in n for n, _ in tiny.named_parameters()) == 2 * 4 * 2  # A, B; four Linears; two blocks


def test_lora_joins_the_parameters_whose_names_stay(tiny):
    names = {n for n, _ in tiny.named_parameters()}
    add_lora(tiny, 4)
    joined = {n for n, _ in tiny.named_parameters()} - names
    assert len(joined) == 16 and all(n.endswith((".lora_A", ".lora_B")) for n in joined)
    assert names <= {n for n, _ in tiny.named_parameters()}


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_merged_lora_is_the_same_function_with_the_names_of_a_plain_gpt(tiny, rank):
    names, base = [n for n, _ in tiny.named_parameters()], tiny(IDX, IDX)[0]
    unmerged = with_lora(tiny, rank)(IDX, IDX)[0]
    merged = merge_lora(tiny)
    assert [n for n, _ in merged.named_parameters()] == names
    assert merged.lm_head.weight is merged.transformer.wte.weight
    assert torch.allclose(merged(IDX, IDX)[0], unmerged, atol=1e-5)
    assert not torch.allclose(unmerged, base, atol=1e-2)
    loaded = model_from_checkpoint(checkpoint(tiny, rank))  # a checkpoint comes back merged
    assert [n for n, _ in loaded.named_parameters()] == names
    assert torch.equal(loaded(IDX, IDX)[0], merged(IDX, IDX)[0])


def test_merging_lora_changes_neither_the_model_nor_the_random_numbers(tiny):
    with_lora(tiny, 4)
    before, state = {k: v.clone() for k, v in tiny.state_dict().items()}, torch.get_rng_state()
    merge_lora(tiny)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(tiny.state_dict()) == list(before)
    assert all(torch.equal(x, before[n]) for n, x in tiny.state_dict().items())


def test_a_checkpoint_with_a_shadow_gives_the_average(tiny):
    average = {n: p.detach() + 1 for n, p in tiny.named_parameters()}
    for shadow in (False, True):
        loaded = dict(model_from_checkpoint(checkpoint(tiny, shadow=shadow, ema=average)).named_parameters())
        assert all(torch.equal(loaded[n], average[n] if shadow else p) for n, p in tiny.named_parameters())


def test_only_lora_gets_gradients_where_only_lora_trains(tiny):
    add_lora(tiny, 2)
    for n, p in tiny.named_parameters():
        p.requires_grad_("lora_" in n)
    tiny(IDX, IDX)[1].backward()
    assert all((p.grad is not None) == ("lora_" in n) for n, p in tiny.named_parameters())


def test_a_rank_below_one_is_refused(tiny):
    with pytest.raises(ValueError, match="rank is 0"):
        add_lora(tiny, 0)


def test_a_row_longer_than_the_block_and_heads_that_do_not_divide_are_refused_with_their_sizes(tiny):
    with pytest.raises(ValueError, match="17 tokens.*block_size=16"):
        tiny(torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(ValueError, match="n_embd=10.*n_head=3"):
        GPTConfig(n_embd=10, n_head=3)


# ------------------------------------------------------------------------------------------------ checkpoints
class Hostile:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of a checkpoint was run')",)


@pytest.fixture
def saved(tiny, tmp_path):
    """The path of a checkpoint that was written twice."""
    path = tmp_path / "x.pt"
    save_checkpoint(path, checkpoint(tiny) | {"step": 1})
    save_checkpoint(path, checkpoint(tiny) | {"step": 2})
    return path


def test_a_checkpoint_comes_back_as_it_was_and_the_one_before_it_is_kept(saved, tiny):
    ckpt = load_checkpoint(saved)
    assert ckpt["step"] == 2 and load_checkpoint(previous(saved))["step"] == 1
    assert all(torch.equal(ckpt["model"][n], x) for n, x in tiny.state_dict().items())
    assert sorted(p.name for p in saved.parent.iterdir()) == ["x.prev.pt", "x.pt"]


@pytest.mark.parametrize("harm", ["text", "empty", "none", "folder", "half", "hostile", "no keys",
                                  "nanoGPT's", "a list", "zip"])
def test_what_is_no_checkpoint_is_refused_with_its_name_and_runs_no_code(saved, harm):
    data = saved.read_bytes()
    saved.unlink()
    if harm == "folder":
        saved.mkdir()
    elif harm == "zip":
        with zipfile.ZipFile(saved, "w") as file:
            file.writestr("a.txt", "text")
    elif harm in ("text", "empty", "half"):
        saved.write_bytes({"text": b"not a checkpoint", "empty": b"", "half": data[:len(data) // 2]}[harm])
    elif harm != "none":
        torch.save({"hostile": {"config": Hostile(), "model": 1, "ema": 1, "job": 1}, "no keys": {"a": 1},
                    "a list": [1], "nanoGPT's": {"config": {}, "model": {}, "optimizer": {}}}[harm], saved)
    words = "no checkpoint at" if harm in ("none", "folder") else "is not a nanoCPT checkpoint"
    with pytest.raises(ValueError, match=words) as e:
        load_checkpoint(saved)
    assert "x.pt" in str(e.value) and "\n" not in str(e.value) and "delete" not in str(e.value)


def test_every_flipped_bit_is_refused_or_changes_nothing(saved, tiny):
    good, g = saved.read_bytes(), torch.Generator().manual_seed(0)
    refused = 0
    for at in torch.randint(len(good), (300,), generator=g).tolist():
        data = bytearray(good)
        data[at] ^= 1 << at % 8
        saved.write_bytes(data)
        try:
            ckpt = load_checkpoint(saved)
        except ValueError as e:
            assert "x.pt is" in str(e)
            refused += 1
            continue
        assert ckpt["step"] == 2
        assert all(torch.equal(ckpt["model"][n], x) for n, x in tiny.state_dict().items())
    assert refused > 100


@pytest.mark.parametrize("error", [PermissionError(13, "denied"), OSError(5, "I/O error"), MemoryError(),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory")])
@pytest.mark.parametrize("where", ["builtins.open", "torch.load"])
def test_an_intact_checkpoint_that_cannot_be_opened_is_neither_called_damaged_nor_renamed(
        saved, error, where, monkeypatch):
    before = {p: p.read_bytes() for p in saved.parent.iterdir()}

    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(where, fail)
        with pytest.raises(OSError if isinstance(error, OSError) else MemoryError):
            newest_checkpoint(saved)
    assert {p: p.read_bytes() for p in saved.parent.iterdir()} == before
    assert newest_checkpoint(saved)["step"] == 2


def test_a_damaged_checkpoint_is_renamed_and_the_one_before_it_is_used(saved, capsys):
    saved.write_bytes(b"damaged")
    assert newest_checkpoint(saved)["step"] == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and "x.pt" in err and ".damaged" in err
    assert (saved.parent / "x.damaged").read_bytes() == b"damaged" and not saved.exists()


def test_where_only_the_one_before_is_left_it_is_used_and_without_any_there_is_none(saved):
    saved.unlink()
    assert newest_checkpoint(saved)["step"] == 1
    previous(saved).write_bytes(b"damaged")
    assert newest_checkpoint(saved) is None
    assert newest_checkpoint(saved.with_name("none.pt")) is None


def test_a_reader_beside_the_writer_never_puts_an_older_checkpoint_in_the_place_of_a_newer(saved, tiny):
    newest_checkpoint(saved)
    before = {p.name: p.read_bytes() for p in saved.parent.iterdir()}
    saved.rename(saved.with_name("aside"))  # the moment between the two renames of a writer
    assert newest_checkpoint(saved)["step"] == 1
    saved.with_name("aside").rename(saved)
    assert {p.name: p.read_bytes() for p in saved.parent.iterdir()} == before


def test_a_full_disk_gives_one_line_and_leaves_both_checkpoints(saved, tiny):
    before = {p: p.read_bytes() for p in saved.parent.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))  # as on a full disk
    try:
        with pytest.raises(OSError, match="cannot write .*x.pt.*still there") as e:
            save_checkpoint(saved, checkpoint(tiny))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(e.value) and {p: p.read_bytes() for p in saved.parent.iterdir()} == before


# ----------------------------------------------------------------------------------------------- command line
@pytest.mark.parametrize("arguments, words", [
    (["x.pt", "--exprt", "out"], "--exprt"), (["x.pt"], "--export"), (["--export", "out"], "checkpoint"),
    (["none.pt", "--export", "out"], "no checkpoint at none.pt")])
def test_a_wrong_command_is_refused_in_one_line(saved, call, arguments, words):
    code, _, err = call(saved.parent, "model.py", *arguments)
    assert code == 2 and len(err.splitlines()) == 1 and words in err, err
    assert not (saved.parent / "out").exists()


def test_the_command_line_helps_counts_and_exports(saved, tiny, call):
    assert "--export FOLDER" in call(saved.parent, "model.py", "--help")[1]
    assert "124,439,808" in call(saved.parent, "model.py")[1]
    assert "out" in call(saved.parent, "model.py", "x.pt", "--export", "out")[1]
    assert torch.equal(load_gpt2(saved.parent / "out")(IDX)[0], tiny(IDX)[0])
