"""The model, LoRA, checkpoints, and the published GPT-2: its files in and out, and its logits."""
import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from data import write_file
from model import (GPT, GPTConfig, add_lora, causal_attention, load_checkpoint, load_gpt2, merge_lora,
                   model_from_checkpoint, save_gpt2)

IDX = torch.arange(10)[None]
SHAPES = [(40, 16, 1, 1, 8), (61, 24, 3, 4, 32), (100, 64, 2, 12, 48)]  # V, T, layers, heads, C
SHAPE = SHAPES[1]
CONFIG = {"model_type": "gpt2", "vocab_size": 61, "n_positions": 24, "n_layer": 3, "n_head": 4, "n_embd": 32}


def test_a_future_token_changes_no_earlier_logit(tiny):
    changed = IDX.clone()
    changed[0, 5] = 9
    a, b = tiny(IDX, last_only=False)[0], tiny(changed, last_only=False)[0]
    assert torch.equal(a[0, :5], b[0, :5]) and not torch.equal(a[0, 5], b[0, 5])


def test_loss_is_the_mean_negative_log_probability_of_the_targets_that_count(tiny):
    idx, targets = torch.tensor([[1, 2, 3]]), torch.tensor([[2, -1, 4]])
    logits, loss = tiny(idx, targets)
    p = logits[0].detach().exp() / logits[0].detach().exp().sum(-1, keepdim=True)
    assert loss.item() == pytest.approx(-(math.log(p[0, 2]) + math.log(p[2, 4])) / 2, abs=1e-6)


def test_without_targets_the_logits_are_those_after_the_last_token_or_after_every_token(tiny):
    idx = torch.randint(10, (3, 7), generator=torch.Generator().manual_seed(1))
    (last, no_loss), every = tiny(idx), tiny(idx, last_only=False)[0]
    assert last.shape == (3, 10) and every.shape == (3, 7, 10) and no_loss is None
    assert torch.allclose(last, every[:, -1], atol=1e-6) and torch.equal(every, tiny(idx, idx)[0])


def test_input_and_output_embeddings_are_one_tensor_and_gpt2_has_its_published_number_of_parameters(tiny):
    assert tiny.lm_head.weight is tiny.transformer.wte.weight
    for c, n in ((tiny.config, sum(p.numel() for p in tiny.parameters())), (GPTConfig(), 124_439_808)):
        assert n == c.n_embd * (c.vocab_size + c.block_size + c.n_layer * (12 * c.n_embd + 13) + 2)


def test_residual_projections_start_smaller_by_the_square_root_of_twice_the_layers():
    torch.manual_seed(0)
    mlp = GPT(GPTConfig(100, 8, 8, 4, 128)).transformer.h[0].mlp
    assert mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.05) and not mlp.c_fc.bias.any()
    assert mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)


@pytest.mark.parametrize("dtype, error", [(torch.float32, 5e-7), (torch.bfloat16, 0.01)])
def test_attention_equals_its_formula_in_values_and_gradients(dtype, error):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 20, 8, generator=g).to(dtype).requires_grad_() for _ in range(3))
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    ours, theirs = causal_attention(q, k, v), F.scaled_dot_product_attention(*exact, is_causal=True)
    for a, b in ((ours, theirs), *zip(torch.autograd.grad(ours.square().sum(), (q, k, v)),
                                      torch.autograd.grad(theirs.square().sum(), exact))):
        assert a.dtype == dtype and (a - b).norm() < error * b.norm()


def test_the_activation_is_the_tanh_form_of_gelu_or_the_exact_one():
    for activation, expected in (("gelu_new", 0.8411920), ("gelu", 0.8413447)):
        mlp = GPT(GPTConfig(10, 8, 1, 1, 4, bias=False, activation=activation)).transformer.h[0].mlp
        mlp.c_fc = mlp.c_proj = torch.nn.Identity()
        assert mlp(torch.ones(1)).item() == pytest.approx(expected, abs=1e-6)


def test_cold_generation_takes_the_argmax_and_slides_past_the_block(tiny):
    out = tiny.generate(torch.tensor([[1, 2]]), 20, temperature=1e-5)
    assert out.shape == (1, 22) and out[0, -1] == tiny(out[:, -17:-1])[0][0].argmax()


