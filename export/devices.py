"""The machines that targets run on, by their makers' data sheets: what estimates and refusals are based on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reached:
    """The shares of its bounds that a device's stages reach.

    Attributes:
        bandwidth: of the memory's, where that is the bound.
        images: of the arithmetic's, in the vision encoder and the projector.
        decoder: of the arithmetic's, in prefill.
        measured: whether these were measured; otherwise they are assumed.
    """

    bandwidth: float
    images: float
    decoder: float
    measured: bool


ASSUMED = Reached(0.75, 0.4, 0.4, measured=False)  # no GPU has been measured


@dataclass(frozen=True)
class Device:
    """One machine.

    Attributes:
        name: the product.
        compute_capability: of its GPU, or None.
        memory_gb: 10^9 bytes that the weights and the cache can be in.
        unified: whether the operating system and the service live in that memory too.
        bandwidth_gbs: 10^9 bytes a second that can be read from it.
        tensor_tflops: 10^12 dense operations a second (a multiply-add is two), 16-bit inputs and 32-bit sums; of a CPU with 8-bit
            inputs, which is what our operators multiply there.
        source: of the figures.
        reached: of its bounds.
    """

    name: str
    compute_capability: tuple[int, int] | None
    memory_gb: float
    unified: bool
    bandwidth_gbs: float
    tensor_tflops: float
    source: str
    reached: Reached = ASSUMED

    @property
    def usable_gb(self) -> float:
        """Return what the model may take, in GB: an eighth, and at least 1.5 GB, is left to the system where memory is shared."""
        return self.memory_gb - (max(1.5, self.memory_gb / 8) if self.unified else 0.5)


# Bounds and shares are of one run of benchmarks/full.py, the published size in int4: 6.1 tokens a second are 86 % of the bandwidth;
# the image side reached 38 % (one frame) and 45 % (seven) of the int8 peak, prefill 57 % and 75 %, of which these are the middles.
CPU = Device(
    "two cores of an EPYC with AVX-512 VNNI",
    None,
    24,
    True,
    37.5,
    2.06,
    "measured with benchmarks/full.py",
    Reached(0.86, 0.42, 0.66, measured=True),
)
RTX_WORKSTATION = Device(
    "RTX 4000 Ada", (8, 9), 20, False, 360, 82, "data sheet: 327.6 TFLOPS in FP8 with sparsity, a quarter"
)
ORIN = Device(
    "Jetson AGX Orin 64 GB", (8, 7), 64, True, 204.8, 42.5, "data sheet: 170 sparse INT8 TOPS of the GPU, a quarter"
)
ORIN_NANO = Device(
    "Jetson Orin Nano Super 8 GB", (8, 7), 8, True, 102, 16.7, "data sheet: 67 sparse INT8 TOPS, a quarter"
)
THOR = Device("Jetson Thor T5000", (11, 0), 128, True, 273, 258, "data sheet: 2,070 sparse FP4 TFLOPS, an eighth")
IGX_ORIN = Device("IGX Orin 700", (8, 7), 64, True, 204.8, 38.8, "2,048 cores at 1.185 GHz, as Orin's Tensor Cores")
SPARK = Device("DGX Spark", (12, 1), 128, True, 273, 125, "data sheet: 1,000 sparse FP4 TFLOPS, an eighth")
ON_DEVICE = {  # by the target whose engines only it can build
    "jetson-orin": ORIN,
    "jetson-orin-nano": ORIN_NANO,
    "jetson-thor": THOR,
    "igx-orin": IGX_ORIN,
    "dgx-spark": SPARK,
}
