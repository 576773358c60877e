"""What the native engine refuses, and what it says then."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kosine_kernels import engine
from kosine_kernels.steps import Attention, Dense, Distances, Norm, Rotary
from native_machine import Encoder, needs_native


@needs_native
class TestRefusals:
    encoder = Encoder()

    def run(self, ids=(1, 2, 3), starts=(0, 1, 3), positions=(0, 0, 1), skip=None):
        arrays = [np.array(part, np.int32) for part in (ids, starts, positions)]
        return self.encoder.engine().forward(
            *arrays, None if skip is None else np.array(skip, np.int32)
        )

    def test_none_where_all_is_right(self):
        assert self.run(skip=(0, 1))[0].shape == (2, 64)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"ids": (1, 50, 3)}, r"ids\[1\] is 50; 0 to 49"),
            ({"ids": (-1, 2, 3)}, r"ids\[0\] is -1"),
            ({"positions": (0, 0, 64)}, r"positions\[2\] is 64; 0 to 63"),
            ({"positions": (0, -5, 1)}, r"positions\[1\] is -5"),
            ({"positions": (0, 0)}, "positions has 2 elements; 3"),
            ({"starts": (0, 1, 4)}, "starts goes from 0 to 4"),
            ({"starts": (0, 1, 2)}, "starts goes from 0 to 2"),
            ({"starts": (1, 2, 3)}, "starts goes from 1 to 3"),
            ({"starts": (0, 3, 3)}, r"starts\[2\] is 3 after 3"),
            ({"starts": (0, 5, 1, 3)}, r"starts\[2\] is 1 after 5"),
            ({"starts": (0, -2, 3)}, r"starts\[1\] is -2 after 0"),
            ({"starts": (0, 2**31 - 1, -(2**31), 3)}, "after"),
            ({"starts": (0,)}, "starts has 1 entries"),
            ({"starts": ()}, "starts has 0 entries"),
            ({"ids": (), "starts": (0, 0), "positions": ()}, r"starts\[1\] is 0 after 0"),
            ({"skip": (0,)}, "skip has 1 elements; 2"),
            ({"skip": ()}, "skip has 0 elements; 2"),
            ({"skip": (0, -1)}, r"skip\[1\] is -1"),
        ],
    )
    def test_of_batches(self, change, message):
        with pytest.raises(ValueError, match=message):
            self.run(**change)

    @pytest.mark.parametrize(
        "bad",
        [
            np.zeros(6, np.int32)[::2],
            np.zeros(3, np.int64),
            np.zeros(3, np.float32),
            np.zeros((3, 1), np.int32),
            [1, 2, 3],
        ],
        ids=["strided", "int64", "float32", "2-D", "list"],
    )
    def test_of_arrays(self, bad):
        good = [np.array(part, np.int32) for part in ((1, 2, 3), (0, 1, 3), (0, 0, 1))]
        for place in range(3):
            with pytest.raises(TypeError):
                self.encoder.engine().forward(*good[:place], bad, *good[place + 1 :])

    @pytest.mark.parametrize(
        ("name", "change", "error"),
        [
            ("layers.1.ffn.down.weight", None, ValueError),
            ("layers.1.ffn.down.weight", lambda x: x[:-1].copy(), ValueError),
            ("layers.1.ffn.down.weight", lambda x: x[0].copy(), ValueError),
            ("layers.0.attention.qkv.bias", lambda x: x[:-1].copy(), ValueError),
            ("layers.0.ffn.up.weight", lambda x: x[:, :0].copy(), ValueError),
            ("embeddings.token_type.weight", lambda x: x[:, :-1].copy(), ValueError),
            ("embeddings.position.weight", lambda x: x[:, :-1].copy(), ValueError),
            ("embeddings.norm.weight", lambda x: x.astype(np.float64), TypeError),
            ("embeddings.word.weight", lambda x: x[:, ::-1], TypeError),
            ("embeddings.word.weight", lambda x: x.astype(">f4"), TypeError),
            (
                "embeddings.word.weight",
                lambda x: np.frombuffer(b"0" + x.tobytes(), np.float32, x.size, 1).reshape(x.shape),
                TypeError,
            ),
        ],
    )
    def test_of_tensors(self, name, change, error):
        encoder = Encoder()
        if change is None:
            del encoder.tensors[name]
        else:
            encoder.tensors[name] = change(encoder.tensors[name])
        with pytest.raises(error, match=name.rsplit(".", 1)[0]):
            encoder.engine()

    @pytest.mark.parametrize(
        ("option", "value", "message"),
        [
            ("dtype", "int4", "unknown dtype 'int4'"),
            ("isa", "sse2", "unknown ISA level 'sse2'; known: avx2"),
            ("threads", 0, "threads is 0"),
            ("threads", 100_000, "threads is 100000"),
            ("guard", "both", "unknown guard"),
        ],
    )
    def test_of_options(self, option, value, message):
        with pytest.raises(ValueError, match=message):
            engine.Engine(self.encoder.tensors, self.encoder.steps, **{option: value})

    @pytest.mark.parametrize(
        ("place", "fields", "message"),
        [
            (0, {"word": "words"}, r"words\.weight is missing"),
            (0, {"token_type": "types"}, r"types\.weight is missing"),
            (1, {"eps": 0.0}, r"eps of embeddings\.norm is 0"),
            (1, {"eps": float("nan")}, "eps of"),
            (1, {"name": "norms"}, r"norms\.weight is missing"),
            (2, {"num_heads": 0}, "num_heads is 0"),
            (2, {"num_heads": 5}, r"\(64, 192\); \(64, 240\) is needed"),
            (2, {"num_heads": 2**40}, "num_heads is"),
            (2, {"head_size": 0}, "head size is 0"),
            (2, {"head_size": 8}, "head size is 8"),
            (2, {"head_size": 272}, "head size is 272"),
            (2, {"num_key_value_heads": 3}, "num_key_value_heads is 3; a divisor of the 4 heads"),
            (2, {"num_key_value_heads": 0}, "num_key_value_heads is 0"),
            (2, {"query_norm": Norm("q", 1e-6)}, r"q\.weight is missing"),
            (2, {"norm": Norm("embeddings.norm", 0.0)}, r"eps of embeddings\.norm is 0"),
            (2, {"rotary": Rotary(1e4, 64, 0.5)}, "divisor 0.5"),
            (4, {"activation": "relu"}, "unknown activation 'relu' of a feed-forward"),
            (2, {"distances": Distances("far", (0,))}, r"far\.weight is missing"),
            (
                2,
                {"distances": Distances("layers.0.attention.output", (0,))},
                r"has shape \(64, 64\)",
            ),
            (2, {"rotary": Rotary(1.0, 64)}, "theta 1"),
            (2, {"rotary": Rotary(1e4, 0)}, "0 rows"),
            (4, {"gate": "gates"}, r"gates\.weight is missing"),
            (4, {"up": "layers.0.attention.qkv"}, r"ffn\.down\.weight has shape \(96, 64\)"),
            (-1, {"modes": ("mean", "sum")}, "unknown pooling 'sum'"),
            (-1, {"modes": ()}, "Pool has no mode"),
        ],
    )
    def test_of_steps(self, place, fields, message):
        steps = list(self.encoder.steps)
        steps[place] = replace(steps[place], **fields)
        with pytest.raises(ValueError, match=message):
            engine.Engine(self.encoder.tensors, steps)

    @pytest.mark.parametrize(
        ("dense", "message"),
        [
            (Dense("dense.0", True, "tanh", False), r"dense\.0\.weight is missing"),
            (Dense("dense.0", True, "swish", False), "unknown activation 'swish'"),
        ],
    )
    def test_of_dense_steps(self, dense, message):
        with pytest.raises(ValueError, match=message):
            engine.Engine(self.encoder.tensors, [*self.encoder.steps, dense])

    @pytest.mark.parametrize(
        ("order", "message"),
        [
            ((), "steps end after 0; Pool must be among them"),
            ((0, 1, 2, 3), "steps end after 4; Pool must be among them"),
            ((1,), r"steps\[0\] is Norm; Embed must be first"),
            ((-1,), r"steps\[0\] is Pool"),
            ((0, 0), r"steps\[1\] is Embed"),
            ((0, 2), r"steps\[1\] is Attention"),
            ((0, 1, 2, 4), r"steps\[3\] is FeedForward"),
            ((0, 1, -1, 1), r"steps\[3\] is Norm"),
            ((0, 1, -1, -1), r"steps\[3\] is Pool"),
        ],
    )
    def test_of_an_impossible_order(self, order, message):
        with pytest.raises(ValueError, match=message):
            engine.Engine(self.encoder.tensors, [self.encoder.steps[i] for i in order])

    @pytest.mark.parametrize(
        ("step", "message"),
        [
            ("Norm", "step str is unknown"),
            (None, "step NoneType is unknown"),
            (Norm("embeddings.norm", "small"), r"Norm\.eps is 'small'"),
            (Norm(3, 1e-5), r"Norm\.name is 3"),
            (Attention("a", "b", 1, 16, window=-1), r"Attention\.window is -1"),
            (Attention("a", "b", -1, 16), r"Attention\.num_heads is -1"),
            (Attention("a", "b", 2.5, 16), r"Attention\.num_heads is 2\.5"),
        ],
    )
    def test_of_what_is_no_step(self, step, message):
        with pytest.raises(TypeError, match=message):
            engine.Engine(self.encoder.tensors, [self.encoder.steps[0], step])

    def test_of_wide_heads_and_residuals_that_do_not_fit(self):
        with pytest.raises(ValueError, match="head size is 272"):
            Encoder(hidden=272, heads=1).engine()
        with pytest.raises(ValueError, match=r"residual around 64 -> 32"):
            Encoder(dense=((32, "tanh", True, True),)).engine()
        with pytest.raises(ValueError, match=r"embeddings\.word\.weight has 24 columns"):
            Encoder(embedding=24).engine()