def test_a_row_longer_than_the_block_and_an_impossible_shape_are_refused_with_their_sizes(tiny):
    with pytest.raises(ValueError, match="17 tokens.*block_size=16"):
        tiny(torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(ValueError, match="n_head=5, n_embd=768"):
        GPTConfig(n_head=5)


def checkpoint(model, rank=0, **more):
    job = {"name": "x", "arm": {"lora_rank": rank, "shadow": "ema" in more}}
    return {"config": vars(model.config), "model": model.state_dict(), "job": job} | more


def test_lora_at_initialisation_is_the_base_exactly_and_joins_parameters_whose_names_stay(tiny):
    before, names = tiny(IDX)[0], {n for n, _ in tiny.named_parameters()}
    add_lora(tiny, 4)
    joined = {n for n, _ in tiny.named_parameters()} - names
    assert torch.equal(tiny(IDX)[0], before) and names < {n for n, _ in tiny.named_parameters()}
    assert len(joined) == 2 * 4 * 2 and all("lora_" in n for n in joined)  # A and B; four Linears; two blocks


@pytest.mark.parametrize("rank", [1, 16])
def test_merged_lora_is_a_plain_gpt_that_is_the_same_function_and_leaves_the_model_as_it_was(tiny, rank):
    names, base = [n for n, _ in tiny.named_parameters()], tiny(IDX)[0]
    add_lora(tiny, rank)
    for n, p in tiny.named_parameters():
        if "lora_B" in n:
            torch.nn.init.normal_(p, std=0.1)
    unmerged, random_numbers = tiny(IDX)[0], torch.get_rng_state()
    merged = merge_lora(tiny)
    assert torch.equal(torch.get_rng_state(), random_numbers) and torch.equal(tiny(IDX)[0], unmerged)
    assert (merged(IDX)[0] - unmerged).abs().max() < 1e-5 and (base - unmerged).abs().max() > 1e-2
    loaded = model_from_checkpoint(checkpoint(tiny, rank))
    assert torch.equal(loaded(IDX)[0], merged(IDX)[0])
    assert [n for n, _ in merged.named_parameters()] == [n for n, _ in loaded.named_parameters()] == names


def save(path, ckpt):
    """As train.save does."""
    write_file(path, lambda file: torch.save(ckpt, file))


@pytest.fixture
def saved(tiny, tmp_path):
    save(tmp_path / "x.pt", checkpoint(tiny) | {"step": 1})
    return tmp_path / "x.pt"


def test_a_checkpoint_comes_back_as_it_was_and_stays_so_while_its_file_is_replaced(saved, tiny):
    old, before = load_checkpoint(saved), {n: x.clone() for n, x in tiny.state_dict().items()}
    with torch.no_grad():
        tiny.transformer.wpe.weight.add_(1)
    save(saved, checkpoint(tiny) | {"step": 2})
    new = load_checkpoint(saved)
    assert (old["step"], new["step"]) == (1, 2) and [p.name for p in saved.parent.iterdir()] == ["x.pt"]
    assert all(torch.equal(old["model"][n], x) for n, x in before.items())
    assert all(torch.equal(new["model"][n], x) for n, x in tiny.state_dict().items())


def test_a_checkpoint_with_a_shadow_gives_the_average(tiny):
    average = {n: p.detach() + 1 for n, p in tiny.named_parameters()}
    loaded = model_from_checkpoint(checkpoint(tiny, ema=average))
    assert all(torch.equal(p, average[n]) for n, p in loaded.named_parameters())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_a_full_disk_is_named_and_leaves_the_checkpoint_that_was_there_and_nothing_else(saved, tiny):
    before = saved.read_bytes()
    saved.with_name(f"x.pt.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="cannot write .*x.pt: .*No space left on device.*still holds"):
        save(saved, checkpoint(tiny))
    assert saved.read_bytes() == before and [p.name for p in saved.parent.iterdir()] == ["x.pt"]


@pytest.mark.parametrize("content, words", [
    (b"not a checkpoint", "damaged.*delete it to train again"), (b"", "damaged"), ("half", "damaged"),
    (b"version https://git-lfs.github.com/spec/v1", "Git LFS"), ({"job": Path()}, "damaged"),
    ([1], "damaged"), ({"model": {}, "optimizer": {}}, "not a nanoCPT checkpoint")])
def test_what_is_no_checkpoint_is_refused_in_one_line_and_no_code_is_run(saved, content, words):
    if content == "half":
        saved.write_bytes(saved.read_bytes()[:2000])
    elif isinstance(content, bytes):
        saved.write_bytes(content)
    else:
        torch.save(content, saved)
    with pytest.raises(ValueError, match=f"x.pt is .*{words}") as e:
        load_checkpoint(saved)
    assert "\n" not in str(e.value)


def tokens(shape):
    return (torch.arange(2 * shape[1]) ** 2 % shape[0]).view(2, shape[1])


def with_known_weights(shape, **more):
    """A GPT whose weights are a formula: a generator's numbers may change with the version of torch."""
    model = GPT(GPTConfig(*shape, **more))
    with torch.no_grad():
        for k, (name, p) in enumerate(model.named_parameters()):
            wave = torch.sin(torch.arange(p.numel(), dtype=torch.float64) * (0.7 + 0.13 * k) + k)
            p.copy_((wave * 0.3 + name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight"))).view(p.shape))
    return model


@torch.no_grad()
def logits(model, shape):
    return model(tokens(shape), last_only=False)[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_those_that_the_reference_implementation_gave(shape):
    # the package transformers, with these weights: its logits[:, ::5, :7]
    expected = json.loads(Path(__file__).with_name("gpt2_logits.json").read_text())[str(shape)]
    assert (logits(with_known_weights(shape), shape)[:, ::5, :7] - torch.tensor(expected)).abs().max() < 1e-4


@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_export_loads_bit_for_bit_and_goes_through_the_reference_and_back(shape, activation, tmp_path):
    pytest.importorskip("safetensors")
    model = with_known_weights(shape, activation=activation)
    save_gpt2(model, tmp_path / "out")
    again = load_gpt2(tmp_path / "out")
    assert again.config == model.config and torch.equal(logits(again, shape), logits(model, shape))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    reference = pytest.importorskip("transformers").GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()
    assert (reference(tokens(shape)).logits - logits(model, shape)).abs().max() < 1e-4
    reference.save_pretrained(tmp_path / "back")
    assert torch.equal(logits(load_gpt2(tmp_path / "back"), shape), logits(model, shape))


@pytest.fixture
def published(tmp_path):
    """(a folder as first published, its tensors): pytorch_model.bin in torch's old format, no prefixes,
    buffers of the causal mask. The matrices of the blocks are stored as (in, out)."""
    state = {}
    for name, p in with_known_weights(SHAPE).named_parameters():
        in_out = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        state[name.removeprefix("transformer.")] = p.detach().T if in_out else p.detach()
    for i in range(3):
        state[f"h.{i}.attn.bias"] = torch.ones(1, 1, 24, 24)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return tmp_path, state


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_the_published_bin_loads_with_or_without_prefix_and_output_embedding(published, prefix, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)  # as if the package was not installed
    folder, state = published
    if prefix:
        head = {"lm_head.weight": state["wte.weight"].clone()}
        torch.save(head | {prefix + name: x for name, x in state.items()}, folder / "pytorch_model.bin")
    assert torch.equal(logits(load_gpt2(folder), SHAPE), logits(with_known_weights(SHAPE), SHAPE))


@pytest.mark.parametrize("name, content, words", [
    ("config.json", None, "config.json is missing.*hf download"), ("config.json", b"{", "JSONDecodeError"),
    ("config.json", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    ("config.json", {"activation_function": "relu"}, "activation='relu'"),
    ("pytorch_model.bin", None, "pytorch_model.bin is missing.*several parts.*hf download"),
    ("pytorch_model.bin", b"garbage", "pytorch_model.bin is damaged.*download it again"),
    ("pytorch_model.bin", {"lm_head.weight": torch.ones(61, 32)}, "lm_head.weight differs from wte.weight"),
    ("pytorch_model.bin", {"h.1.ln_2.bias": None}, "Missing.*h.1.ln_2.bias"),
    ("pytorch_model.bin", {"h.9.x": torch.ones(1)}, "Unexpected.*h.9.x"),
    ("model.safetensors", b"garbage", "model.safetensors is damaged.*download it again")])
def test_a_folder_that_is_no_gpt2_is_refused_in_one_line_with_the_reason(published, name, content, words):
    pytest.importorskip("safetensors")
    folder, state = published
    path = folder / name
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif name == "config.json":
        path.write_text(json.dumps(CONFIG | content))
    else:
        torch.save({n: x for n, x in (state | content).items() if x is not None}, path)
    with pytest.raises(ValueError, match=words) as e:
        load_gpt2(folder)
    assert str(folder) in str(e.value) and "\n" not in str(e.value)


def test_without_the_package_safetensors_one_line_says_how_to_install_it(published, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (published[0] / "model.safetensors").write_bytes(b"anything")
    for use in (lambda: load_gpt2(published[0]), lambda: save_gpt2(with_known_weights(SHAPE), published[0])):
        with pytest.raises(OSError, match="model.safetensors: pip install safetensors"):
            use()
