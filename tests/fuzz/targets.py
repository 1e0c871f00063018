"""What is fuzzed: a function of bytes for each kind of input, which returns for any answer that is allowed and raises for any other."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere, UnusableForm, UserError
from echovlm_edge.runtime.contracts.request import FrameSelection, ImageInput
from echovlm_edge.runtime.contracts.text_form import PatternForm, SchemaForm, TextForm
from echovlm_edge.runtime.engine.forms.form_state import allowed_tokens
from echovlm_edge.runtime.imaging.image_file import ImageLimits, decode_image, measure_image
from echovlm_edge.runtime.imaging.sandbox.samples import ENCODINGS, sample
from echovlm_edge.runtime.serving.access.clients import ANYBODY
from echovlm_edge.runtime.serving.http.chat.json_body import read_json
from echovlm_edge.runtime.serving.http.chat.request import chat_request
from echovlm_edge.runtime.serving.http.exchange.refusals import Refused
from echovlm_edge.runtime.serving.http.form_data.report_fields import report_fields
from echovlm_edge.runtime.serving.http.form_data.report_form import ReportForm
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from echovlm_edge.runtime.serving.uploads import UploadLimits, Uploads
from tests.support.decoding import RESOLUTION
from tests.support.decoding_engine import DecodingEngine
from tests.support.dicom_files import encode, png, saved, shipped, ultrasound
from tests.support.forms import small_compiler
from tests.support.hashed_decoder import VOCABULARY
from tests.support.http_door import data_uri, pictured
from tests.support.tiff_files import RGB, Page, tiff
from tests.support.video_files import KINDS, encoded, moving

COMPILER = small_compiler()
SCHEMA_SEEDS: list[dict[str, object]] = [
    {"type": "object", "properties": {"a": {"enum": [1, "b"]}}, "required": ["a"], "additionalProperties": False},
    {"type": "array", "items": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": "^a+$"}]}},
    {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}}}},
    {"type": "string", "format": "date"},
]
LIMITS = ImageLimits(max_pixels=1 << 20)
METHOD = "/echovlm.v1.ReportService/GenerateReport"
# What a wrong request may be answered with; anything else (UNKNOWN, INTERNAL) is a fault of the server's.
ALLOWED = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        run: returns, or raises what must not happen.
        seeds: valid inputs to begin with.
        repair: makes mutated bytes pass the check that runs before the code of interest (a checksum).
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    repair: Callable[[bytes], bytes] = bytes


def decode(data: bytes) -> None:
    """An image file through the very functions that the sandbox's processes call."""
    try:
        measured = measure_image(ImageInput(data), RESOLUTION, LIMITS)
        frames = decode_image(ImageInput(data), LIMITS)
        several = decode_image(ImageInput(data, selection=FrameSelection(evenly_spaced=3)), LIMITS)
    except (InvalidInput, NotPossibleHere) as refused:
        sentence = str(refused)
        assert sentence and "\n" not in sentence, repr(sentence)
        return
    except MemoryError:  # FFmpeg's answer to an absurd length as well; the sandbox refuses the file
        return
    assert len(frames) == len(measured.sizes)
    for frame in (*frames, *several):
        assert frame.pixels.dtype == np.uint8 and frame.pixels.ndim == 3 and frame.pixels.shape[2] == 3
        assert frame.pixels.shape[0] * frame.pixels.shape[1] <= LIMITS.max_pixels


class Request:
    """A message as it comes over the wire, to a server on loopback."""

    def __init__(self) -> None:
        self._server: ReportServer | None = None

    def __call__(self, data: bytes) -> None:
        """One call."""
        if self._server is None:
            self._server = ReportServer(DecodingEngine(), ServerOptions("127.0.0.1:0", grace_seconds=0))
            self._call = grpc.insecure_channel(self._server.address).unary_stream(METHOD)
        try:
            list(self._call(data, timeout=20))
        except grpc.RpcError as error:
            if error.code() in ALLOWED:
                assert error.details(), error
                return
            try:
                pb.GenerateReportRequest.FromString(data)
            except DecodeError:  # no message at all: gRPC's own answer
                assert error.code() is grpc.StatusCode.INTERNAL
                return
            raise


def chat(data: bytes) -> None:
    """A body of /v1/chat/completions, up to the service's request."""
    try:
        asked = chat_request(read_json(data))
    except Refused as refused:
        assert str(refused) and "\n" not in str(refused) and 400 <= refused.status < 500, repr(refused)
        return
    asked.question.SerializeToString()


