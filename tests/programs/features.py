"""What ordinary programs do besides training; each function is one promise of the emulation and one test."""

import contextlib
import copy
import json
import sys
import tempfile
import threading
import traceback
from pathlib import Path

import pytest

with contextlib.suppress(ImportError):
    import torchvision.transforms  # noqa: F401  # ahead of torch: it is half imported when the emulation starts

import torch
from torch import nn
from torch.nn import functional

MIB = 1024**2


def device_properties():
    assert torch.cuda.is_available()
    assert torch.cuda.device_count() == 1
    properties = torch.cuda.get_device_properties(0)
    assert properties.name == torch.cuda.get_device_name() == "Virtual 8 GB"
    assert properties.total_memory == 8192 * MIB
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    assert total_bytes == 8192 * MIB
    assert 0 < free_bytes < total_bytes
    assert torch.accelerator.current_accelerator().type == "cuda"


def counters_follow_tensors():
    before = torch.cuda.memory_allocated()
    tensor = torch.zeros(1024, 1024, device="cuda")
    assert torch.cuda.memory_allocated() == before + 4 * MIB
    assert torch.cuda.memory_stats()["allocated_bytes.all.current"] == before + 4 * MIB
    view = tensor[:512]
    assert torch.cuda.memory_allocated() == before + 4 * MIB
    assert view.data_ptr() == tensor.data_ptr()
    del tensor, view
    assert torch.cuda.memory_allocated() == before


def peak_statistics_can_be_reset():
    before = torch.cuda.memory_allocated()
    del_me = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
    del del_me
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() == before


def mixed_precision_with_scaler():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    scaler = torch.amp.GradScaler("cuda")
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.float16):
            output = model(torch.randn(8, 64).cuda())
            assert output.dtype == torch.float16
            loss = functional.cross_entropy(output, torch.zeros(8, dtype=torch.long, device="cuda"))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    assert all(int(state["step"]) == 3 for state in optimizer.state.values()), "no step may be skipped"
    assert scaler.get_scale() == 65536.0


def attention_depends_on_precision_and_mask():
    def peak_of(dtype, mask):
        operands = [torch.randn(2, 8, 512, 64, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3)]
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        functional.scaled_dot_product_attention(*operands, attn_mask=mask).sum().backward()
        return torch.cuda.max_memory_allocated() - before

    scores_bytes = 2 * 8 * 512 * 512 * 4
    flash, efficient = peak_of(torch.bfloat16, None), peak_of(torch.float32, None)
    assert flash < efficient < scores_bytes
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert peak_of(torch.float32, None) > scores_bytes


def transformer_encoder_in_training_and_evaluation():
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).cuda()
    tokens = torch.randn(4, 16, 64).cuda()
    padding = torch.zeros(4, 16, dtype=torch.bool, device="cuda")
    model(tokens, src_key_padding_mask=padding).mean().backward()
    model.eval()
    with torch.inference_mode():
        assert model(tokens).shape == (4, 16, 64)


def inference_mode_reads_values_and_moves_tensors():
    """Autograd, which takes composed operators apart, is off there."""
    with torch.inference_mode():
        logits = torch.randn(4, 10).to("cuda")
        loss = functional.cross_entropy(logits, torch.zeros(4, dtype=torch.long, device="cuda"))
        assert loss.data.item() == float(loss)
        assert logits.argmax(1).cpu().shape == (4,)
        assert functional.linear(logits, logits).reshape(-1).shape == (16,)


def a_loop_ends_by_a_condition_that_is_partly_known():
    """As in the generation of text: the end of a sentence is not known, that it is long enough is."""
    unfinished, finished, length = torch.ones(2, dtype=torch.long, device="cuda"), False, 0
    while not finished:
        length += 1
        assert length <= 5
        word = torch.randn(2, 100, device="cuda").argmax(-1)
        done = torch.full((2,), length == 5, device="cuda") | (word == 7)
        unfinished = unfinished & ~done
        finished = unfinished.max() == 0
    assert length == 5


