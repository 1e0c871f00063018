"""How the engine reads image files, and the plain decoder that does so in the calling thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.request import Frame, ImageInput, Priority, Resolution
from echovlm_edge.runtime.imaging.image_file import ImageLimits, Measured, decode_image, measure_image
from echovlm_edge.runtime.imaging.preprocess import fit


@dataclass(frozen=True)
class Asker:
    """For whom an image is read: whose turn it is counted as, and whether it is still wanted."""

    client: str = ""
    priority: Priority = Priority.INTERACTIVE
    stopped: Callable[[], bool] = lambda: False


NOBODY = Asker()  # no client in particular, who waits as long as it takes


class ImageDecoder(Protocol):
    """Read image files in two steps, so that a call that asks for too much is refused before anything is decoded."""

    def measure(self, image: ImageInput, resolution: Resolution, asker: Asker) -> Measured:
        """Find what decoding a file will give, from its headers alone.

        Raises:
            InvalidInput: the file cannot be used.
            NotPossibleHere: this machine lacks what decodes it.
            Unavailable: it cannot be read now.
            Stopped: it is no longer wanted.
        """
        ...

    def decode(self, image: ImageInput, measured: Measured, asker: Asker) -> list[Frame]:
        """Decode a file to fitted frames, of the sizes, the resolution and the origin that were measured.

        Raises:
            InvalidInput, NotPossibleHere, Unavailable, Stopped: see `measure`; pixels that are not as measured are InvalidInput.
        """
        ...


@dataclass(frozen=True)
class LocalDecoder:
    """Decode in the calling thread: for files that are trusted."""

    limits: ImageLimits = field(default_factory=ImageLimits)

    def measure(self, image: ImageInput, resolution: Resolution, asker: Asker = NOBODY) -> Measured:
        """See `ImageDecoder.measure`."""
        return measure_image(image, resolution, self.limits)

    def decode(self, image: ImageInput, measured: Measured, asker: Asker = NOBODY) -> list[Frame]:
        """See `ImageDecoder.decode`."""
        finish = partial(fit, settings=measured.resolution, name=image.name)
        return as_measured(image, measured, decode_image(image, self.limits, finish))


IN_PROCESS = LocalDecoder()


def as_measured(image: ImageInput, measured: Measured, fitted: Sequence[Frame]) -> list[Frame]:
    """Add what was measured to fitted frames.

    Raises:
        InvalidInput: they are not what was measured.
    """
    if tuple(frame.pixels.shape[:2] for frame in fitted) != measured.sizes:
        raise InvalidInput(f"{image.name} is damaged: its pixels are not of the size that its header says.")
    return [replace(frame, resolution=measured.resolution, origin=measured.origin) for frame in fitted]
