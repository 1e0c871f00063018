"""Reading image files as the engine does: measured, then decoded to what was measured."""

from __future__ import annotations

from collections.abc import Callable

from echovlm_edge.runtime.image_decoder import NOBODY, Asker, ImageDecoder
from echovlm_edge.runtime.preprocess import PreprocessSettings
from echovlm_edge.runtime.request import Frame, ImageInput

RESOLUTION = PreprocessSettings().resolution


def read(decoder: ImageDecoder, image: ImageInput, asker: Asker = NOBODY) -> list[Frame]:
    """The fitted frames of a file."""
    return decoder.decode(image, decoder.measure(image, RESOLUTION, asker), asker)


def asker(stopped: Callable[[], bool], client: str = "") -> Asker:
    """Somebody who may be gone."""
    return Asker(client, stopped=stopped)
