"""A small network on random images: the loop that a PyTorch user already knows."""

import fastnn
from fastnn import nn, optim

fastnn.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(16 * 16 * 16, 10),
)  # fmt: skip
optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
images, labels = fastnn.randn(64, 3, 32, 32), fastnn.tensor([i % 10 for i in range(64)])
for step in range(20):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    print(f"step {step:2}  loss {loss.item():.4f}")
