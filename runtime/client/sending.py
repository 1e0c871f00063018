"""Decide how images are sent within a server's limits: cines cut to the chosen frames, small files in the request, large ones uploaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.client.cine_cutting import cut_cine
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.contracts.image_path import SentImage, size_of, unreadable
from echovlm_edge.runtime.contracts.request import ImageInput
from echovlm_edge.runtime.formats.media_types import DICOM, sniff
from echovlm_edge.runtime.formats.video_formats import HEAD_BYTES

# Every server takes this many bytes and images, so they are sent without asking for its limits first. Stills have about this size,
# and cutting a cine this small gains nothing.
PLAINLY_SMALL, PLAINLY_FEW = 1 << 20, 8
PART_BYTES = 1 << 20  # of one part of an upload
Progress = Callable[[int, int], None]  # called with the bytes sent and their total
FIELD_BYTES = 32  # an upper bound for the tags and lengths around an image's bytes


@dataclass(frozen=True)
class Sending:
    """One image, and whether it is uploaded before the call.

    Attributes:
        image: the file, or the frames that were cut out of it.
        size: in bytes.
        uploaded: before the call; otherwise it is part of the request.
    """

    image: SentImage
    size: int
    uploaded: bool = False


def plan(images: Sequence[SentImage], words: int, limits: Callable[[], pb.Limits]) -> list[Sending]:
    """Decide how each image is sent.

    Args:
        images: in order.
        words: bytes of the request without the images.
        limits: asks the server for its limits; called only if they matter.

    Raises:
        InvalidInput: a file cannot be read, lacks a frame that was asked for, or there are too many.
        NotPossibleHere: a file is larger than the server takes.
    """
    sendings = [Sending(image, size_of(image)) for image in images]
    if len(sendings) > PLAINLY_FEW and len(sendings) > (limits().max_images or len(sendings)):
        raise InvalidInput(
            f"There are {len(sendings)} images, more than the server's {limits().max_images}: send fewer."
        )
    if sum(sending.size for sending in sendings) <= PLAINLY_SMALL:
        return sendings
    sendings = [_cut(sending) for sending in sendings]
    if sum(sending.size for sending in sendings) <= PLAINLY_SMALL:
        return sendings
    return _placed(sendings, words, limits())


def _cut(sending: Sending) -> Sending:
    cut = cut_cine(sending.image)
    return Sending(cut, size_of(cut)) if cut else sending


def _placed(sendings: list[Sending], words: int, limits: pb.Limits) -> list[Sending]:
    """Put the smallest images into the request as long as they fit, and upload the others."""
    room = (limits.max_message_bytes or 1 << 62) - words
    placed = {}
    for number, sending in sorted(enumerate(sendings), key=lambda numbered: numbered[1].size):
        room -= sending.size + FIELD_BYTES + message(sending.image).ByteSize()
        placed[number] = sending if room >= 0 else _by_upload(sending, limits)
    return [placed[number] for number in range(len(sendings))]


def _by_upload(sending: Sending, limits: pb.Limits) -> Sending:
    if not limits.max_upload_bytes:
        raise no_uploads(sending)
    if sending.size > limits.max_upload_bytes:
        raise NotPossibleHere(
            f"{sending.image.name} has {_up(sending.size)} MB, and the server takes files of up to "
            f"{limits.max_upload_bytes >> 20} MB: {_smaller(sending)}."
        )
    return Sending(sending.image, sending.size, uploaded=True)


def no_uploads(sending: Sending) -> NotPossibleHere:
    """Return the error for a server without Upload."""
    return NotPossibleHere(
        f"{sending.image.name} has {_up(sending.size)} MB, more than fits in a request to this server, and it takes no "
        f"uploads: {_smaller(sending)}, or start the server with --upload-mb or a larger --max-message-mb."
    )


def _smaller(sending: Sending) -> str:
    with sending.image.open() as file:
        if sniff(file.read(HEAD_BYTES)) != DICOM:
            return "send a smaller file, or fewer of them"
    try:
        import pydicom  # noqa: F401
    except ImportError:
        return "install pydicom here (pip install pydicom), so that only the chosen frames of a cine are sent"
    return "choose fewer frames"


def _up(size: int) -> int:
    """Convert bytes to MB, rounded up: a file one byte over a limit must not seem to be within it."""
    return -(-size // (1 << 20))


def message(image: SentImage, data: bytes = b"", upload: str = "") -> pb.Image:
    """Convert an image to its message in a request.

    Raises:
        InvalidInput: a frame's number does not fit in the message.
    """
    selection, original = image.selection, image.original if isinstance(image, ImageInput) else None
    frames = None
    if original:  # all frames of the shortened file
        frames = pb.FrameSelection(indices=pb.FrameIndices(index=range(len(original.numbers))))
    elif selection.indices:
        frames = pb.FrameSelection(
            indices=pb.FrameIndices(index=[number_within("frame", index) for index in selection.indices])
        )
    elif selection.evenly_spaced:
        frames = pb.FrameSelection(evenly_spaced=number_within("frames_spaced", selection.evenly_spaced))
    return pb.Image(
        data=data,
        upload=upload,
        media_type=image.media_type,
        frames=frames,
        keep_whole_frame=not image.crop_to_regions,
        original=pb.OriginalFrames(index=original.numbers, count=original.count) if original else None,
    )


def number_within(name: str, value: int, bits: int = 32) -> int:
    """Check that a number fits in an unsigned field of `bits` bits, and return it.

    Raises:
        InvalidInput: it does not fit.
    """
    if not 0 <= value < 1 << bits:
        raise InvalidInput(f"{name} must be between 0 and {2**bits - 1}, got {value}.")
    return value


def read_all(image: SentImage) -> bytes:
    """Read all of a file's bytes, for a request.

    Raises:
        InvalidInput: it cannot be read.
    """
    if isinstance(image, ImageInput) and isinstance(image.data, bytes):
        return image.data
    with image.open() as file, _explained(image):
        return file.read()


def parts(image: SentImage) -> Iterator[bytes]:
    """Yield a file's bytes in parts of PART_BYTES, each read when the previous one has been sent.

    Raises:
        InvalidInput: it cannot be read.
    """
    with image.open() as file, _explained(image):
        while part := file.read(PART_BYTES):
            yield part


class Reading:
    """A file that is being uploaded; gRPC takes its parts in a thread of its own, so errors are kept here instead of raised.

    Attributes:
        failure: why it could not be read to its end.
    """

    def __init__(self, sending: Sending, sent: Callable[[int], None]) -> None:
        """`sent` is called with the number of bytes sent so far."""
        self._sending, self._sent = sending, sent
        self.failure: InvalidInput | None = None

    def requests(self) -> Iterator[pb.UploadRequest]:
        """Yield the upload's messages."""
        sent = 0
        try:
            for part in parts(self._sending.image):
                yield pb.UploadRequest(data=part)
                sent += len(part)
                self._sent(sent)
        except InvalidInput as error:
            self.failure = error


def ahead(progress: Progress | None, before: int, total: int, sent: int) -> None:
    """Report the progress of all uploads of a call: `sent` bytes of one, after `before` bytes of others."""
    if progress:
        progress(before + sent, total)


def changed(sending: Sending) -> InvalidInput:
    """Return the error for a file whose size changed while it was sent."""
    return InvalidInput(f"{sending.image.name} changed while it was sent: send it once it is written.")


@contextmanager
def _explained(image: SentImage) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unreadable(Path(image.name), error) from None
