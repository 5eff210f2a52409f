"""Loops of the kinds that a cut pass used to break or to miss; prints the allocator's peak behind each, in MiB."""

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

MIB = 1 << 20


def peak_of(loop) -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    loop()
    print(f"-- {loop.__name__} {torch.cuda.max_memory_allocated() // MIB}")


def network(width=512, layers=4):
    net = nn.Sequential(*[nn.Linear(width, width) for _ in range(layers)]).cuda()
    return net, torch.optim.Adam(net.parameters())


def step(net, adam, x):
    loss = net(x.cuda()).mean()
    adam.zero_grad()
    loss.backward()
    adam.step()
    return loss


def lengths():
    """Everything that programs compute with the length of a loader, the number of a batch, and its place."""
    net, adam = network(64, 1)
    loader = DataLoader(TensorDataset(torch.randn(90_005, 64)), batch_size=10, num_workers=1)
    assert len(loader) == 9001
    every, numbers, own = len(loader) // 10, [], 0
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 0.1, total_steps=len(loader))
    filled = torch.zeros(90_005)
    for number, (x,) in enumerate(loader):
        step(net, adam, x)
        schedule.step()
        filled[number * 10 : number * 10 + 10] = torch.ones(len(x))
        own += 1
        if number % every == every - 1:
            numbers.append(number)
            network(64, 1)
    assert own == 9001
    assert number == 9000
    assert len(x) == 5, "the last batch is short, and has its number"
    assert numbers[0] == every - 1, "the first batch at which something new happens is run"
    ahead = iter(loader)
    taken = [next(ahead) for _ in range(40)]
    assert len(taken) == 40, "a bare next() gets what it asks for"


def leak():
    net, adam = network()
    kept = []
    for (x,) in DataLoader(TensorDataset(torch.randn(1 << 17, 512)), batch_size=8):
        kept.append(net(x.cuda().expand(512, -1, -1).flatten(0, 1)[:512]))  # kept here
        step(net, adam, x)


def healthy():
    net, adam = network()
    losses = [step(net, adam, x).detach() for (x,) in DataLoader(TensorDataset(torch.randn(1 << 17, 512)), 8)]
    print(torch.stack(losses).mean().item())


def late_phase():
    net, adam = network()
    global_step = 0
    for _ in range(2):
        for (x,) in DataLoader(TensorDataset(torch.randn(1 << 17, 512)), 8):
            step(net, adam, x)
            global_step += 1
            if global_step == 20_000:
                network(4096, 4)


class Trainer:
    def __init__(self):
        self.net, self.adam = network()
        self.state = {"step": 0}

    def train_step(self, x):
        step(self.net, self.adam, x)
        self.state["step"] += 1
        if self.state["step"] % 9_000 == 0:
            network(4096, 4)


def late_phase_of_an_object():
    trainer = Trainer()
    for (x,) in DataLoader(TensorDataset(torch.randn(1 << 17, 512)), 8):
        trainer.train_step(x)


class Meter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))

    def is_due(self):
        self.calls += 1
        return self.calls % 7_000 == 0


def late_phases_by_a_length_and_by_a_buffer():
    net, adam = network()
    loader, meter = DataLoader(TensorDataset(torch.randn(1 << 17, 512)), 8), Meter()
    for number, (x,) in enumerate(loader):
        step(net, adam, x)
        if number == len(loader) // 2:
            network(4096, 4)
        if meter.is_due():
            network(4096, 5)


def kept_now_and_then():
    net, adam = network()
    kept = []
    for number, (x,) in enumerate(DataLoader(TensorDataset(torch.randn(1 << 17, 512)), 8)):
        step(net, adam, x)
        if number % 5 == 0:
            kept.append(torch.zeros(1 << 20, device="cuda"))  # now and then


def replaced_by_larger():
    net, adam = network()
    bank = torch.zeros(0, 512, device="cuda")
    for (x,) in DataLoader(TensorDataset(torch.randn(1 << 17, 512)), 8):
        step(net, adam, x)
        bank = torch.cat([bank, torch.zeros(512, 512, device="cuda")])


def collected_on_the_host():
    net, adam = network()
    loader = DataLoader(TensorDataset(torch.randn(1 << 17, 512)), 8)
    kept = [step(net, adam, x).detach().cpu().expand(8, 512) for (x,) in loader]
    torch.cat(kept).cuda()


def accumulated():
    net, adam = network(2048, 6)
    for number, (x,) in enumerate(DataLoader(TensorDataset(torch.randn(40_000, 2048)), 2)):
        net(x.cuda()).mean().backward()
        if (number + 1) % 16 == 0:
            adam.step()
            adam.zero_grad()


def longest():
    net, adam = network()
    torch.manual_seed(1)
    texts = [torch.randn(30_000 if i == 7_777 else 20 + i % 40, 512) for i in range(8_000)]
    before = torch.get_rng_state()
    loader = DataLoader(texts, 4, shuffle=True, collate_fn=lambda some: pad_sequence(some, batch_first=True))
    for x in loader:
        step(net, adam, x)
    assert not torch.equal(torch.get_rng_state(), before), "the shuffle itself takes a number"


class Stream(IterableDataset):
    def __iter__(self):
        yield from (torch.randn(512) for _ in range(100_000))


def stream():
    net, adam = network()
    collected = []
    for x in DataLoader(Stream(), 512):
        step(net, adam, x)
        collected += [net(x.cuda()).detach()]


class Sequences(IterableDataset):
    def __iter__(self):
        yield from (torch.rand(1 + number * 37 % 200, 512) for number in range(4000))


def uneven_stream():
    net, adam = network()
    for x in DataLoader(Sequences(), batch_size=None):
        step(net, adam, x)


@torch.no_grad()
def evaluation_without_a_loader():
    net, _ = network(1024, 8)
    losses, words = torch.zeros(3_000), torch.zeros(4, 8, dtype=torch.long, device="cuda")
    for number in range(3_000):
        losses[number] = net(torch.randn(1024, 1024).cuda()).mean().item()
    assert number == 2_999
    for _ in range(40):  # a text grows with each turn
        words = torch.cat([words, net(words[:, -1:].expand(-1, 1024).float()).argmax(1, keepdim=True)], 1)
        net(torch.zeros(words.shape[1] * 512, 1024, device="cuda"))
    assert words.shape[1] == 48


def epochs():
    net, adam = network()
    kept = []
    for epoch in range(5_000):
        kept.append(step(net, adam, torch.randn(512, 512)) + torch.zeros(512, 512).cuda())  # kept in each turn
        if epoch == 3_000:
            network(4096, 4)
    assert epoch == 4_999


for loop in (
    lengths,
    leak,
    healthy,
    late_phase,
    late_phase_of_an_object,
    late_phases_by_a_length_and_by_a_buffer,
    kept_now_and_then,
    replaced_by_larger,
    collected_on_the_host,
    accumulated,
    longest,
    stream,
    uneven_stream,
    evaluation_without_a_loader,
    epochs,
):
    peak_of(loop)
