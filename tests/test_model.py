import copy
import math

import pytest
import torch
from torch.nn import functional as F

from model import GPT, GPTConfig, add_lora, causal_attention, gelu, load_checkpoint, merge_lora, model_from_checkpoint
from model import written_out_attention


def test_a_future_token_changes_no_earlier_logit(tiny):
    idx = torch.arange(8)[None]
    changed = idx.clone()
    changed[0, 5] = 9
    a, b = tiny(idx)[0], tiny(changed)[0]
    assert torch.equal(a[0, :5], b[0, :5]) and not torch.equal(a[0, 5], b[0, 5])


def test_loss_is_the_mean_negative_log_probability_of_the_targets_that_count(tiny):
    idx, targets = torch.tensor([[1, 2, 3]]), torch.tensor([[2, -1, 4]])
    with torch.no_grad():
        logits, loss = tiny(idx, targets)
    p = torch.exp(logits[0]) / torch.exp(logits[0]).sum(-1, keepdim=True)
    assert loss.item() == pytest.approx(-(math.log(p[0, 2]) + math.log(p[2, 4])) / 2, abs=1e-6)


def test_filling_the_vocabulary_up_changes_neither_loss_nor_gradients(tiny):
    x = torch.randn(2, 7, tiny.config.n_embd, generator=torch.Generator().manual_seed(1), requires_grad=True)
    targets, inputs, V = torch.arange(14) % 10, (x, tiny.lm_head.weight), tiny.config.vocab_size
    filled, plain = tiny.filled_logits(x), tiny.lm_head(x)
    assert filled.shape[-1] == 32 > V and torch.allclose(filled[..., :V], plain) and (filled[..., V:] == -math.inf).all()
    ours, theirs = (F.cross_entropy(y.flatten(0, 1), targets) for y in (filled, plain))
    assert torch.allclose(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_logits_of_one_position_are_those_of_the_whole_row(tiny):
    idx = torch.randint(10, (3, 7), generator=torch.Generator().manual_seed(1))
    assert torch.allclose(tiny(idx, last=torch.tensor([2, 6, 0]))[0], tiny(idx)[0][[0, 1, 2], [2, 6, 0]], atol=1e-6)


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
def test_the_written_out_attention_equals_torchs_kernel_in_values_and_gradients(dtype, error):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 20, 8, generator=g).to(dtype).requires_grad_() for _ in range(3))
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    ours, theirs = written_out_attention(q, k, v), F.scaled_dot_product_attention(*exact, is_causal=True)
    for a, b in ((ours, theirs), *zip(torch.autograd.grad(ours.square().sum(), (q, k, v)),
                                      torch.autograd.grad(theirs.square().sum(), exact))):
        assert a.dtype == dtype and (a - b).norm() < error * b.norm()


def test_attention_is_written_out_at_short_blocks_in_the_dtypes_where_that_is_faster(monkeypatch):
    shapes = []
    monkeypatch.setattr("model.written_out_attention", lambda q, k, v: shapes.append(q.shape) or q)
    monkeypatch.setattr("model.WRITTEN_OUT", {torch.bfloat16: True, torch.float32: False})
    for dtype, T in ((torch.bfloat16, 256), (torch.bfloat16, 257), (torch.float32, 256)):
        causal_attention(*torch.randn(3, 1, 1, T, 8).to(dtype))
    assert shapes == [(1, 1, 256, 8)]


@pytest.mark.parametrize("dtype, error", [(torch.float64, 4e-15), (torch.bfloat16, 0.01)])
def test_the_gelu_of_cpus_equals_torchs_in_values_and_gradients(dtype, error):
    x = torch.linspace(-12, 12, 999, dtype=torch.float64).to(dtype).requires_grad_()
    exact = x.detach().double().requires_grad_()
    ours, theirs = gelu(x), F.gelu(exact, approximate="tanh")
    slopes = [torch.autograd.grad(y.square().sum(), z)[0] for y, z in ((ours, x), (theirs, exact))]
    for a, b in ((ours, theirs), slopes):
        assert a.dtype == dtype and (a - b).norm() < error * b.norm()


def test_residual_projections_start_smaller_by_the_square_root_of_twice_the_layers():
    torch.manual_seed(0)
    model = GPT(GPTConfig(100, 8, 8, 4, 128))
    assert model.transformer.h[0].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.transformer.h[0].mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)


def test_greedy_generation_takes_the_argmax_and_slides_past_the_block(tiny):
    out = tiny.generate(torch.tensor([[1, 2]]), 20, temperature=0)
    assert out.shape == (1, 22)
    assert out[0, -1] == tiny(out[:, -17:-1])[0][0, -1].argmax()


IDX = torch.arange(10)[None]


def test_lora_at_initialisation_is_the_base_exactly(tiny):
    before = tiny(IDX)[0]
    add_lora(tiny, 4)
    assert torch.equal(tiny(IDX)[0], before)
    assert sum("lora" in n for n, _ in tiny.named_parameters()) == 2 * 4 * 2  # A and B, four Linears, two blocks


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_merged_lora_is_the_same_function_with_the_names_of_a_plain_gpt(tiny, rank):
    names = [n for n, _ in tiny.named_parameters()]
    add_lora(tiny, rank)
    for n, p in tiny.named_parameters():
        if "lora_B" in n:
            torch.nn.init.normal_(p, std=0.1)
    unmerged, ckpt = tiny(IDX)[0], {"config": vars(tiny.config), "model": tiny.state_dict()}
    merged = merge_lora(copy.deepcopy(tiny))
    assert [n for n, _ in merged.named_parameters()] == names
    assert torch.allclose(merged(IDX)[0], unmerged, atol=1e-5) and not torch.allclose(merged(IDX)[0], tiny.lm_head.weight[0, 0])
    assert torch.equal(model_from_checkpoint(ckpt)(IDX)[0], merged(IDX)[0])  # a checkpoint comes back merged


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


def test_a_damaged_or_missing_checkpoint_is_named(tmp_path):
    (tmp_path / "bad.pt").write_bytes(b"not a checkpoint")
    for name in ("bad.pt", "none.pt"):
        with pytest.raises(ValueError, match=name):
            load_checkpoint(tmp_path / name)
