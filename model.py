"""GPT-2, on one page.

The decoder of Radford et al. 2019: learned positions, LayerNorm before each sublayer, GELU (tanh form), input and
output embeddings tied. Nothing here knows of data, curricula, EMA or benchmarks. The toy GPT of the study and the
published 124M are the same class at two sizes, with the published parameter names.

    python model.py          # builds the 124M shape, counts its parameters, samples from a small untrained one
    python model.py runs/eu/seed2026/target.pt --export eu-gpt2       # in the published format, for other programs

Shape letters, here and in every other file: B batch rows, T tokens in a row, C channels (n_embd), nh heads,
hs = C / nh channels of a head, V vocabulary.
"""
import hashlib
import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from torch.nn import functional as F


@dataclass
class GPTConfig:
    """The shape of a GPT. The defaults are GPT-2's 124M."""
    vocab_size: int = 50257
    block_size: int = 1024   # longest context T
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    bias: bool = True        # biases in Linear and LayerNorm; GPT-2 has them

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}: "
                             "every head takes an equal share of the channels")


def causal_attention(q, k, v):
    """softmax(q k^T / sqrt(hs) + causal mask) v, for q, k, v of shape (B, nh, T, hs); returns the same shape.

    Chooses a kernel; both agree to rounding (tests/test_model.py). Torch's for CPUs can be slow at short blocks, most
    of all its backward pass: there the formula is written out.
    """
    if q.device.type == "cpu" and q.size(-2) <= 256 and WRITTEN_OUT.get(q.dtype):
        return written_out_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


