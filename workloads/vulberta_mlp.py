# SPDX-License-Identifier: Apache-2.0
"""vulberta_mlp: finds vulnerable C functions with a RoBERTa encoder (ICL-ml4csec/VulBERTa, MLP head).

Start   python -m workloads.vulberta_mlp --epochs 1
Data    D2A, functions: 4,643 + 596 token sequences of 1024, padded, with a mask. 2322 steps of 2, then an evaluation
        of 75 batches of 8.
Model   RobertaForSequenceClassification, 12 layers of 768, vocabulary 50,000, 1026 positions. 124,836,866 parameters,
        all trained.
Train   cross-entropy with balanced class weights; AdamW, learning rate falling linearly to 0, gradients clipped to a
        norm of 1. FP16 autocast with gradient scaling (on the GPU; a CPU trains in FP32); deterministic cuDNN.
Memory  --attention sdpa, the default, takes PyTorch's fused kernels, as current libraries do. The original
        (transformers 4.4) writes its attention probabilities out, 168 MiB per layer at batch 2: --attention eager,
        about 2 GiB more. --checkpointing on keeps only what enters a layer and computes the rest again.

The original starts from the authors' pre-trained encoder (--weights) and evaluates once more after the last epoch; the
latter is left out. Its launcher reported success whatever happened, since the program swallowed every exception.
"""

import gc
from argparse import Namespace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import RobertaConfig, RobertaForSequenceClassification

from workloads import common, samples

EVALUATION_BATCH_SIZE = 8


def arguments(argv: list[str] | None = None) -> Namespace:
    parser = common.torch_parser(__doc__, epochs=10, batch_size=2, lr=3e-5, seed=42)
    parser.add_argument("--weight-decay", type=float, default=0.0, help="not on biases and LayerNorm (default 0)")
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa", help="default sdpa")
    parser.add_argument("--fp16", choices=["on", "off"], default="on", help="mixed precision on the GPU (default on)")
    parser.add_argument("--checkpointing", choices=["on", "off"], default="off", help="default off")
    parser.add_argument("--weights", type=Path, help="state dict of the model to start from (default: random)")
    return parser.parse_args(argv)


# ---- model ----------------------------------------------------------------------------------------------------------


def build_model(args: Namespace) -> nn.Module:
    config = RobertaConfig(
        vocab_size=samples.D2A_VOCABULARY,
        max_position_embeddings=samples.D2A_TOKENS + 2,
        type_vocab_size=1,
        num_labels=2,
        pad_token_id=samples.D2A_PADDING,
        bos_token_id=0,
        eos_token_id=2,
        attn_implementation=args.attention,
    )
    model = RobertaForSequenceClassification(config)
    if args.checkpointing == "on":
        # transformers renamed it in version 5, and warns of the old name since.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model


def batch_logits(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], device: str, fp16: bool) -> Tensor:
    tokens, mask, _ = (tensor.to(device, non_blocking=True) for tensor in batch)  # (N, 1024) int64 each
    with torch.autocast("cuda", torch.float16, enabled=fp16):
        return model(tokens, attention_mask=mask).logits  # (N, 2)


def batch_loss(
    model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], device: str, fp16: bool, class_weights: Tensor
) -> Tensor:
    logits = batch_logits(model, batch, device, fp16)
    return F.cross_entropy(logits.float(), batch[2].to(device), weight=class_weights)


# ---- optimizer ------------------------------------------------------------------------------------------------------


def build_optimizer(model: nn.Module, args: Namespace) -> Optimizer:
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        (plain if name.endswith("bias") or "LayerNorm" in name else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return AdamW(groups, lr=args.lr, betas=(0.9, 0.999), eps=1e-8)


# ---- loop -----------------------------------------------------------------------------------------------------------


def evaluate(
    model: nn.Module, loader: DataLoader, args: Namespace, progress: common.Progress, fp16: bool, weights: Tensor
) -> dict[str, float]:
    model.eval()
    progress.begin("evaluate", len(loader))
    losses, correct, seen = [], 0.0, 0
    with torch.no_grad():
        for number, batch in enumerate(loader, 1):
            logits, labels = batch_logits(model, batch, args.device, fp16).float(), batch[2].to(args.device)
            losses.append(F.cross_entropy(logits, labels, weight=weights).item())
            correct += (logits.argmax(dim=1) == labels).sum().item()
            seen += len(labels)
            progress.step()
            if number == args.max_steps:
                break
    return {"eval_loss": sum(losses) / len(losses), "eval_accuracy_percent": 100 * correct / seen}


def train(args: Namespace, train_set: samples.Functions, dev_set: samples.Functions, progress: common.Progress) -> None:
    common.set_seed(args.seed, deterministic=True)
    options = common.loader_options(args, workers=0)
    train_loader = DataLoader(train_set, args.batch_size, shuffle=True, **options)
    dev_loader = DataLoader(dev_set, EVALUATION_BATCH_SIZE, **options)

    model = build_model(args)
    if args.weights:
        common.load_weights(model, args.weights)
    model.to(args.device)
    class_weights = train_set.class_weights().to(args.device)
    fp16 = args.fp16 == "on" and args.device == "cuda"
    optimizer = build_optimizer(model, args)
    scaler = torch.amp.GradScaler("cuda", enabled=fp16)
    steps = common.full_steps(train_loader, args)
    total_steps = args.epochs * steps
    schedule = LambdaLR(optimizer, lambda done: max(0.0, 1 - done / total_steps))

    progress.ready(train_set.kind, common.num_parameters(model), steps)
    for _ in range(args.epochs):
        model.train()
        progress.begin("train", steps)
        for index, batch in enumerate(train_loader):
            step, part = divmod(index, args.accumulate)  # a step takes so many batches
            parts = min(args.accumulate, len(train_loader) - index + part)  # the last one those that are left
            loss = batch_loss(model, batch, args.device, fp16, class_weights)
            scaler.scale(loss / parts).backward()
            progress.batch(len(batch[0]), loss)
            if part + 1 == parts:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
                schedule.step()
                optimizer.zero_grad()
                progress.step()
                if step + 1 == args.max_steps:
                    break
        metrics = evaluate(model, dev_loader, args, progress, fp16, class_weights)
        if args.save:
            progress.begin("save")
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, args.save)
        progress.end_epoch(metrics)


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    with common.Progress("vulberta_mlp", args) as progress:
        train_set, dev_set = samples.d2a(args.data_dir, "train"), samples.d2a(args.data_dir, "dev")
        train(args, train_set, dev_set, progress)
        while args.repeat:
            gc.collect()  # frees what the last training held
            train(args, train_set, dev_set, progress)


if __name__ == "__main__":
    main()
