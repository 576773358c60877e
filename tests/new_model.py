"""NewModel in plain numpy and float64, from its config.json and its tensors: a second opinion.

Written from the model's description (BERT's order of norms, rotary positions with fixed NTK
scaling, a feed-forward gated by GELU), not from kosine's own reading of a checkpoint.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


class NewModel:
    """A folder in NewModel's layout."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.tensors = {
            name.removeprefix("new."): value.astype(np.float64)
            for name, value in load_file(folder / "model.safetensors").items()
        }

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        bias = self.tensors.get(f"{name}.bias", 0.0)
        return x @ self.tensors[f"{name}.weight"].T + bias

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(axis=1, keepdims=True)
        root = np.sqrt((centred**2).mean(axis=1, keepdims=True) + self.config["layer_norm_eps"])
        return centred / root * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def angles(self, length: int, size: int) -> np.ndarray:
        base, scaling = self.config["rope_theta"], self.config["rope_scaling"]
        steps = []
        for i in range(size // 2):
            step = base ** (-2 * i / size)
            if scaling is not None:
                # The base grows by the factor, and every step shrinks by its power of 2 / size.
                factor = scaling["factor"]
                step = (base * factor) ** (-2 * i / size) / factor ** (2 / size)
            steps.append(step)
        return np.arange(length)[:, None] * np.array(steps)

    def tokens(self, ids: list[int]) -> np.ndarray:
        """(L, hidden) of the last layer."""
        t, config = self.tensors, self.config
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        size, length = hidden // heads, len(ids)
        angles = self.angles(length, size)
        cos, sin = np.cos(angles), np.sin(angles)
        x = t["embeddings.word_embeddings.weight"][ids]
        if config["type_vocab_size"]:
            x = x + t["embeddings.token_type_embeddings.weight"][0]
        x = self.norm("embeddings.LayerNorm", x)
        for number in range(config["num_hidden_layers"]):
            at = f"encoder.layer.{number}"
            if config["pack_qkv"]:
                parts = np.split(self.linear(f"{at}.attention.qkv_proj", x), 3, axis=1)
            else:
                parts = [self.linear(f"{at}.attention.{name}_proj", x) for name in "qkv"]
            context = np.empty_like(x)
            for head in range(heads):
                own = slice(head * size, (head + 1) * size)
                q, k, v = (part[:, own] for part in parts)
                q, k = (self.turn(half, cos, sin) for half in (q, k))
                scores = q @ k.T / math.sqrt(size)
                shares = np.exp(scores - scores.max(axis=1, keepdims=True))
                context[:, own] = shares / shares.sum(axis=1, keepdims=True) @ v
            y = self.linear(f"{at}.attention.o_proj", context)
            x = self.norm(f"{at}.attn_ln", x + y)
            plain, gate = np.split(self.linear(f"{at}.mlp.up_gate_proj", x), 2, axis=1)
            gate = gate * np.vectorize(lambda z: (1 + math.erf(z / math.sqrt(2))) / 2)(gate)
            x = self.norm(f"{at}.mlp_ln", x + self.linear(f"{at}.mlp.down_proj", gate * plain))
        return x

    @staticmethod
    def turn(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        a, b = np.split(x, 2, axis=1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=1)

    def unit_cls(self, ids: list[int]) -> np.ndarray:
        first = self.tokens(ids)[0]
        return first / np.linalg.norm(first)
