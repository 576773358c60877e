"""The ONNX graphs, written node by node from an `EncoderSpec`.

Two graphs on the same weights:

- `packed.packed_graph`: kosine's own. Rows that several sentences share, a segment id per token;
  unit vectors and their norms out. Inputs are those of `kosine.backends.rows.fill.Rows`.
- `padded.model_graph`: the ecosystem's. `input_ids`, `attention_mask` (, `token_type_ids`) in,
  `sentence_embedding` and `last_hidden_state` out.

Neither holds weights: initializers are external data that point into the safetensors file.

Attention over all queries at once holds (heads, S, S) scores: gigabytes at 8,192 tokens. So the
float32 packed graph of an encoder of more than `QUERY_BLOCK` tokens takes queries in blocks of that
many; in shorter rows the last blocks are empty. Every other graph has one block: TensorRT and
OpenVINO fuse attention in that form, and then hold no scores.

Forms are chosen for the engines that read them. GELU is `Div(sqrt 2) → Erf`, which ONNX
Runtime fuses. Attention is `MatMul → Cast float32 → Add(Where(Equal)) → Softmax → MatMul`, which
TensorRT fuses into one kernel per layer. The norm is `Sqrt(ReduceSum(x * x))`; ReduceL2 leaves
lengths off by 1e-6.

In float16 graphs every tensor is float16 except four islands in float32: LayerNorm and its
statistics, softmax, pooling, and everything after it.
"""
