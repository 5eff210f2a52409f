"""A sequence classifier of the transformers library and its Trainer, with evaluation and mixed precision."""

import tempfile

import numpy
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments


class Sentences(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        ids = torch.full((64,), index + 5)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor(index % 2)}


def metrics(given):
    return {"accuracy": float((numpy.argmax(given.predictions, axis=-1) == given.label_ids).mean())}


model = BertForSequenceClassification(
    BertConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512)
)
arguments = TrainingArguments(
    output_dir=tempfile.mkdtemp(),
    num_train_epochs=1,
    per_device_train_batch_size=8,
    per_device_eval_batch_size=16,
    fp16=True,
    logging_steps=2,
    eval_strategy="epoch",
    save_strategy="no",
    report_to=[],
)
trainer = Trainer(
    model=model, args=arguments, train_dataset=Sentences(), eval_dataset=Sentences(), compute_metrics=metrics
)
trainer.train()
print(sorted(trainer.evaluate()))