# where the written out form was the faster one: in bfloat16 only with instructions for it (which older torch hides)
WRITTEN_OUT = {torch.float32: torch.backends.cpu.get_cpu_capability() != "AVX512",
               torch.bfloat16: getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16", False)}


def written_out_attention(q, k, v):
    """causal_attention as two batched products and a softmax, in the dtype of q."""
    T, hs = q.shape[-2:]
    future = torch.full((T, T), float("-inf"), dtype=q.dtype).triu(1)
    att = torch.baddbmm(future, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=1 / math.sqrt(hs))
    return torch.bmm(att.softmax(dim=-1), v.flatten(0, 1)).view_as(q)  # (B*nh, T, T) @ (B*nh, T, hs)


class _CPUGELU(torch.autograd.Function):
    """x sigmoid(2z), with z = sqrt(2/pi) (x + 0.044715 x^3): the tanh form of GELU, as (1 + tanh z) / 2 = sigmoid(2z);
    torch's CPU kernels compute a sigmoid four times as fast as a tanh."""
    A, B = 2 * math.sqrt(2 / math.pi), 0.044715

    @staticmethod
    def forward(ctx, x):
        A, B = _CPUGELU.A, _CPUGELU.B
        s = torch.addcmul(x.new_full((), A), x, x, value=A * B).mul_(x).sigmoid_()
        ctx.save_for_backward(x, s)
        return x * s

    @staticmethod
    def backward(ctx, grad):  # y' = s + s (1 - s) x (A + 3 A B x^2)
        A, B, (x, s) = _CPUGELU.A, _CPUGELU.B, ctx.saved_tensors
        d = torch.addcmul(x.new_full((), A), x, x, value=3 * A * B).mul_(x)
        return torch.addcmul(s, torch.addcmul(s, s, s, value=-1), d).mul_(grad)


def gelu(x):
    """GPT-2's GELU, elementwise. The other place that chooses a kernel; both forms agree to rounding."""
    return _CPUGELU.apply(x) if x.device.type == "cpu" else F.gelu(x, approximate="tanh")


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, T, C) -> (B, nh, T, hs)
                   for part in self.c_attn(x).split(C, dim=2))
        y = causal_attention(q, k, v).transpose(1, 2).reshape(B, T, C)        # (B, nh, T, hs) -> (B, T, C)
        return self.c_proj(y)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x):
        return self.c_proj(gelu(self.c_fc(x)))


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
    """A GPT-2 of any size; its initial weights come from torch's global generator (seed it first)."""

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

    def forward(self, idx, targets=None, last=None):
        """idx (B, T) of token ids, T <= block_size -> logits (B, T, V), and the mean cross-entropy in nats against
        targets (B, T), where -1 is not counted; without targets the loss is None. With last, (B,) or (B, K) positions
        in the rows, the logits are theirs alone, (B, V) or (B, K, V): with a large vocabulary they are most of the
        work."""
        B, T = idx.shape
        if T > self.config.block_size:
            raise ValueError(f"a row of {T} tokens does not fit into block_size={self.config.block_size}: shorten it")
        tr = self.transformer
        x = tr.wte(idx) + tr.wpe.weight[:T]                                   # (B, T, C) + (T, C)
        for block in tr.h:
            x = block(x)
        if last is not None:
            rows = torch.arange(B, device=idx.device).view(-1, *[1] * (last.dim() - 1))
            x = x[rows, last]                                                 # (B, T, C) -> (B, C) or (B, K, C)
        x = tr.ln_f(x)
        if targets is None:
            return self.lm_head(x), None                                      # (B, T, V), (B, V) or (B, K, V)
        logits = self.filled_logits(x)                                        # (B, T, V + n)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-1)
        return logits[..., :self.config.vocab_size], loss

    def filled_logits(self, x):
        """x (..., C) -> logits (..., V + n), of which the last n are minus infinity and fill the vocabulary up to a
        multiple of 32: with an odd number of columns the products of a training step are slow, on CPUs and GPUs."""
        V, n = self.config.vocab_size, -self.config.vocab_size % 32
        if n == 0:
            return self.lm_head(x)
        never = F.pad(x.new_zeros(V), (0, n), value=float("-inf"))
        return F.linear(x, F.pad(self.lm_head.weight, (0, 0, 0, n)), never)

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, generator=None):
        """Appends max_new_tokens sampled tokens to idx (B, T) and returns (B, T + max_new_tokens); temperature 0 is
        greedy. A context longer than block_size is cut from the left."""
        for _ in range(max_new_tokens):
            context = idx[:, -self.config.block_size:]
            logits = self(context, last=torch.full_like(context[:, 0], context.size(1) - 1))[0].float()  # (B, V)
            if temperature == 0:
                nxt = logits.argmax(-1, keepdim=True)
            else:
                nxt = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
            idx = torch.cat((idx, nxt), dim=1)
        return idx

    def num_params(self):
        """Number of weights, the tied embedding counted once."""
        return sum(p.numel() for p in self.parameters())


class LoRALinear(nn.Linear):
    """A Linear whose weight W acts as W + B A (Hu et al. 2021), A (rank, in) random, B (out, rank) zero: at first it
    changes nothing. It takes over the tensors of `linear`: parameter names stay, and lora_A, lora_B join them."""

    def __init__(self, linear, rank):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features) / math.sqrt(linear.in_features))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        return super().forward(x) + x @ self.lora_A.T @ self.lora_B.T         # (B, T, in) -> (B, T, r) -> (B, T, out)


def add_lora(model, rank):
    """Puts a LoRALinear in the place of every Linear of the blocks; which parameters train is the caller's choice."""
    if rank < 1:
        raise ValueError(f"LoRA rank is {rank}, expected 1 or more")
    for module in [m for block in model.transformer.h for m in (block.attn, block.mlp)]:
        for name, child in list(module.named_children()):
            setattr(module, name, LoRALinear(child, rank))


@torch.no_grad()
def merge_lora(model):
    """W <- W + B A, and plain Linears again: the same function, an ordinary GPT. Returns the model."""
    for module in [m for block in model.transformer.h for m in (block.attn, block.mlp)]:
        for name, child in list(module.named_children()):
            if isinstance(child, LoRALinear):
                merged = nn.Linear(child.in_features, child.out_features, child.bias is not None, child.weight.device)
                merged.weight.copy_(child.weight + child.lora_B @ child.lora_A)
                merged.bias = child.bias
                setattr(module, name, merged)
    return model


