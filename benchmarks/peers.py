"""The same networks and batches in loops written the way people write them.

Each function is a generator that does one step of work per `next`, so that a harness can time any
number of steps of each in turn. Nothing here uses synth: the networks are written out plainly.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.metrics import accuracy_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

LATENT, CLASSES, BATCH, CLASSIFIER_BATCH = 100, 10, 128, 256
CPU = torch.device("cpu")


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(CLASSES, 5)
        self.net = nn.Sequential(
            nn.ConvTranspose2d(LATENT + 5, 256, 4, 1, 0, bias=False),
            nn.BatchNorm2d(256),
            nn.ReLU(True),
            nn.ConvTranspose2d(256, 128, 4, 2, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(True),
            nn.ConvTranspose2d(128, 64, 4, 2, 1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(True),
            nn.ConvTranspose2d(64, 3, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        images: Tensor = self.net(torch.cat([noise, self.embed(labels)], 1)[:, :, None, None])
        return images


class Discriminator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(CLASSES, 32 * 32)
        self.net = nn.Sequential(
            nn.Conv2d(4, 64, 4, 2, 1),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(64, 128, 4, 2, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(128, 256, 4, 2, 1, bias=False),
            nn.BatchNorm2d(256),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(256, 1, 4, 1, 0),
        )

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        plane = self.embed(labels).view(-1, 1, 32, 32)
        logits: Tensor = self.net(torch.cat([images, plane], 1)).view(-1)
        return logits


def classifier() -> nn.Module:
    layers: list[nn.Module] = []
    for narrow, wide in ((3, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(narrow, wide, 3, 1, 1), nn.BatchNorm2d(wide), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    head = [nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, CLASSES)]
    return nn.Sequential(*layers, *head)


def _floats(images: Tensor, labels: Tensor, low: float) -> TensorDataset:
    return TensorDataset(images.float() / 255 * (1 - low) + low, labels)


def _endless(loader: DataLoader[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    while True:
        yield from loader


def gan_step(
    nets: tuple[nn.Module, nn.Module],
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
    real: Tensor,
    labels: Tensor,
    noise: Tensor,
) -> tuple[Tensor, ...]:
    (net_g, net_d), (optimizer_g, optimizer_d) = nets, optimizers
    criterion = nn.BCEWithLogitsLoss()
    ones = torch.ones(len(real), device=real.device)
    zeros = torch.zeros_like(ones)
    net_d.zero_grad()
    on_real = net_d(real, labels)
    loss_real = criterion(on_real, ones)
    loss_real.backward()
    fake = net_g(noise, labels)
    on_fake = net_d(fake.detach(), labels)
    loss_fake = criterion(on_fake, zeros)
    loss_fake.backward()
    optimizer_d.step()
    net_g.zero_grad()
    again = net_d(fake, labels)
    loss_g = criterion(again, ones)
    loss_g.backward()
    optimizer_g.step()
    return loss_real + loss_fake, loss_g, on_real.mean(), on_fake.mean(), again.mean()


def networks(
    device: torch.device = CPU,
) -> tuple[tuple[nn.Module, nn.Module], tuple[torch.optim.Optimizer, torch.optim.Optimizer]]:
    net_g, net_d = Generator().to(device), Discriminator().to(device)
    optimizer_d = torch.optim.Adam(net_d.parameters(), lr=2e-4, betas=(0.5, 0.999))
    optimizer_g = torch.optim.Adam(net_g.parameters(), lr=2e-4, betas=(0.5, 0.999))
    return (net_g, net_d), (optimizer_g, optimizer_d)


def train_examples(
    images: Tensor, labels: Tensor, device: torch.device = CPU, workers: int = 0
) -> Iterator[None]:
    """The loop of pytorch/examples' dcgan, at 32×32: DataLoader, five `.item()` a step.

    workers: of the DataLoader, which gives images on the CPU. The example has two.
    """
    nets, optimizers = networks(device)
    data = _floats(images, labels, -1.0)
    loader = DataLoader(data, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=workers)
    for real, y in _endless(loader):
        noise = torch.randn(BATCH, LATENT, device=device)
        values = gan_step(nets, optimizers, real.to(device), y.to(device), noise)
        _ = [value.item() for value in values]
        yield


def train_notebook(images: Tensor, labels: Tensor) -> Iterator[None]:
    """The notebooks' loop: numpy noise, a DataLoader with a worker, losses kept by `.item()`."""
    nets, optimizers = networks()
    data = _floats(images, labels, -1.0)
    loader = DataLoader(data, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=1)
    losses = []
    for real, y in _endless(loader):
        noise = torch.from_numpy(np.random.uniform(-1, 1, size=(BATCH, LATENT))).float()
        loss_d, loss_g, *_ = gan_step(nets, optimizers, real, y, noise)
        losses.append((loss_d.item(), loss_g.item()))
        yield


