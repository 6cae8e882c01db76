"""The published GPT-2: its files in and out, and its logits.

    python tests/test_gpt2.py        makes gpt2_logits.json again, with the package transformers
"""
import json
from pathlib import Path

import pytest
import torch

from model import GPT, GPTConfig, load_gpt2, read_safetensors, save_gpt2

EXPECTED = Path(__file__).with_name("gpt2_logits.json")
SHAPES = [(40, 16, 1, 1, 8), (61, 24, 3, 4, 32), (100, 64, 2, 12, 48)]  # V, T, layers, heads, C
IDX = lambda shape: (torch.arange(2 * shape[1]) ** 2 % shape[0]).view(2, shape[1])


def with_known_weights(shape):
    """A GPT whose weights are a formula, not a generator's numbers, which may change with the version of torch."""
    model = GPT(GPTConfig(*shape))
    with torch.no_grad():
        for k, (name, p) in enumerate(model.named_parameters()):
            wave = torch.sin(torch.arange(p.numel(), dtype=torch.float64) * (0.7 + 0.13 * k) + k)
            p.copy_((wave * 0.3 + name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight"))).view(p.shape))
    return model


def theirs(folder):
    from transformers import GPT2LMHeadModel
    return GPT2LMHeadModel.from_pretrained(folder).eval()


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_those_that_the_reference_implementation_gave(shape):
    expected = torch.tensor(json.loads(EXPECTED.read_text())[str(shape)])
    assert (with_known_weights(shape)(IDX(shape))[0][:, ::5, :7] - expected).abs().max() < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_exported_loads_in_the_reference_implementation_and_there_has_equal_logits(shape, tmp_path):
    pytest.importorskip("transformers")
    model = with_known_weights(shape)
    save_gpt2(model, tmp_path)
    with torch.no_grad():
        assert (theirs(tmp_path)(IDX(shape)).logits - model(IDX(shape))[0]).abs().max() < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_what_the_reference_implementation_saves_loads_here_and_has_equal_logits(shape, tmp_path):
    transformers = pytest.importorskip("transformers")
    V, T, n_layer, n_head, C = shape
    other = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=V, n_positions=T, n_layer=n_layer, n_head=n_head, n_embd=C)).eval()
    other.save_pretrained(tmp_path)
    with torch.no_grad():
        assert (other(IDX(shape)).logits - load_gpt2(tmp_path)(IDX(shape))[0]).abs().max() < 1e-4


def test_export_and_import_give_the_same_model_bit_for_bit(tmp_path):
    model = with_known_weights(SHAPES[1])
    save_gpt2(model, tmp_path)
    again = load_gpt2(tmp_path)
    assert again.config == model.config
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters()))


@pytest.fixture
def published(tmp_path):
    """A folder as the published one: pytorch_model.bin, without the prefix, with the buffers of the causal mask."""
    model = with_known_weights(SHAPES[1])
    save_gpt2(model, tmp_path)
    state = read_safetensors(tmp_path / "model.safetensors")
    state |= {f"h.{i}.attn.{n}": torch.ones(1, 1, 24, 24) for i in range(3) for n in ("bias", "masked_bias")}
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    return tmp_path, state


@pytest.mark.parametrize("prefix, head", [("", False), ("transformer.", True)])
def test_the_published_bin_loads_with_or_without_prefix_head_and_mask_buffers(published, prefix, head):
    folder, state = published
    state = {prefix + name: x for name, x in state.items()} | ({"lm_head.weight": state["wte.weight"]} if head else {})
    torch.save(state, folder / "pytorch_model.bin")
    shape = SHAPES[1]
    assert torch.equal(load_gpt2(folder)(IDX(shape))[0], with_known_weights(shape)(IDX(shape))[0])


class Hostile:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of a checkpoint was run')",)


@pytest.mark.parametrize("harm, words", [
    ("no config", "no config.json"), ("config", "does not describe a GPT-2"), ("relu", "activation is 'relu'"),
    ("no weights", "neither model.safetensors nor"), ("hostile", "not a file of plain tensors"),
    ("missing", "no tensor 'h.1.ln_2.bias'"), ("more", "'h.9.x' that GPT-2 has not"), ("shape", "wpe.weight has the shape"),
    ("truncated", "not all of one"), ("garbage", "not a safetensors file"), ("integers", "not a safetensors file")])
def test_a_folder_that_is_no_gpt2_is_refused_with_the_reason(published, harm, words):
    folder, state = published
    config, path = json.loads((folder / "config.json").read_text()), folder / "pytorch_model.bin"
    if harm in ("no config", "no weights"):
        (folder / {"no config": "config.json", "no weights": path.name}[harm]).unlink()
    elif harm in ("config", "relu"):
        changed = {"n_layer": "many"} if harm == "config" else {"activation_function": "relu"}
        (folder / "config.json").write_text(json.dumps(config | changed))
    elif harm in ("truncated", "garbage", "integers"):
        save_gpt2(with_known_weights(SHAPES[1]), folder)
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes({
            "truncated": data[:-100], "garbage": b"garbage", "integers": data.replace(b'"F32"', b'"I64"')}[harm])
    else:
        state = {"hostile": {"x": Hostile()}, "missing": {k: v for k, v in state.items() if k != "h.1.ln_2.bias"},
                 "more": state | {"h.9.x": torch.ones(1)}, "shape": state | {"wpe.weight": torch.ones(3, 3)}}[harm]
        torch.save(state, path)
    with pytest.raises(ValueError, match=words):
        load_gpt2(folder)


if __name__ == "__main__":
    import tempfile
    values = {}
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            save_gpt2(with_known_weights(shape), folder)
            values[str(shape)] = [[[round(x, 6) for x in row] for row in rows] for rows in
                                  theirs(folder)(IDX(shape)).logits[:, ::5, :7].tolist()]
    EXPECTED.write_text(json.dumps(values) + "\n")
