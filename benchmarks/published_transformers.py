"""Transformers, adapters and single layers behind published figures; the rest is in `published_programs`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

STEPS = 3


def attention(model: str, batch: str, size: str, **row: str) -> None:
    """The training table of transformers' pages on attention: a language model in fp16, without an optimizer.

    Gradients are forgotten, the logits of random tokens are summed and go backward, and the last outputs live until
    the next are there. Rows of BERT and DistilBERT fit to a percent where the decoder has a matrix of its own, and lie
    one matrix above where it shares that of the embedding; so theirs were not tied.
    """
    import transformers

    name, _, kind = model.partition(" attn=")
    common = {"attn_implementation": kind, "tie_word_embeddings": name.startswith("OPT")}
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    if name.startswith("OPT"):
        shape = large | {"ffn_dim": 4096, "word_embed_proj_dim": 512, "do_layer_norm_before": False}
        config: Any = transformers.OPTConfig(vocab_size=50272, **shape, **common)
        network_of: Any = transformers.OPTForCausalLM
    elif name.startswith("pythia"):
        shape = large | {"intermediate_size": 4096, "vocab_size": 50304}
        config, network_of = transformers.GPTNeoXConfig(**shape, **common), transformers.GPTNeoXForCausalLM
    elif name.startswith("BERT"):
        config, network_of = transformers.BertConfig(**common), transformers.BertForMaskedLM
    else:
        config, network_of = transformers.DistilBertConfig(**common), transformers.DistilBertForMaskedLM
    torch.set_default_dtype(torch.float16)
    with torch.device("cuda"):
        network = network_of(config).train()
    torch.set_default_dtype(torch.float32)
    ids = torch.full((int(batch), int(size)), 7).cuda()
    for _ in range(STEPS):
        network.zero_grad()
        outputs = network(ids)
        outputs.logits.sum().backward()


class RmsNorm(nn.Module):
    """The normalisation of Llama, in single precision inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Any) -> Any:
        """Normalise."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


def _sparsemax(x: Any) -> Any:
    ordered, _ = torch.sort(x, dim=-1, descending=True)
    sums = torch.cumsum(ordered, dim=-1)
    places = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)
    support = 1 + places * ordered > sums
    count = support.sum(dim=-1, keepdim=True).clamp(min=1)
    threshold = ((ordered * support).sum(dim=-1, keepdim=True) - 1) / count
    return torch.clamp(x - threshold, min=0)


def layer(model: str, size: str, **row: str) -> None:
    """What Liger's benchmarks compare their kernels with: one layer of PyTorch or transformers, forward and back.

    Its gradient is made anew for a block of Llama, and before the first turn for the others.
    """
    name, wide = model.split()[0], int(size)
    half = torch.bfloat16
    if name in ("geglu", "swiglu"):
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaMLP

        act, batch = ("gelu_pytorch_tanh", 8) if name == "geglu" else ("silu", 4)
        block: Any = LlamaMLP(LlamaConfig(hidden_size=4096, intermediate_size=11008, hidden_act=act)).cuda().to(half)
        x = torch.zeros(batch, wide, 4096, device="cuda", dtype=half, requires_grad=True)
    elif name == "rms_norm":
        block, x = RmsNorm(wide).cuda(), torch.zeros(2048, wide, device="cuda", dtype=half, requires_grad=True)
    elif name == "layer_norm":
        block, x = nn.LayerNorm(wide).cuda(), torch.zeros(4096, wide, device="cuda", requires_grad=True)
    elif name == "sparsemax":
        block, x = _sparsemax, torch.zeros(4 * 512, wide, device="cuda", requires_grad=True)
    else:
        x = torch.zeros(8 * 2048, wide, device="cuda", requires_grad=True).log_softmax(dim=-1)
        target = torch.zeros(8 * 2048, wide, device="cuda").softmax(dim=-1)
        block = lambda x: functional.kl_div(x, target, reduction="batchmean")  # noqa: E731
    kept = None if name in ("geglu", "swiglu", "kl_div") else torch.zeros_like(x)

    def turn() -> None:
        y = block(x)
        gradient = kept if kept is not None else None if name == "kl_div" else torch.zeros_like(y)
        y.backward(gradient, retain_graph=True)

    for _ in range(STEPS):
        turn()


# The length of the longest batch of the source's data, which is not published: what a LoRA of rank 32 fits to
# (21260 MiB). The other rows have the same data.
LONGEST_OF_METAMATH = 657


def adapters(model: str, batch: str, **row: str) -> None:
    """Llama 3.2 with 3 billion parameters in bfloat16, and an adapter of PEFT: its comparison of methods on MetaMathQA.

    Gradients are forgotten before the forward pass and clipped; what is trained is in single precision.
    """
    import peft
    import transformers

    sizes = {"hidden_size": 3072, "num_hidden_layers": 28, "intermediate_size": 8192, "vocab_size": 128256}
    heads = {"num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True}
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        network: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))
    torch.set_default_dtype(torch.float32)
    kinds = {
        "LoRA, rank 64": peft.LoraConfig(r=64, task_type="CAUSAL_LM"),
        "DoRA, rank 32": peft.LoraConfig(r=32, use_dora=True, task_type="CAUSAL_LM"),
        "layer norms": peft.LNTuningConfig(task_type="CAUSAL_LM"),
        "VeRA": peft.VeraConfig(task_type="CAUSAL_LM"),
    }
    network = peft.get_peft_model(network, kinds[model.partition(": ")[2]]).train()
    stepper = torch.optim.AdamW([one for one in network.parameters() if one.requires_grad], lr=1e-4)
    for _ in range(STEPS):
        ids = torch.full((int(batch), LONGEST_OF_METAMATH), 7).cuda()
        stepper.zero_grad()
        mask, count = torch.ones_like(ids), ids.numel()
        outputs = network(input_ids=ids, attention_mask=mask, labels=ids.clone(), num_items_in_batch=count)
        outputs.loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        stepper.step()


def low_bit(model: str, batch: str, optimizer: str, dtype: str, **row: str) -> None:
    """Torchao's benchmark of optimizers: a ViT of timm with 45 classes, and an evaluation after the epoch."""
    import timm

    network = timm.create_model(
        model.partition(",")[0], num_classes=45, **({"img_size": 224} if "giant" in model else {})
    )
    if "checkpointing" in model:
        network.set_grad_checkpointing()
    whole = dtype == "bf16"
    network = (network.bfloat16() if whole else network).cuda()
    if "compiled" in model:
        network.compile(fullgraph=True)
    if optimizer == "AdamW":
        stepper: Any = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    else:
        from torchao import optim

        stepper = getattr(optim, optimizer)(network.parameters(), lr=1e-4)

    def outputs(images: Any) -> Any:
        with torch.autocast("cuda", torch.bfloat16, enabled=not whole):
            return network((images.bfloat16() if whole else images).cuda())

    images = torch.zeros(int(batch), 3, 224, 224)
    for _ in range(STEPS):
        loss = functional.cross_entropy(outputs(images), torch.zeros(int(batch), dtype=torch.long).cuda())
        loss.backward()
        stepper.step()
        stepper.zero_grad()


PROGRAMS: dict[str, Callable[..., None]] = {one.__name__: one for one in (attention, layer, adapters, low_bit)}
