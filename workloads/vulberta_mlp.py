# SPDX-License-Identifier: Apache-2.0
"""vulberta_mlp: finds vulnerable C functions with a RoBERTa encoder (ICL-ml4csec/VulBERTa, MLP head).

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

import sys
from argparse import Namespace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import RobertaConfig, RobertaForSequenceClassification

if not __package__:  # started as a file: the package lies in the folder above
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from workloads import common, samples

EVALUATION_BATCH_SIZE = 8


def arguments(argv: list[str] | None = None) -> Namespace:
    parser = common.torch_parser(__doc__, epochs=10, batch_size=2, lr=3e-5, seed=42)
    parser.add_argument("--weight-decay", type=float, default=0.0, help="not on biases and LayerNorm (default 0)")
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa", help="default sdpa")
    parser.add_argument("--fp16", choices=["on", "off"], default="on", help="mixed precision on the GPU (default on)")
    common.checkpointing_argument(parser)
    common.weights_argument(parser, "the model")
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


def evaluate(model: nn.Module, loader: DataLoader, run: common.Run, fp16: bool, weights: Tensor) -> dict[str, float]:
    model.eval()
    losses, correct, seen = [], 0.0, 0
    with torch.no_grad():
        for batch in run.evaluate(loader):
            logits, labels = batch_logits(model, batch, run.device, fp16).float(), batch[2].to(run.device)
            losses.append(F.cross_entropy(logits, labels, weight=weights).item())
            correct += (logits.argmax(dim=1) == labels).sum().item()
            seen += len(labels)
    return {"eval_loss": sum(losses) / len(losses), "eval_accuracy_percent": 100 * correct / seen}


def train(args: Namespace, train_set: samples.Functions, dev_set: samples.Functions, run: common.Run) -> None:
    common.set_seed(args.seed, deterministic=True)
    options = run.loader_options(workers=0)
    train_loader = DataLoader(train_set, args.batch_size, shuffle=True, **options)
    dev_loader = DataLoader(dev_set, EVALUATION_BATCH_SIZE, **options)

    model = build_model(args)
    if args.weights:
        common.load_weights(model, args.weights)
    model.to(run.device)
    class_weights = train_set.class_weights().to(run.device)
    fp16 = args.fp16 == "on" and run.device == "cuda"
    optimizer = build_optimizer(model, args)
    scaler = torch.amp.GradScaler("cuda", enabled=fp16)
    total_steps = args.epochs * common.full_steps(train_loader, args)
    schedule = LambdaLR(optimizer, lambda done: max(0.0, 1 - done / total_steps))

    run.ready(train_set.kind, model, train_loader)
    for _ in run.epochs():
        model.train()
        for step in run.train(train_loader):
            for batch in step.batches:
                loss = batch_loss(model, batch, run.device, fp16, class_weights)
                scaler.scale(loss / len(step.batches)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            optimizer.zero_grad()
            step.done(loss)
        metrics = evaluate(model, dev_loader, run, fp16, class_weights)
        run.save(model=model.state_dict(), optimizer=optimizer.state_dict())
        run.epoch_end(metrics)


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    with common.Run("vulberta_mlp", args) as run:
        train_set, dev_set = samples.d2a(args.data_dir, "train"), samples.d2a(args.data_dir, "dev")
        for _ in run.repeats():
            train(args, train_set, dev_set, run)


if __name__ == "__main__":
    main()
