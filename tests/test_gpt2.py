"""The published GPT-2: its files in and out, and its logits. gpt2_logits.json holds what the package
transformers computes with the weights of with_known_weights(): its logits[:, ::5, :7]."""
import json
import sys
from pathlib import Path

import pytest
import torch

from model import GPT, GPTConfig, load_gpt2, save_gpt2

SHAPES = [(40, 16, 1, 1, 8), (61, 24, 3, 4, 32), (100, 64, 2, 12, 48)]  # V, T, layers, heads, C
SHAPE = SHAPES[1]


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


CONFIG = {"model_type": "gpt2", "vocab_size": 61, "n_positions": 24, "n_layer": 3, "n_head": 4, "n_embd": 32}


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
    ("config.json", None, "config.json is missing.*hf download"),
    ("config.json", b"{", "JSONDecodeError"),
    ("config.json", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    ("config.json", {"activation_function": "relu"}, "activation='relu'"),
    ("pytorch_model.bin", None, "pytorch_model.bin is missing.*hf download.*several parts"),
    ("pytorch_model.bin", b"garbage", "pytorch_model.bin is damaged.*download it again"),
    ("pytorch_model.bin", {"lm_head.weight": torch.ones(61, 32)}, "lm_head.weight differs from wte.weight"),
    ("pytorch_model.bin", {"h.1.ln_2.bias": None}, "Missing.*h.1.ln_2.bias"),
    ("pytorch_model.bin", {"h.9.x": torch.ones(1)}, "Unexpected.*h.9.x"),
    ("model.safetensors", b"garbage", "model.safetensors is damaged.*download it again"),
    ("model.safetensors", b"version https://git-lfs.github.com/spec/v1", "is a pointer of Git LFS")])
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