def tensors_are_made_by_the_names_of_old_types():
    for made in (torch.cuda.FloatTensor(2, 3), torch.cuda.FloatTensor([[1, 2, 3]] * 2), torch.zeros(2, 3).cuda()):
        assert made.is_cuda
        assert made.shape == (2, 3)
        assert isinstance(made, torch.cuda.FloatTensor)
        assert made.type() == "torch.cuda.FloatTensor"
    assert torch.zeros(2).type(torch.cuda.LongTensor).type("torch.cuda.HalfTensor").dtype is torch.float16
    assert torch.zeros(2).type(torch.LongTensor).dtype is torch.int64
    assert torch.cuda.FloatTensor(torch.Size([4])).shape == (4,)
    assert torch.cuda.FloatTensor(torch.ones(2)).fill_(1.0).is_cuda
    assert not isinstance(torch.zeros(2), torch.cuda.FloatTensor)


def recurrent_layers_and_packed_sequences():
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        layer = kind(16, 32, 2, batch_first=True, bidirectional=True).cuda()
        sequences = torch.randn(3, 7, 16, device="cuda")
        output, _ = layer(sequences)
        assert output.shape == (3, 7, 64)
        packed = nn.utils.rnn.pack_padded_sequence(sequences, torch.tensor([7, 5, 2]), batch_first=True)
        output, lengths = nn.utils.rnn.pad_packed_sequence(layer(packed)[0], batch_first=True)
        assert output.shape == (3, 7, 64)
        assert lengths.tolist() == [7, 5, 2]
        output.sum().backward()
        assert all(parameter.grad is not None for parameter in layer.parameters())


def moved_parameters_keep_their_identity():
    model = nn.Module()
    model.embedding = nn.Embedding(10, 4)
    model.head = nn.Linear(4, 10, bias=False)
    model.head.weight = model.embedding.weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [id(parameter) for parameter in model.parameters()]
    model.embedding.weight.mark = "kept"
    model.to("cuda")
    assert [id(parameter) for parameter in model.parameters()] == before
    assert model.head.weight is model.embedding.weight
    assert model.head.weight.mark == "kept"
    assert isinstance(model.head.weight, nn.Parameter)
    assert optimizer.param_groups[0]["params"][0].is_cuda
    model.head(model.embedding(torch.tensor([1, 2], device="cuda"))).sum().backward()
    model.cpu()
    assert model.head.weight.device.type == "cpu"


def values_that_came_from_the_host_are_true():
    lengths = torch.tensor([3, 9, 4]).cuda()
    assert lengths.max().item() == 9
    assert (lengths > 3).tolist() == [False, True, True]
    assert (lengths + torch.ones_like(lengths)).sum().item() == 19
    mask = torch.ones(8, 1024, dtype=torch.long).cuda()
    assert bool((mask == 1).all())
    lengths[1] = 2
    assert lengths.max().item() == 4
    labels = torch.tensor([1, -100, 2, -100]).cuda()
    assert labels[labels != -100].shape == (2,)
    unknown = torch.randn(4, device="cuda")
    unknown.mul_(2)
    assert unknown.cpu().tolist() == [1.0] * 4
    assert torch.isfinite(unknown).all()
    assert not torch.isnan(unknown).any()
    assert f"{unknown.mean():.2f}" == "1.00"


def checkpoints_survive_the_round_trip():
    model = nn.Linear(8, 8).cuda()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 8, device="cuda")).sum().backward()
    optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoint.pt"
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, file)
        loaded = torch.load(file)
        assert loaded["epoch"] == 3
        assert loaded["model"]["weight"].device.type == "cuda"
        model.load_state_dict(loaded["model"])
        optimizer.load_state_dict(loaded["optimizer"])
        assert torch.load(file, map_location="cpu")["model"]["weight"].device.type == "cpu"
        torch.save(torch.arange(5), file)
        assert torch.load(file, map_location="cuda").device.type == "cuda"
        assert torch.load(file).tolist() == [0, 1, 2, 3, 4]