def train_fabric(images: Tensor, labels: Tensor) -> Iterator[None]:
    """Lightning Fabric's DCGAN example, with its default precision. Needs `lightning`."""
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    (net_g, net_d), (optimizer_g, optimizer_d) = networks()
    net_g, optimizer_g = fabric.setup(net_g, optimizer_g)
    net_d, optimizer_d = fabric.setup(net_d, optimizer_d)
    data = _floats(images, labels, -1.0)
    loader: Any = fabric.setup_dataloaders(
        DataLoader(data, batch_size=BATCH, shuffle=True, drop_last=True)
    )
    criterion = nn.BCEWithLogitsLoss()
    ones, zeros = torch.ones(BATCH), torch.zeros(BATCH)
    for real, y in _endless(loader):
        net_d.zero_grad()
        loss_real = criterion(net_d(real, y), ones)
        fabric.backward(loss_real)
        fake = net_g(torch.randn(BATCH, LATENT), y)
        loss_fake = criterion(net_d(fake.detach(), y), zeros)
        fabric.backward(loss_fake)
        optimizer_d.step()
        net_g.zero_grad()
        loss_g = criterion(net_d(fake, y), ones)
        fabric.backward(loss_g)
        optimizer_g.step()
        _ = (loss_real + loss_fake).item(), loss_g.item()
        yield


def train_keras(images: Tensor, labels: Tensor) -> Iterator[None]:
    """Keras 3 on its torch backend: the loop of its guide to custom training with PyTorch, its own
    layers and optimizers. Needs `keras`."""
    os.environ["KERAS_BACKEND"] = "torch"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import keras
    from keras import layers

    def up(x: Any, width: int) -> Any:
        x = layers.Conv2DTranspose(width, 4, 2, "same", use_bias=False)(x)
        return layers.ReLU()(layers.BatchNormalization()(x))

    def down(x: Any, width: int, norm: bool) -> Any:
        x = layers.Conv2D(width, 4, 2, "same", use_bias=not norm)(x)
        return layers.LeakyReLU(0.2)(layers.BatchNormalization()(x) if norm else x)

    noise, label = keras.Input((LATENT,)), keras.Input((), dtype="int64")
    x = layers.Concatenate()([noise, layers.Embedding(CLASSES, 5)(label)])
    x = layers.Reshape((1, 1, LATENT + 5))(x)
    x = layers.Conv2DTranspose(256, 4, 1, "valid", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2DTranspose(3, 4, 2, "same", activation="tanh")(up(up(x, 128), 64))
    net_g = keras.Model([noise, label], x)

    image = keras.Input((32, 32, 3))
    plane = layers.Reshape((32, 32, 1))(layers.Embedding(CLASSES, 32 * 32)(label))
    x = down(layers.Concatenate()([image, plane]), 64, False)
    x = layers.Conv2D(1, 4, 1, "valid")(down(down(x, 128, True), 256, True))
    net_d = keras.Model([image, label], layers.Reshape(())(x))

    optimizer_g, optimizer_d = (keras.optimizers.Adam(2e-4, beta_1=0.5) for _ in range(2))
    criterion = keras.losses.BinaryCrossentropy(from_logits=True)
    ones, zeros = torch.ones(BATCH), torch.zeros(BATCH)

    def descend(net: Any, optimizer: Any, loss: Tensor) -> None:
        net.zero_grad()
        loss.backward()
        with torch.no_grad():
            optimizer.apply([v.value.grad for v in net.trainable_weights], net.trainable_weights)

    data = _floats(images.permute(0, 2, 3, 1), labels, -1.0)
    for real, y in _endless(DataLoader(data, batch_size=BATCH, shuffle=True, drop_last=True)):
        fake = net_g([torch.randn(BATCH, LATENT), y], training=True)
        on_real, on_fake = (net_d([x, y], training=True) for x in (real, fake.detach()))
        loss_d = criterion(ones, on_real) + criterion(zeros, on_fake)
        descend(net_d, optimizer_d, loss_d)
        loss_g = criterion(ones, net_d([fake, y], training=True))
        descend(net_g, optimizer_g, loss_g)
        _ = loss_d.item(), loss_g.item()
        yield


def sample_examples(images: Tensor, labels: Tensor) -> Iterator[None]:
    """Batches of 128 from a generator in evaluation mode, kept as uint8."""
    net_g = Generator().eval()
    kept = []
    while True:
        with torch.no_grad():
            fake = net_g(torch.randn(BATCH, LATENT), torch.randint(CLASSES, (BATCH,)))
        kept.append(((fake + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy())
        yield


def sample_notebook(images: Tensor, labels: Tensor) -> Iterator[None]:
    """svhn-synthesis's `generate(1000)`, noise by numpy, floats kept."""
    net_g = Generator().eval()
    while True:
        noise = torch.from_numpy(np.random.normal(size=(1000, LATENT))).float()
        with torch.no_grad():
            _ = ((net_g(noise, torch.randint(CLASSES, (1000,))) + 1) / 2).numpy()
        yield


def classify_notebook(images: Tensor, labels: Tensor) -> Iterator[None]:
    """The evaluation notebook's loop: `.item()` and scikit-learn's accuracy at every step."""
    net = classifier()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    criterion = nn.CrossEntropyLoss()
    data = _floats(images, labels, 0.0)
    loader = DataLoader(data, batch_size=CLASSIFIER_BATCH, shuffle=True, drop_last=True)
    for x, y in _endless(loader):
        optimizer.zero_grad()
        logits = net(x)
        loss = criterion(logits, y)
        loss.backward()
        optimizer.step()
        _ = loss.item(), accuracy_score(y.numpy(), logits.argmax(1).numpy())
        yield
