"""The interface by which the engine reads image files, and a decoder that runs in the calling thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.request import Frame, ImageInput, Priority, Resolution
from echovlm_edge.runtime.imaging.image_file import ImageLimits, Measured, decode_image, measure_image
from echovlm_edge.runtime.imaging.likeness import is_unlike_ultrasound
from echovlm_edge.runtime.imaging.preprocess import fit


@dataclass(frozen=True)
class Asker:
    """For whom an image is read: the client and priority of its turn, and whether it is still wanted."""

    client: str = ""
    priority: Priority = Priority.INTERACTIVE
    stopped: Callable[[], bool] = lambda: False


NOBODY = Asker()  # no particular client; it waits as long as it takes


class ImageDecoder(Protocol):
    """Reads image files in two steps, so that a call that asks for too much is refused before anything is decoded."""

    def measure(self, image: ImageInput, resolution: Resolution, asker: Asker) -> Measured:
        """Read the sizes of a file's frames and its origin, from its headers alone.

        Raises:
            InvalidInput: the file cannot be used.
            NotPossibleHere: this machine has no decoder for the file.
            Unavailable: the file cannot be read now.
            Stopped: the file is no longer wanted.
        """
        ...

    def decode(self, image: ImageInput, measured: Measured, asker: Asker) -> list[Frame]:
        """Decode a file to frames that are resized for the model, with the sizes and the origin that were measured.

        Raises:
            InvalidInput, NotPossibleHere, Unavailable, Stopped: as `measure`; InvalidInput also for pixels of another size.
        """
        ...


@dataclass(frozen=True)
class LocalDecoder:
    """Decodes in the calling thread, for trusted files."""

    limits: ImageLimits = field(default_factory=ImageLimits)

    def measure(self, image: ImageInput, resolution: Resolution, asker: Asker = NOBODY) -> Measured:
        """Read sizes and origin, as `ImageDecoder.measure` does."""
        return measure_image(image, resolution, self.limits)

    def decode(self, image: ImageInput, measured: Measured, asker: Asker = NOBODY) -> list[Frame]:
        """Decode a file, as `ImageDecoder.decode` does."""
        finish = partial(fit, settings=measured.resolution, name=image.name)
        return as_measured(image, measured, decode_image(image, self.limits, finish))


IN_PROCESS = LocalDecoder()


def as_measured(image: ImageInput, measured: Measured, fitted: Sequence[Frame]) -> list[Frame]:
    """Check decoded frames against their measured sizes; add the measured origin, and whether they hardly are ultrasound.

    Raises:
        InvalidInput: the frames have other sizes.
    """
    if tuple(frame.pixels.shape[:2] for frame in fitted) != measured.sizes:
        raise InvalidInput(f"{image.name} is damaged: its pixels are not of the size that its header says.")
    resolution, origin = measured.resolution, measured.origin
    return [
        replace(frame, resolution=resolution, origin=origin, unlike_ultrasound=is_unlike_ultrasound(frame.pixels))
        for frame in fitted
    ]