def copies_have_memory_of_their_own():
    model = nn.Linear(1024, 1024).cuda()
    before = torch.cuda.memory_allocated()
    average = copy.deepcopy(model)
    assert torch.cuda.memory_allocated() - before >= 4 * MIB
    for ours, theirs in zip(average.parameters(), model.parameters(), strict=True):
        assert isinstance(ours, nn.Parameter)
        ours.data.mul_(0.9).add_(theirs.data, alpha=0.1)


def data_parallel_on_one_device():
    model = nn.DataParallel(nn.Linear(4, 2)).cuda()
    model(torch.randn(3, 4)).sum().backward()


def streams_and_events():
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.zeros(4, device="cuda").add_(1)
    torch.cuda.current_stream().wait_stream(torch.cuda.Stream())
    end.record()
    torch.cuda.synchronize()
    assert begin.elapsed_time(end) >= 0


def gradient_checkpointing():
    layer = nn.Linear(64, 64).cuda()
    tensor = torch.randn(8, 64, device="cuda", requires_grad=True)
    torch.utils.checkpoint.checkpoint(
        lambda x: functional.dropout(layer(x)), tensor, use_reentrant=False
    ).sum().backward()


def compiled_models_run_eagerly():
    model = torch.compile(nn.Linear(4, 4).cuda())
    model(torch.randn(2, 4, device="cuda")).sum().backward()


def other_threads_use_the_device():
    shapes = []
    worker = threading.Thread(target=lambda: shapes.append((torch.ones(3).cuda() * 2).device.type))
    worker.start()
    worker.join()
    assert shapes == ["cuda"]


def noncontiguous_convolutions_hold_a_copy():
    """Fault F1 of the prototype: a permuted input is made contiguous inside the kernel."""
    layer = nn.Conv1d(64, 64, 9).cuda()
    permuted = torch.randn(16, 4096, 64, device="cuda").transpose(1, 2)  # (16, 64, 4096), not contiguous
    peaks = []
    for data in (permuted, permuted.contiguous()):
        with torch.no_grad():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            layer(data)
            peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[0] - peaks[1] == permuted.numel() * 4


def temporaries_coexist_with_results():
    """Fault F2 of the prototype: the workspace was gone before the results came, so they shared its memory."""
    layer = nn.LSTM(256, 256).cuda().eval()
    sequence = torch.randn(32, 8, 256, device="cuda")
    weights_bytes = sum(parameter.numel() * 4 for parameter in layer.parameters())
    with torch.no_grad():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results = layer(sequence)
    results_bytes = torch.cuda.memory_allocated() - before
    assert results_bytes >= results[0].numel() * 4
    assert torch.cuda.max_memory_allocated() - before >= results_bytes + int(1.5 * weights_bytes)


def generators_and_random_state():
    generator = torch.Generator(device="cuda").manual_seed(1)
    torch.randn(3, device="cuda", generator=generator)
    torch.cuda.manual_seed_all(3)
    with torch.random.fork_rng():
        torch.manual_seed(1)


def sizes_that_depend_on_known_values_are_true():
    counts = torch.tensor([1, 3]).cuda()
    assert torch.repeat_interleave(counts).shape == (4,)
    assert torch.bincount(counts).tolist() == [0, 1, 0, 1]
    assert counts.nonzero().shape == (2, 1)


def loaders_are_whole_unless_cut():
    loader = torch.utils.data.DataLoader(torch.arange(100), batch_size=10)
    assert len(loader) == len(list(loader)) == 10


