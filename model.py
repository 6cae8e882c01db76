"""GPT-2 in one file: the model, LoRA, checkpoints, and the published GPT-2 files in and out.

The decoder of Radford et al. 2019: learned positions, LayerNorm before each sublayer, GELU, input and output
embeddings tied.

    python model.py runs/eu/seed3000/target.pt --export eu-gpt2   # a checkpoint in the published format
    python -c "import model; print(model.GPT(model.GPTConfig()))"  # the 124M, layer by layer

Shape letters, here and in every other file: B batch rows, T tokens in a row, C channels (n_embd), nh heads,
hs = C / nh channels of a head, V vocabulary.
"""
import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from torch.nn import functional as F


@dataclass
class GPTConfig:
    """The shape of a GPT. The defaults are GPT-2's 124M. Raises ValueError for impossible values."""
    vocab_size: int = 50257
    block_size: int = 1024        # longest context T
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768             # channels C, shared equally by the heads
    bias: bool = True             # biases in Linear and LayerNorm; GPT-2 has them
    activation: str = "gelu_new"  # GPT-2's tanh form; "gelu", the exact form, is 5% to 10% faster on a CPU

    def __post_init__(self):
        smallest = min(self.vocab_size, self.block_size, self.n_layer, self.n_head, self.n_embd)
        if smallest < 1 or self.n_embd % self.n_head or self.activation not in ("gelu_new", "gelu"):
            raise ValueError(f"{self}: expected sizes above 0, n_embd a multiple of n_head, gelu_new or gelu")