def form(data: bytes) -> None:
    """A body of /v1/reports in pieces of several sizes: what is taken does not depend on where it is cut."""
    taken = {_form(data, size) for size in (1, 7, len(data) + 1)} - {None}
    assert len(taken) <= 1, taken


def _form(data: bytes, size: int) -> object:
    """Return the sizes of a form's files, or None if it is refused."""
    uploads = Uploads(UploadLimits(1 << 20, max_file_bytes=1 << 16))
    read = ReportForm(b"b", lambda: uploads.begin(ANYBODY), most_files=8)
    try:
        for start in range(0, len(data), size):
            read.feed(data[start : start + size])
        report_fields(read.texts())
        return tuple(file.upload.size for file in read.files)
    except UserError as refused:
        assert str(refused), repr(refused)
        return None
    finally:
        for file in read.files:
            file.upload.abandon()
        assert uploads.counts() == (0, 0)


def schema(data: bytes) -> None:
    """A JSON schema that an answer is asked in."""
    _compile(SchemaForm, data)


def pattern(data: bytes) -> None:
    """A regular expression that an answer is asked in."""
    _compile(PatternForm, data)


def _compile(make: Callable[[str], TextForm], data: bytes) -> None:
    """Compile a form, and begin a text in it if there is one."""
    try:
        written = COMPILER.compile(make(data.decode(errors="replace"))).begin()
        for _ in range(8):
            written.take(int(allowed_tokens(written.allowed(), VOCABULARY)[-1]))
            if written.ended:
                return
    except UnusableForm as refused:
        sentence = str(refused)
        assert sentence and "\n" not in sentence, repr(sentence)


