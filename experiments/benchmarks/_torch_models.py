"""The library's networks in PyTorch, with the same names, so that weights go across by one rule."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, a 1x1 convolution where the shape changes."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.changes = stride > 1 or inputs != width
        if self.changes:
            self.shortcut_conv = nn.Conv2d(inputs, width, 1, stride, bias=False)
            self.shortcut_norm = nn.BatchNorm2d(width)

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu((self.shortcut_norm(self.shortcut_conv(x)) if self.changes else x) + y)


class ResNet(nn.Module):
    """CIFAR residual network of depth 6n + 2."""

    def __init__(self, num_classes, depth):
        super().__init__()
        self.stem_conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(16)
        self.order, inputs = [], 16
        for stage in (1, 2, 3):
            for i in range((depth - 2) // 6):
                name, width = f"stage{stage}_block{i + 1}", 16 * 2 ** (stage - 1)
                self.add_module(name, Block(inputs, width, 2 if stage > 1 and i == 0 else 1))
                self.order.append(name)
                inputs = width
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, image):
        x = F.relu(self.stem_norm(self.stem_conv(image)))
        for name in self.order:
            x = getattr(self, name)(x)
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """Self-attention of several heads."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x, allowed):
        B, L, D = x.shape
        q, k, v = (
            f(x).view(B, L, self.heads, D // self.heads).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.out(mixed.transpose(1, 2).reshape(B, L, D))


class Layer(nn.Module):
    """Attention and perceptron, norms after the shortcuts."""

    def __init__(self, width, heads):
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-12) for _ in range(2))
        self.mlp1, self.mlp2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, allowed):
        x = self.norm1(x + self.attention(x, allowed))
        return self.norm2(x + self.mlp2(F.gelu(self.mlp1(x))))


class Encoder(nn.Module):
    """Embeddings and layers."""

    def __init__(self, vocabulary, layers, width, heads, max_length):
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(max_length, width)
        self.segment = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = layers
        for i in range(layers):
            self.add_module(f"block{i}", Layer(width, heads))

    def forward(self, tokens, mask):
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.token(tokens) + self.position(positions) + self.segment(torch.zeros_like(tokens))
        x, allowed = self.norm(x), mask[:, None, None, :]
        for i in range(self.layers):
            x = getattr(self, f"block{i}")(x, allowed)
        return x


class Bert(nn.Module):
    """Encoder, pooler and linear layer, without dropout."""

    def __init__(self, num_classes, vocabulary, layers, width, heads, max_length):
        super().__init__()
        self.encoder = Encoder(vocabulary, layers, width, heads, max_length)
        self.pooler, self.head = nn.Linear(width, width), nn.Linear(width, num_classes)

    def forward(self, tokens, token_mask):
        return self.head(torch.tanh(self.pooler(self.encoder(tokens, token_mask)[:, 0])))


_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "mean": "running_mean", "var": "running_var"}


def load(module, tree):
    """Copies the library's params and running statistics, {path: array} with slashes, into a module of these."""
    state = {}
    for path, array in tree.items():
        *where, leaf = path.split("/")
        x = np.asarray(array)
        if leaf == "kernel":
            x = x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T
        state[".".join([*where, _NAMES.get(leaf, leaf)])] = torch.tensor(x)
    left, unknown = module.load_state_dict(state, strict=False)
    assert not unknown, unknown
    assert all(name.endswith("num_batches_tracked") for name in left), left
    assert math.isclose(
        sum(p.numel() for p in module.parameters()),
        sum(x.size for p, x in tree.items() if not p.endswith(("/mean", "/var"))),
    )
    return module
