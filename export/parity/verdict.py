"""Judge whether a stage of a bundle is as near to the PyTorch model as its weight format allows.

A stage is judged by its relative error, the decoder also by the KL divergence of its next token; the worse of the two counts. `good`
is what the format costs by itself, `look` more than that, `bad` so much that something other than the format must be wrong:

    format    relative error        KL, nats
              good up to  bad over  good up to  bad over
    fp32      1e-5        1e-3      1e-6        1e-4
    fp16      3e-3        3e-2      1e-4        1e-2
    int8      0.08        0.25      0.02        0.1
    int4      0.2         0.5       0.05        0.5

A good bound is some 1.5 to 5 times what was measured on the demo's and the golden checkpoint (of 4-bit weights by themselves, 0.1).
The format is the coarsest of the stage's weights and, in the decoder, of the KV cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from echovlm_edge.runtime.bundle.manifest import Manifest, Parity

FORMATS = ("fp32", "fp16", "int8", "int4")  # finest first
_OF_CACHE = {"float": "fp32", "float32": "fp32", "float16": "fp16", "int8": "int8"}
DECODER_STAGES = ("prefill", "decode")


class Verdict(Enum):
    """The judgement of a row in the build's table."""

    GOOD = "good"
    LOOK = "look"
    BAD = "bad"


@dataclass(frozen=True)
class Threshold:
    """The limits of one figure in one format."""

    good: float
    bad: float

    def judge(self, figure: float) -> Verdict:
        """Judge a figure; NaN is bad."""
        if figure <= self.good:
            return Verdict.GOOD
        return Verdict.LOOK if figure <= self.bad else Verdict.BAD


RELATIVE_ERROR = {
    "fp32": Threshold(1e-5, 1e-3),
    "fp16": Threshold(3e-3, 3e-2),
    "int8": Threshold(0.08, 0.25),
    "int4": Threshold(0.2, 0.5),
}
KL_DIVERGENCE = {
    "fp32": Threshold(1e-6, 1e-4),
    "fp16": Threshold(1e-4, 1e-2),
    "int8": Threshold(0.02, 0.1),
    "int4": Threshold(0.05, 0.5),
}


def judge(stage: Parity, weights: str) -> Verdict:
    """Judge one stage on one sample, whose format is `weights`."""
    found = [RELATIVE_ERROR[weights].judge(stage.relative_error)]
    if stage.kl_divergence is not None:
        found.append(KL_DIVERGENCE[weights].judge(stage.kl_divergence))
    return max(found, key=list(Verdict).index)


def format_of(manifest: Manifest, stage: str) -> str:
    """Return the format as which a stage is judged: the coarsest one that it is computed from."""
    if stage == "token_embedding":
        return {"float32": "fp32", "float16": "fp16"}.get(manifest.embedding.dtype, manifest.embedding.dtype)
    part = manifest.part("decoder" if stage in DECODER_STAGES else stage)
    formats = [part.precision]
    if stage in DECODER_STAGES:
        formats += [_OF_CACHE[tensor.dtype] for tensor in part.inputs if tensor.name.startswith("keys.")]
    return max(formats, key=FORMATS.index)