def png_with_checksums(data: bytes) -> bytes:
    """Give the chunks of a PNG file their right checksums."""
    repaired, at = bytearray(data), 8
    while at + 12 <= len(repaired):
        end = at + 8 + int.from_bytes(repaired[at : at + 4], "big")
        if end + 4 > len(repaired):
            break
        repaired[end : end + 4] = zlib.crc32(repaired[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(repaired)


MODES = {
    "PNG": ("RGB", "L", "1", "P", "RGBA", "LA", "I;16"),
    "JPEG": ("RGB", "L", "CMYK"),
    "BMP": ("RGB", "L", "1", "P", "RGBA"),
    "TIFF": ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "1", "P"),
}
ANIMATED = ("PNG", "TIFF", "WEBP", "GIF")


def picture_seeds(kind: str) -> list[bytes]:
    """Small pictures of every mode that matters, animations of three of them, and a TIFF of every compression."""
    noise = Image.open(io.BytesIO(png(33, 29)))
    pictures = [
        noise.convert("L").convert(mode) if mode in ("I;16", "I", "F") else noise.convert(mode) for mode in MODES[kind]
    ]
    seeds = [encode(picture, kind) for picture in pictures]
    options: list[dict[str, object]] = [{"save_all": True, "append_images": [pictures[1], pictures[0]]}] * (
        kind in ANIMATED
    )
    if kind == "TIFF":
        options += [{"compression": name} for name in ("tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg")]
        seeds += [tiff(Page(np.asarray(noise), RGB, planar, (16, 16)), order=order) for planar, order in TILED]
    for more in options:
        file = io.BytesIO()
        pictures[0].save(file, kind, **more)  # type: ignore[arg-type]
        seeds.append(file.getvalue())
    return seeds


TILED = ((False, "<"), (True, ">"))


def video_seeds() -> list[bytes]:
    """A few frames in every container and codec."""
    return [encoded(kind, moving(5)) for kind in KINDS]


def dicom_seeds() -> list[bytes]:
    """Ultrasound files of several syntaxes, and the small compressed ones that ship with pydicom."""
    grey, colour = np.full((9, 7), 80, np.uint8), np.full((3, 9, 7, 3), 80, np.uint8)
    made = [
        ultrasound(grey, "MONOCHROME2"),
        ultrasound(grey.astype(np.uint16), "MONOCHROME1", ImplicitVRLittleEndian),
        ultrasound(colour, NumberOfFrames=3),
        ultrasound(colour, syntax=DeflatedExplicitVRLittleEndian, NumberOfFrames=3),
    ]
    compressed = [sample(encoding) for encoding in ENCODINGS if encoding.startswith("1.")]
    small = [shipped(name) for name in ("JPEG2000.dcm", "SC_rgb_jpeg_dcmtk.dcm", "MR_small_RLE.dcm")]
    return [saved(dataset) for dataset in made] + compressed + [file for file in small if len(file) < 1 << 16]


def request_seeds() -> list[bytes]:
    """Messages with every field."""
    image = pb.Image(data=png(8, 8), media_type="image/png", frames=pb.FrameSelection(evenly_spaced=1))
    indexed = pb.Image(data=png(8, 8), frames=pb.FrameSelection(indices=pb.FrameIndices(index=[0])))
    sampling = pb.Sampling(max_new_tokens=3, temperature=0.5, top_k=4, top_p=0.9, repetition_penalty=1.1, seed=1)
    options = pb.GenerationOptions(
        language=pb.LANGUAGE_ZH,
        region=pb.ANATOMICAL_REGION_LIVER,
        sampling=sampling,
        include_token_ids=True,
        priority=pb.PRIORITY_BATCH,
        log_probabilities=2,
        text_form=pb.TextForm(choice=pb.Choices(texts=["left", "right"])),
    )
    forms = (
        pb.TextForm(json_schema='{"type": "object", "properties": {"a": {"enum": [1, "b"]}}}'),
        pb.TextForm(regex="[0-9]{1,3} mm"),
        pb.TextForm(sections=True),
        pb.TextForm(answer=True),
    )
    formed = [pb.GenerateReportRequest(images=[image], options=pb.GenerationOptions(text_form=form)) for form in forms]
    messages = (
        pb.GenerateReportRequest(images=[image, indexed], prompt="Describe.", options=options),
        pb.GenerateReportRequest(images=[image], study="0" * 32),
        pb.GenerateReportRequest(),
        *formed,
    )
    return [message.SerializeToString() for message in messages]


def chat_seeds() -> list[bytes]:
    """Bodies with every option, pictures and turns."""
    uri = data_uri(png(8, 8))
    options = {
        "n": 2,
        "stop": ["a"],
        "seed": -1,
        "temperature": 0.5,
        "top_p": 1,
        "max_tokens": 3,
        "logprobs": True,
        "top_logprobs": 2,
    }
    said = [{"role": "system", "content": "Brief."}, {"role": "user", "content": pictured("Why?", uri)}]
    more = [{"role": "assistant", "content": "So.", "refusal": None}, {"role": "user", "content": "And?"}]
    bodies = [{"model": "m", "messages": said + more, **options}, {"model": "m", "messages": said, "stream": True}]
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}, "strict": True}}
    bodies += [
        {"model": "m", "messages": said, "response_format": schema},
        {"model": "m", "messages": said, "structured_outputs": {"choice": ["a", "b"]}},
        {"model": "m", "messages": said, "structured_outputs": {"regex": "[a-z]+"}},
    ]
    return [json.dumps(body).encode() for body in bodies]


def form_seeds() -> list[bytes]:
    """Forms with files and fields."""
    part = b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
    fields = part % (b"language", b"zh") + part % (b"seed", b"7")
    file = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\nContent-Type: image/png\r\n\r\nabc\r\n'
    return [fields + file + b"--b--\r\n", file + file + b"--b--", part % (b"task", b"poem") + b"--b--\r\n"]


TARGETS = {
    "png": Target(decode, lambda: picture_seeds("PNG"), png_with_checksums),
    "jpeg": Target(decode, lambda: picture_seeds("JPEG")),
    "bmp": Target(decode, lambda: picture_seeds("BMP")),
    "tiff": Target(decode, lambda: picture_seeds("TIFF")),
    "webp": Target(decode, lambda: picture_seeds("WEBP")),
    "gif": Target(decode, lambda: picture_seeds("GIF")),
    "video": Target(decode, video_seeds),
    "dicom": Target(decode, dicom_seeds),
    "request": Target(Request(), request_seeds),
    "chat": Target(chat, chat_seeds),
    "form": Target(form, form_seeds),
    "schema": Target(schema, lambda: [json.dumps(one).encode() for one in SCHEMA_SEEDS]),
    "pattern": Target(pattern, lambda: [b"[a-f]{2,5}", b"(ab|00)+", b"(?i)true|false", rb"\p{L}+ \d{1,3}"]),
}