def an_operator_on_known_shapes_gives_what_it_gave_before():
    """Views, arguments that are written, and `out=` must not become tensors of their own the second time."""
    storage = torch.Tensor.untyped_storage
    for _ in range(2):
        data, other, target = (torch.ones(4, 6, device="cuda") for _ in range(3))
        before = torch.cuda.memory_allocated()

        assert data.add_(other) is data
        assert torch.add(data, other, out=target) is target
        views = (data.t(), data.view(2, 12), data[1:], data.expand(3, 4, 6), data.detach(), *data.split(2))
        assert {storage(view)._cdata for view in views} == {storage(data)._cdata}
        assert [view.storage_offset() for view in (data[1:], data.split(2)[1])] == [6, 12]
        assert data.t().stride() == (1, 6)
        assert torch.cuda.memory_allocated() == before, "neither a view nor a written argument takes memory"

        normal = torch.batch_norm(data, *[None] * 4, True, 0.1, 1e-5, True)
        made = (data + other, data.t() @ other, data.t().contiguous(), normal)
        assert len({storage(one)._cdata for one in (data, other, *made)}) == 6
        assert torch.cuda.memory_allocated() >= before + 4 * 512
        assert (data / 2).dtype is torch.float32
        assert (data.to(torch.int64) + 1).dtype is torch.int64
        assert (data.to(torch.int64) + 1.0).dtype is torch.float32
        assert (data > 1).dtype is torch.bool
        del data, other, target, views, normal, made


def results_of_decompositions_are_charged_the_first_time():
    """The first batch norm of every shape took no memory: what torch's decomposition gives is a named tuple."""
    data = torch.ones(512, 512, device="cuda")
    kept = []
    for number in range(3):
        before = torch.cuda.memory_allocated()
        kept.append(torch.batch_norm(data, *[None] * 4, True, 0.1, 1e-5, True))
        assert torch.cuda.memory_allocated() - before >= MIB, number


def an_out_of_memory_in_the_backward_pass_reaches_the_program():
    kept = torch.empty(6144 * MIB, dtype=torch.uint8, device="cuda")
    tensor = torch.randn(160 * MIB, device="cuda", requires_grad=True)
    result = tensor.exp().sum()
    with pytest.raises(torch.OutOfMemoryError, match=r"^CUDA out of memory\."):
        result.backward()
    assert kept.numel() == 6144 * MIB


def tensors_that_stand_for_others():
    """As 8-bit optimizer states and quantised weights do; copying into one was taken for a copy to the host."""
    from torch.utils._python_dispatch import return_and_correct_aliasing

    class Eighth(torch.Tensor):
        @staticmethod
        def __new__(cls, codes):
            return torch.Tensor._make_wrapper_subclass(cls, codes.shape, device=codes.device, dtype=torch.float32)

        def __init__(self, codes):
            self.codes = codes

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            assert func is torch.ops.aten.copy_.default
            args[0].codes.copy_(args[1].mul(127).to(torch.int8))
            return return_and_correct_aliasing(func, args, kwargs or {}, args[0])

    state = Eighth(torch.zeros(1024, 1024, dtype=torch.int8, device="cuda"))
    assert state.copy_(torch.ones(1024, 1024, device="cuda")) is state
    assert state.codes.is_cuda


def errors_are_those_of_a_gpu():
    tensor = torch.zeros(3, device="cuda")
    for attempt, error, message in (
        (lambda: tensor.numpy(), TypeError, "can't convert cuda:0 device type tensor to numpy"),
        (lambda: torch.zeros(3, device="cuda:1"), RuntimeError, "invalid device ordinal"),
        (lambda: tensor + torch.zeros(3), RuntimeError, "device"),
    ):
        with pytest.raises(error, match=message):
            attempt()


FEATURES = [value for name, value in list(globals().items()) if callable(value) and value.__module__ == "__main__"]

if __name__ == "__main__":
    results = {}
    for feature in FEATURES:
        try:
            feature()
            results[feature.__name__] = None
        except Exception:
            results[feature.__name__] = traceback.format_exc()
    Path(sys.argv[1]).write_text(json.dumps(results))
