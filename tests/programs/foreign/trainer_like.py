"""A training loop around a model of the transformers library, with a schedule, a collator and mixed precision."""

import torch
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, get_linear_schedule_with_warmup


def collate(samples):
    longest = max(map(len, samples))
    ids = torch.zeros(len(samples), longest, dtype=torch.long)
    for row, sample in enumerate(samples):
        ids[row, : len(sample)] = sample
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": torch.zeros(len(samples)).long()}


samples = [torch.full((10 + index % 50,), 7) for index in range(40)]
config = BertConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512)
model = BertForSequenceClassification(config).to("cuda").train()
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
loader = DataLoader(samples, batch_size=8, collate_fn=collate, shuffle=True)
schedule = get_linear_schedule_with_warmup(optimizer, 2, len(loader))
for batch in loader:
    batch = {name: tensor.to("cuda") for name, tensor in batch.items()}
    with torch.autocast("cuda", dtype=torch.bfloat16):
        output = model(**batch)
    output.loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
print(f"loss {output.loss.item():.3f}, rate {schedule.get_last_lr()[0]:.1e}, {tuple(output.logits.shape)}")