def checksum(value):
    """SHA-256, in hex, of nested dicts, lists, tensors and plain values: of what they hold, not of how a file does."""
    digest = hashlib.sha256()

    def add(v):
        if isinstance(v, torch.Tensor):
            digest.update(f"{v.dtype}{tuple(v.shape)}".encode())
            digest.update(v.detach().cpu().reshape(-1).view(torch.uint8).numpy())
        elif isinstance(v, (dict, list, tuple)):
            digest.update(f"{type(v).__name__}{len(v)}".encode())
            for x in (y for item in v.items() for y in item) if isinstance(v, dict) else v:
                add(x)
        else:
            digest.update(f"{type(v).__name__}{v!r};".encode())

    add(value)
    return digest.hexdigest()


def save_checkpoint(path, ckpt):
    """Writes a dict of numbers, strings and tensors with its checksum: to a temporary file, flushed, then renamed. The
    file that was at `path` becomes previous(path). Raises OSError, with what was there untouched."""
    tmp = path.with_name(path.name + ".tmp")
    try:
        with open(tmp, "wb") as f:
            torch.save(ckpt | {"sha256": checksum(ckpt)}, f)
            f.flush()
            os.fsync(f.fileno())
    except (OSError, RuntimeError) as e:  # torch reports a full disk as a RuntimeError
        tmp.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {getattr(e, 'strerror', None) or str(e).splitlines()[0]}; what was saved "
                      "before is still there") from None
    if path.exists():
        os.replace(path, previous(path))
    os.replace(tmp, path)


def previous(path):
    """Where the checkpoint before the one at path is kept."""
    return path.with_suffix(".prev.pt")


def load_checkpoint(path):
    """A checkpoint of train.py as a dict of numbers, strings and tensors on the CPU; no code in the file is run. Raises
    ValueError if there is none at path, it cannot be read, or its contents are not what was written."""
    try:
        ckpt = torch.load(path, map_location="cpu", weights_only=True)
        found = ckpt.pop("sha256")
    except FileNotFoundError:
        raise ValueError(f"no checkpoint at {path}: give the path of a .pt file under runs/") from None
    except Exception as e:
        raise ValueError(f"{path} is not a readable nanoCPT checkpoint ({type(e).__name__}): delete it and "
                         "rerun") from None
    if checksum(ckpt) != found:
        raise ValueError(f"{path} is damaged, its contents do not have the checksum {found[:12]} that was written with "
                         "them: delete it and rerun")
    return ckpt


def model_from_checkpoint(ckpt):
    """The GPT that such a dict holds, as it was evaluated: with LoRA merged, with the average of a shadow EMA."""
    model = GPT(GPTConfig(**ckpt["config"]))
    rank = next((p.size(0) for name, p in ckpt["model"].items() if name.endswith("lora_A")), 0)
    if rank:
        add_lora(model, rank)
    shadow = "job" in ckpt and ckpt["job"]["arm"]["shadow"]
    model.load_state_dict(ckpt["model"] | ckpt["ema"] if shadow else ckpt["model"])
    return merge_lora(model)


# ------------------------------------------------------------------------------------------- the published GPT-2 files
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")  # published (in, out)
NUMBERS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_safetensors(path):
    """{name: tensor} of a safetensors file: the length of the header in 8 bytes, the header in JSON, the numbers."""
    try:
        blob = torch.from_file(str(path), False, path.stat().st_size, dtype=torch.uint8)  # mapped, not read
        end = 8 + int.from_bytes(bytes(blob[:8].tolist()), "little")
        tensors = {}
        for name, entry in json.loads(bytes(blob[8:end].tolist())).items():
            if name != "__metadata__":
                first, last = entry["data_offsets"]
                tensors[name] = blob[end + first:end + last].clone().view(NUMBERS[entry["dtype"]]).view(entry["shape"])
        return tensors
    except (ValueError, KeyError, RuntimeError, TypeError) as e:
        raise ValueError(f"{path} is not a safetensors file, or not all of one ({type(e).__name__}): download it "
                         "again") from None


