"""The programs behind published figures of peak memory, each written anew as its source describes it.

A program trains a few steps on the emulated device and returns; `prediction_accuracy.py` calls it in a process of its
own. Arguments are a row's columns, as text.
"""

from collections.abc import Callable
from typing import Any

import published_detectors
import published_transformers
import torch
from torch import nn
from torch.nn import functional

STEPS = 3


def timm_script(model: str, batch: str, **row: str) -> None:
    """The script of timm by default: its prefetching loader, SGD with momentum, label smoothing.

    That script switches cudnn.benchmark on and forgets the gradients right after the step.
    """
    import timm
    from timm.data.loader import PrefetchLoader

    torch.backends.cudnn.benchmark = True
    with torch.device("cuda"):
        network = timm.create_model(model).train()
    size = network.pretrained_cfg.get("input_size", (3, 224, 224))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    loss_function = nn.CrossEntropyLoss(label_smoothing=0.1)
    batches = [(torch.zeros(int(batch), *size, dtype=torch.uint8), torch.zeros(int(batch), dtype=torch.long))] * STEPS
    optimizer.zero_grad()
    for images, targets in PrefetchLoader(batches):
        loss = loss_function(network(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def images(model: str, batch: str, size: str, optimizer: str, **row: str) -> None:
    """A torchvision model on random images; the loop of xMem forgets gradients between forward and backward."""
    import torchvision

    with torch.device("cuda"):
        network = getattr(torchvision.models, model)(weights=None).train()
    momentum = {"momentum": 0.9} if size == "224" else {}
    stepper = getattr(torch.optim, optimizer)(network.parameters(), lr=1e-3, **momentum)
    for _ in range(STEPS):
        inputs = torch.zeros(int(batch), 3, int(size), int(size)).cuda()
        targets = torch.zeros(int(batch), dtype=torch.long).cuda()
        outputs = network(inputs)
        loss = functional.cross_entropy(outputs, targets)
        stepper.zero_grad()
        loss.backward()
        stepper.step()
        torch.max(outputs, 1)


def language(model: str, batch: str, size: str, optimizer: str, **row: str) -> None:
    """A causal language model of transformers in single precision, labels as inputs: xMem's loop for text."""
    import transformers

    common = {"attn_implementation": "sdpa", "use_cache": False}
    if model == "gpt-neo-125M":
        config: Any = transformers.GPTNeoConfig(
            hidden_size=768,
            num_layers=12,
            num_heads=12,
            attention_types=[[["global", "local"], 6]],
            attn_implementation="eager",
            use_cache=False,
        )
    elif model == "Cerebras-GPT-111M":
        config = transformers.GPT2Config(
            n_embd=768, n_layer=10, n_head=12, n_inner=3072, n_positions=2048, activation_function="gelu", **common
        )
    else:
        config = transformers.OPTConfig(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, ffn_dim=3072)
    with torch.device("cuda"):
        network = transformers.AutoModelForCausalLM.from_config(config).train()
    stepper = getattr(torch.optim, optimizer)(network.parameters(), lr=1e-4)
    for _ in range(STEPS):
        ids = torch.full((int(batch), int(size)), 7).cuda()
        mask = torch.ones(int(batch), int(size), dtype=torch.long).cuda()
        outputs = network(input_ids=ids, attention_mask=mask, labels=ids)  # the last ones live until here
        stepper.zero_grad()
        outputs.loss.backward()
        stepper.step()


def bert_large(model: str, batch: str, optimizer: str, dtype: str, **row: str) -> None:
    """BERT-large with the Trainer and the PyTorch of January 2022, which kept the input of softmax for backward.

    PyTorch issue 64000, fixed by its pull request 65242; ``zero_grad`` kept the gradients' memory, and the optimizers
    went parameter by parameter. ``model`` names what was on.
    """
    from transformers import BertConfig, BertForSequenceClassification
    from transformers.optimization import Adafactor

    _keep_input_of_softmax()
    sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    with torch.device("cuda"):
        network = BertForSequenceClassification(BertConfig(**sizes, attn_implementation="eager")).train()
    if batch == "0":
        return
    if "checkpointing" in model:
        network.gradient_checkpointing_enable()
    if optimizer == "AdamW":
        stepper: Any = torch.optim.AdamW(network.parameters(), lr=1e-5, foreach=False)
    else:
        stepper = Adafactor(network.parameters(), lr=1e-5, scale_parameter=False, relative_step=False)
    accumulate = 4 if "accumulated" in model else 1
    half = dtype == "fp16 AMP"
    scaler = torch.amp.GradScaler("cuda", enabled=half)
    for _ in range(STEPS):
        for _ in range(accumulate):
            ids = torch.full((int(batch), 512), 7).cuda()
            labels = torch.zeros(int(batch), dtype=torch.long).cuda()
            with torch.autocast("cuda", torch.float16, enabled=half):
                loss = network(input_ids=ids, labels=labels).loss
            scaler.scale(loss / accumulate).backward()
        scaler.step(stepper)
        scaler.update()
        stepper.zero_grad(set_to_none=False)


def _keep_input_of_softmax() -> None:
    """Softmax as before PyTorch 1.11: its backward keeps input and output."""

    class Softmax(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, tensor: Any, dim: int, dtype: Any) -> Any:
            result = torch.softmax(tensor.detach(), dim, dtype=dtype)
            context.save_for_backward(tensor, result)
            context.dim = dim
            return result

        @staticmethod
        def backward(context: Any, gradient: Any) -> Any:
            tensor, result = context.saved_tensors
            return torch.ops.aten._softmax_backward_data(gradient, result, context.dim, tensor.dtype), None, None

    def softmax(tensor: Any, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
        if torch.is_autocast_enabled("cuda"):
            tensor = tensor.float()  # autocast runs softmax in single precision
        return Softmax.apply(tensor, dim, dtype)

    functional.softmax = softmax


def vit_large(batch: str, dtype: str, optimizer: str, model: str, **row: str) -> None:
    """ViT-L/16 of torchvision with ten classes, the loop of the source's scripts with Lightning Fabric.

    Gradients are forgotten after the forward pass, or after the step where they are accumulated (``x4``). Adam was that
    of PyTorch before 2.1, which made a list of denominators beside that of square roots.
    """
    import torchvision

    in_place = torch._foreach_add_

    def add_out_of_place(tensors: Any, other: Any, **options: Any) -> None:
        if isinstance(other, float):  # the epsilon
            torch._foreach_add(tensors, other)
        in_place(tensors, other, **options)

    torch._foreach_add_ = add_out_of_place

    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    with torch.device("cuda"):
        torch.set_default_dtype(kind)
        network = torchvision.models.vit_l_16(weights=None, num_classes=10).train()
        torch.set_default_dtype(torch.float32)
    stepper = getattr(torch.optim, optimizer)(network.parameters(), lr=5e-5)
    half = dtype == "fp16 AMP"
    scaler = torch.amp.GradScaler("cuda", enabled=half)
    accumulate = 4 if "x4" in model else 1
    for _ in range(STEPS):
        for number in range(accumulate):
            features = torch.zeros(int(batch), 3, 224, 224).cuda().to(kind)
            targets = torch.zeros(int(batch), dtype=torch.long).cuda()
            with torch.autocast("cuda", torch.float16, enabled=half):
                logits = network(features)
            loss = functional.cross_entropy(logits.float() if half else logits, targets)
            if accumulate == 1:
                stepper.zero_grad()
            scaler.scale(loss / accumulate).backward()
            if number == accumulate - 1:
                scaler.step(stepper)
                scaler.update()
                if accumulate > 1:
                    stepper.zero_grad()


class Norm(nn.Module):
    """Layer normalisation from scratch, as in the source's book."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x: Any) -> Any:
        """Scale and shift."""
        mean = x.mean(dim=-1, keepdim=True)
        variance = x.var(dim=-1, keepdim=True, unbiased=False)
        return self.scale * ((x - mean) / torch.sqrt(variance + 1e-5)) + self.shift


class Gelu(nn.Module):
    """GELU from scratch."""

    def forward(self, x: Any) -> Any:
        """Activate."""
        return 0.5 * x * (1 + torch.tanh(torch.sqrt(torch.tensor(2.0 / torch.pi)) * (x + 0.044715 * torch.pow(x, 3))))


class GptBlock(nn.Module):
    """A transformer block of GPT-2, from scratch or of PyTorch's own parts."""

    def __init__(self, native: bool, flash: bool, kept_mask: bool) -> None:
        super().__init__()
        self.flash = flash
        self.qkv = nn.Linear(768, 3 * 768, bias=False) if flash else None
        self.query, self.key, self.value = (None if flash else nn.Linear(768, 768, bias=False) for _ in range(3))
        self.out, self.dropout = nn.Linear(768, 768), nn.Dropout(0.1)
        if kept_mask:
            self.register_buffer("mask", torch.triu(torch.ones(1024, 1024), diagonal=1))
        self.kept_mask = kept_mask
        self.norms = nn.ModuleList([nn.LayerNorm(768) if native else Norm(768) for _ in range(2)])
        activation = nn.GELU(approximate="tanh") if native else Gelu()
        self.feed = nn.Sequential(nn.Linear(768, 3072), activation, nn.Linear(3072, 768))
        self.drop = nn.Dropout(0.1)

    def attend(self, x: Any) -> Any:
        """Attend to what came before, fused or with whole matrices of scores."""
        batch, length, _ = x.shape
        if self.qkv is not None:
            query, key, value = self.qkv(x).view(batch, length, 3, 12, 64).permute(2, 0, 3, 1, 4)
            found = functional.scaled_dot_product_attention(query, key, value, dropout_p=0.1, is_causal=True)
            return self.out(found.transpose(1, 2).contiguous().view(batch, length, 768))
        key, query, value = self.key(x), self.query(x), self.value(x)  # type: ignore[misc]
        key, value, query = (one.view(batch, length, 12, 64).transpose(1, 2) for one in (key, value, query))
        scores = query @ key.transpose(2, 3)
        if self.kept_mask:
            mask = self.mask.bool()[:length, :length]
        else:
            mask = torch.triu(torch.ones(length, length, dtype=torch.bool, device=x.device), diagonal=1)
        scores.masked_fill_(mask, -torch.inf)
        weights = self.dropout(torch.softmax(scores / 8.0, dim=-1))
        return self.out((weights @ value).transpose(1, 2).reshape(batch, length, 768))

    def forward(self, x: Any) -> Any:
        """Attend, then feed forward."""
        x = x + self.drop(self.attend(self.norms[0](x)))
        return x + self.drop(self.feed(self.norms[1](x)))


def gpt_from_scratch(model: str, batch: str, dtype: str, **row: str) -> None:
    """GPT-2 of 124 million parameters from a book, with its changes one after the other; compilation is left out."""
    changes = ("baseline", "causal mask on the fly", "bf16", "native LayerNorm/GELU", "flash attention")
    place = next((place for place, name in enumerate(changes) if name in model), len(changes))
    vocabulary = 50304 if "padded" in model else 50257
    blocks = [GptBlock(place >= 3, place >= 4, place == 0) for _ in range(12)]
    tokens, positions = nn.Embedding(vocabulary, 768), nn.Embedding(1024, 768)
    norm, head = nn.LayerNorm(768) if place >= 3 else Norm(768), nn.Linear(768, vocabulary, bias=False)
    network = nn.ModuleList([tokens, positions, *blocks, norm, head, nn.Dropout(0.1)])
    network.cuda().to(torch.bfloat16 if dtype == "bf16" else torch.float32).train()
    stepper = torch.optim.AdamW(network.parameters(), lr=5e-4, weight_decay=0.1, fused=place >= 1 or None)

    def loss_of(ids: Any, targets: Any) -> Any:
        ids, targets = ids.cuda(), targets.cuda()
        x = network[-1](tokens(ids) + positions(torch.arange(ids.shape[1], device=ids.device)))
        for block in blocks:
            x = block(x)
        return functional.cross_entropy(head(norm(x)).flatten(0, 1), targets.flatten())

    ids = torch.full((int(batch), 1024), 7)
    for step in range(STEPS):
        stepper.zero_grad()
        loss = loss_of(ids, ids)
        loss.backward()
        stepper.step()
        if step == 0:
            network.eval()
            with torch.no_grad():
                loss_of(ids, ids), loss_of(ids, ids)
            network.train()


def mlp(model: str, batch: str, **row: str) -> None:
    """A multilayer perceptron of GPUMemNet's generator, Adam; ``model`` has its sizes and shape."""
    words = model.split()
    width, classes, depth = (int("".join(filter(str.isdigit, word))) for word in words[1:4])
    shape, activation = words[4], words[5].partition("_")[0]
    dropout = float(model.partition("dropout:")[2].partition("_")[0] or 0) if "dropout:True" in model else 0.0
    norm = "batchnorm:True" in model
    layers: list[nn.Module] = []
    inputs = width

    def add(outputs: int) -> None:
        nonlocal inputs
        layers.append(nn.Linear(inputs, outputs))
        layers.extend([nn.BatchNorm1d(outputs)] if norm else [])
        layers.append(getattr(nn, activation)())
        layers.extend([nn.Dropout(dropout)] if dropout else [])
        inputs = outputs

    for _ in range(depth):
        if shape == "uniform":
            add(inputs)
        elif shape == "gradual":
            add(max(inputs - (width - classes) // depth, classes))
        else:
            add(max(inputs // 2, classes))
    if shape == "bottleneck":
        add(max(inputs // 2, classes))
    network = nn.Sequential(*layers, nn.Linear(inputs, classes)).cuda()
    stepper = torch.optim.Adam(network.parameters())
    for _ in range(STEPS):
        features, targets = torch.zeros(int(batch), width).cuda(), torch.zeros(int(batch), dtype=torch.long).cuda()
        stepper.zero_grad()
        loss = functional.cross_entropy(network(features), targets)
        loss.backward()
        stepper.step()


def segmentation(batch: str, size: str, **row: str) -> None:
    """FCN with a ResNet-50 of output stride 8 and an auxiliary head, cudnn.benchmark on, as mmsegmentation's config.

    torchvision's ResNet with the deep stem that is meant; two convolutions and a concatenation in the head. It was
    measured on several GPUs: DistributedDataParallel holds each gradient twice.
    """
    import torchvision
    from torchvision.models._utils import IntermediateLayerGetter

    torch.backends.cudnn.benchmark = True
    dilation = [False, True, True]
    backbone = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=dilation)
    body = IntermediateLayerGetter(backbone, {"layer3": "aux", "layer4": "out"})

    def block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        )

    stem = nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True),
        block(32, 32), nn.Conv2d(32, 64, 3, padding=1, bias=False),
    )  # fmt: skip
    body["conv1"] = stem
    first, second, joined = block(2048, 512), block(512, 512), block(2560, 512)
    head, auxiliary = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(512, 19, 1)), block(1024, 256)
    auxiliary_head = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(256, 19, 1))
    network = nn.ModuleList([body, first, second, joined, head, auxiliary, auxiliary_head]).cuda().train()
    stepper = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    height, width = map(int, size.split("x"))
    bucket = torch.empty(sum(one.numel() for one in network.parameters()), device="cuda")
    assert bucket.is_cuda
    for _ in range(STEPS):
        pictures = torch.zeros(int(batch), 3, height, width).cuda()
        labels = torch.zeros(int(batch), height, width, dtype=torch.long).cuda()
        features = body(pictures)
        outputs = head(joined(torch.cat([features["out"], second(first(features["out"]))], dim=1)))
        losses = [
            functional.cross_entropy(
                functional.interpolate(one, size=(height, width), mode="bilinear", align_corners=False), labels,
                reduction="none", ignore_index=255,
            ).mean()
            for one in (outputs, auxiliary_head(auxiliary(features["aux"])))
        ]  # fmt: skip
        stepper.zero_grad()
        (losses[0] + 0.4 * losses[1]).backward()
        stepper.step()


PROGRAMS: dict[str, Callable[..., None]] = {
    one.__name__: one
    for one in (
        timm_script, images, language, bert_large, vit_large, gpt_from_scratch, mlp, segmentation,
    )
} | published_transformers.PROGRAMS | published_detectors.PROGRAMS  # fmt: skip
