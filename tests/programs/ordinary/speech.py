"""Connectionist temporal classification, with pinned memory and short-time Fourier transforms."""

import torch

held = torch.empty(1000, pin_memory=True)
net = torch.nn.LSTM(80, 64, bidirectional=True).cuda()
head = torch.nn.Linear(128, 29).cuda()
adam = torch.optim.Adam([*net.parameters(), *head.parameters()])
for lengths in (torch.full((8,), 20), [20] * 8, torch.full((8,), 20, device="cuda")):
    scores = head(net(torch.randn(100, 8, 80).cuda(non_blocking=True))[0]).log_softmax(2)
    targets = torch.randint(1, 29, (8, 30)).cuda()
    steps = [100] * 8 if isinstance(lengths, list) else lengths * 5
    torch.nn.functional.ctc_loss(scores, targets, steps, lengths).backward()
    adam.step()
    adam.zero_grad()
window = torch.hann_window(400, device="cuda")
spectrum = torch.stft(torch.randn(2, 16000, device="cuda"), 400, 160, window=window, return_complex=True)
assert spectrum.shape == (2, 201, 101)
with torch.autograd.graph.save_on_cpu(pin_memory=True):
    head(torch.randn(4, 128, device="cuda")).sum().backward()