def load_gpt2(folder):
    """A GPT from a folder with the published files of a GPT-2 of any size: config.json and model.safetensors, or
    pytorch_model.bin, of which no code is run. Raises ValueError with what is missing or does not fit."""
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
        model = GPT(GPTConfig(config["vocab_size"], config["n_positions"], config["n_layer"], config["n_head"],
                              config["n_embd"]))
        if config.get("activation_function", "gelu_new") != "gelu_new":
            raise ValueError(f"its activation is {config['activation_function']!r}, GPT-2's is 'gelu_new'")
    except OSError:
        raise ValueError(f"{folder} has no config.json: give the folder of a GPT-2 as published") from None
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{folder}/config.json does not describe a GPT-2 ({type(e).__name__}: {e})") from None
    if (folder / "model.safetensors").exists():
        path = folder / "model.safetensors"
        published = read_safetensors(path)
    else:
        path = folder / "pytorch_model.bin"
        try:
            published = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise ValueError(f"{folder} has neither model.safetensors nor pytorch_model.bin") from None
        except Exception as e:
            raise ValueError(f"{path} is not a file of plain tensors ({type(e).__name__})") from None
    published = {name.removeprefix("transformer."): x for name, x in published.items()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            name = name.removeprefix("transformer.")
            if name not in published:
                raise ValueError(f"{path} has no tensor {name!r}: it is not a GPT-2, or not all of one")
            x = published.pop(name)
            x = x.T if name.endswith(TRANSPOSED) else x
            if x.shape != p.shape:
                raise ValueError(f"{path}: {name} has the shape {tuple(x.shape)}, config.json wants {tuple(p.shape)}")
            p.copy_(x)
    rest = [n for n in published if n != "lm_head.weight" and not n.endswith(("attn.bias", "attn.masked_bias"))]
    if rest:
        raise ValueError(f"{path} has a tensor {rest[0]!r} that GPT-2 has not")
    return model


def save_gpt2(model, folder):
    """Writes a GPT in the published format, config.json and model.safetensors, where other programs can load it."""
    folder, c, header, parts, at = Path(folder), model.config, {}, [], 0
    for name, p in model.named_parameters():
        name = name.removeprefix("transformer.")
        x = (p.T if name.endswith(TRANSPOSED) else p).detach().float().cpu().contiguous()
        header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [at, at := at + 4 * x.numel()]}
        parts.append(x.numpy().tobytes())
    text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"".join([len(text).to_bytes(8, "little"), text, *parts]))
    (folder / "config.json").write_text(json.dumps({
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": c.vocab_size,
        "n_positions": c.block_size, "n_ctx": c.block_size, "n_layer": c.n_layer, "n_head": c.n_head,
        "n_embd": c.n_embd,
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}, indent=1))


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[2] == "--export":
        try:
            save_gpt2(model_from_checkpoint(load_checkpoint(sys.argv[1])), sys.argv[3])
        except (ValueError, OSError) as e:
            print(f"error: {e}", file=sys.stderr)
            sys.exit(2)
        print(f"{sys.argv[3]}: config.json and model.safetensors, as GPT-2 is published")
    else:
        with torch.device("meta"):
            print(f"GPT-2 124M: {GPT(GPTConfig()).num_params():,} parameters")
        torch.manual_seed(0)
        tiny = GPT(GPTConfig(vocab_size=10, block_size=16, n_layer=2, n_head=2, n_embd=32))
        print("untrained, greedy:", tiny.generate(torch.zeros(1, 1, dtype=torch.long), 15, temperature=0)[0].tolist())