def causal_attention(q, k, v):
    """softmax(q k^T / sqrt(hs) + causal mask) v for q, k, v of shape (B, nh, T, hs); returns that shape."""
    T, hs = q.shape[-2:]
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or T > 256:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    # torch's bfloat16 kernel for CPUs is slow at short rows: there the formula is written out
    future = torch.full((T, T), float("-inf"), dtype=q.dtype).triu(1)
    return ((q @ k.mT) / math.sqrt(hs) + future).softmax(dim=-1) @ v      # (B, nh, T, T) @ (B, nh, T, hs)


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
                   for part in self.c_attn(x).split(C, dim=2))                # (B, T, C) -> (B, nh, T, hs)
        return self.c_proj(causal_attention(q, k, v).transpose(1, 2).reshape(B, T, C))  # -> (B, T, C)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.approximate = "tanh" if config.activation == "gelu_new" else "none"
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate=self.approximate))  # C -> 4C -> C channels


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """A GPT-2 of any size. Its initial weights come from torch's global generator: seed it first."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),
            wpe=nn.Embedding(config.block_size, config.n_embd),
            h=nn.ModuleList(Block(config) for _ in range(config.n_layer)),
            ln_f=nn.LayerNorm(config.n_embd, bias=config.bias),
        ))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight  # tied: one tensor under two names
        for name, p in self.named_parameters():
            if p.dim() == 2:
                # GPT-2 shrinks the layers that write into the residual stream, of which there are 2 * n_layer
                std = 0.02 / math.sqrt(2 * config.n_layer) if name.endswith("c_proj.weight") else 0.02
                nn.init.normal_(p, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, idx, targets=None, last_only=True):
        """idx (B, T): token ids, T <= block_size. With targets (B, T), -1 not counted: logits (B, T, V), mean
        loss in nats. Without: logits (B, V) after the last token, or (B, T, V) if not last_only; and None."""
        T = idx.size(1)
        if T > self.config.block_size:
            raise ValueError(f"a row of {T} tokens does not fit into block_size={self.config.block_size}")
        x = self.transformer.wte(idx) + self.transformer.wpe.weight[:T]       # (B, T, C) + (T, C)
        for block in self.transformer.h:
            x = block(x)
        x = self.transformer.ln_f(x)
        if targets is None:
            return self.lm_head(x[:, -1] if last_only else x), None
        logits = self.lm_head(x)                                              # (B, T, V)
        return logits, F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-1)

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0):
        """idx (B, T) with max_new_tokens sampled after it, at temperature 0 the likeliest. The model sees the
        last block_size tokens."""
        for _ in range(max_new_tokens):
            logits = self(idx[:, -self.config.block_size:])[0].float()        # (B, V)
            if temperature == 0:
                following = logits.argmax(-1, keepdim=True)                         # (B, 1)
            else:
                following = torch.multinomial((logits / temperature).softmax(-1), 1)
            idx = torch.cat((idx, following), dim=1)
        return idx


class LoRALinear(nn.Module):
    """A Linear whose weight W acts as W + B A (Hu et al. 2021; here B is no batch). A (rank, in) is random, B
    (out, rank) zero: at first nothing changes. Parameters keep their names; lora_A and lora_B join them."""

    def __init__(self, linear, rank):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features) / math.sqrt(linear.in_features))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) + x @ self.lora_A.T @ self.lora_B.T  # (B, T, out)


def add_lora(model, rank):
    """Makes every Linear of the blocks a LoRALinear. The caller chooses which parameters train."""
    for name, linear in list(model.transformer.h.named_modules()):
        if isinstance(linear, nn.Linear):
            model.transformer.h.set_submodule(name, LoRALinear(linear, rank))


@torch.no_grad()
def merge_lora(model):
    """A plain GPT that computes the same: a copy with W + B A in the place of W. `model` stays as it is."""
    plain = copy.deepcopy(model)
    for name, lora in list(plain.named_modules()):
        if isinstance(lora, LoRALinear):
            linear = nn.Linear(*lora.weight.T.shape, device="meta")  # draws no random numbers
            linear.weight, linear.bias = nn.Parameter(lora.weight + lora.lora_B @ lora.lora_A), lora.bias
            plain.set_submodule(name, linear)
    return plain


# ------------------------------------------------ checkpoints
def read_tensors(path, advice):
    """The dict in a file, on the CPU; runs no code of it. ValueError with the advice if it is damaged."""
    with open(path, "rb") as file:
        if file.read(8) == b"version ":
            raise ValueError(f"{path} is a pointer of Git LFS, not the file itself: run `git lfs pull`")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # here, because nothing else needs the package
            return load_file(path)
        mmap = path.suffix == ".pt"  # reads a tensor when it is used; GPT-2's .bin is too old for that
        return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=mmap))
    except ImportError:
        raise OSError(f"to read {path}: pip install safetensors") from None
    except (OSError, MemoryError):
        raise
    except Exception as e:  # a damaged file can lead to any exception
        raise ValueError(f"{path} is damaged or of another kind ({type(e).__name__}): {advice}") from None


def load_checkpoint(path, tok=None):
    """A checkpoint of train.py, on the CPU. ValueError if there is none, or its tokenizer is not tok."""
    if not Path(path).is_file():
        raise ValueError(f"there is no {path}: give a .pt file under runs/, or download GPT-2: {DOWNLOAD}")
    ckpt = read_tensors(Path(path), "give the .pt file of a job; if it is one, delete it to train again")
    if not {"config", "model", "job"} <= ckpt.keys():
        raise ValueError(f"{path} is not a nanoCPT checkpoint: give a .pt file that train.py wrote")
    if tok and ckpt["tokenizer"] != tok.to_json():
        raise ValueError(f"{path} has another tokenizer: choose another --name")
    return ckpt


def model_from_checkpoint(ckpt):
    """The GPT of a checkpoint as it was evaluated: with LoRA merged, with the average of a shadow EMA."""
    arm = ckpt["job"]["arm"]
    model = GPT(GPTConfig(**ckpt["config"]))
    if arm["lora_rank"]:
        add_lora(model, arm["lora_rank"])
    model.load_state_dict(ckpt["model"])
    if arm["shadow"]:
        model.load_state_dict(ckpt["ema"], strict=False)  # it names the tied tensor once
    return merge_lora(model) if arm["lora_rank"] else model


# ------------------------------------------------ the published GPT-2 files
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # stored as (in, out)
MASKS = (".attn.bias", ".attn.masked_bias")  # the causal mask: some files hold it, no model needs it
FIXED = {"model_type": "gpt2", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
         "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
DOWNLOAD = "`hf download openai-community/gpt2 --local-dir gpt2`"


def load_gpt2(folder):
    """The GPT of a folder of published files. ValueError with what is missing, wrong or not supported."""
    config, path = Path(folder, "config.json"), Path(folder, "model.safetensors")
    if not path.exists():
        path = Path(folder, "pytorch_model.bin")
    for file in (config, path):
        if not file.is_file():
            raise ValueError(f"{file} is missing (weights in several parts are not read): {DOWNLOAD}")
    tensors = read_tensors(path, "download it again")
    try:
        c = json.loads(config.read_text())
        for key, value in FIXED.items():
            if c.get(key, value) != value:
                raise ValueError(f"{key} is {c[key]!r}, expected {value!r}")
        model = GPT(GPTConfig(c["vocab_size"], c["n_positions"], c["n_layer"], c["n_head"], c["n_embd"],
                              activation=c.get("activation_function", "gelu_new")))
        tensors = {n.removeprefix("transformer."): x for n, x in tensors.items() if not n.endswith(MASKS)}
        head = tensors.pop("lm_head.weight", tensors["wte.weight"])
        if not torch.equal(head, tensors["wte.weight"]):
            raise ValueError("lm_head.weight differs from wte.weight, expected tied embeddings")
        state = {f"transformer.{n}": x.T if n.endswith(TRANSPOSED) else x for n, x in tensors.items()}
        model.load_state_dict(state | {"lm_head.weight": head})
        return model
    except Exception as e:  # damaged files raise anything
        reason = " ".join(f"{type(e).__name__}: {e}".split())[:200]
        raise ValueError(f"{folder} is not a GPT-2 that can be loaded ({reason})") from None


def save_gpt2(model, folder):
    """Writes model.safetensors and config.json as GPT-2 is published. OSError if they cannot be written."""
    try:
        from safetensors.torch import save
    except ImportError:
        raise OSError("to write model.safetensors: pip install safetensors") from None
    folder, c, tensors = Path(folder), model.config, {}
    for name, p in model.named_parameters():
        x = p.detach().float().cpu()
        tensors[name.removeprefix("transformer.")] = (x.T if name.endswith(TRANSPOSED) else x).contiguous()
    config = FIXED | {
        "architectures": ["GPT2LMHeadModel"], "activation_function": c.activation, "vocab_size": c.vocab_size,
        "n_positions": c.block_size, "n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.n_embd}
    folder.mkdir(parents=True)  # never into one that is there
    (folder / "model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
    (folder / "config.json").write_text(json.dumps(config, indent=1))


if __name__ == "__main__":
    from data import one_line_parser, run_command  # a mistake gets one line
    parser = one_line_parser(description=__doc__)
    parser.add_argument("checkpoint", help="a .pt file under runs/")
    parser.add_argument("--export", metavar="FOLDER", required=True, help="where to write it")
    flags = parser.parse_args()
    run_command(lambda: save_gpt2(model_from_checkpoint(load_checkpoint(flags.checkpoint)), flags.export))
    print(f"{flags.export} is a GPT-2 as published; for its tokenizer, see bench.py --tokenizer")
