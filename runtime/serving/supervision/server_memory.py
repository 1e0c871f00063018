"""Compute how much memory a server needs, item by item; used by plan, doctor, server and the operations page.

It is an upper bound from the bundle's shape and the server's options. Constants were measured on bundles of width 1024 (see
`python -m benchmarks.memory_page --measure`); those that were assumed say so.
"""

from __future__ import annotations

from collections.abc import Iterator

from echovlm_edge.runtime.backends import SlotMemory
from echovlm_edge.runtime.backends.bundle_memory import (
    BundleShape,
    Item,
    When,
    Where,
    activation_bytes,
    device_items,
    total,
)
from echovlm_edge.runtime.bundle.context import context_length, slot_count
from echovlm_edge.runtime.drafting.own_text import TOKEN_BYTES
from echovlm_edge.runtime.engine.forms.form_compiler import CACHED, MOST_BYTES
from echovlm_edge.runtime.serving.http.exchange.door_options import PARSED_AT_ONCE
from echovlm_edge.runtime.serving.http.exchange.door_options import PARSING as HTTP_PARSING
from echovlm_edge.runtime.serving.supervision.serve_settings import ServeSettings
from echovlm_edge.runtime.serving.transport.receiving import ReceivingLimits
from echovlm_edge.runtime.serving.transport.receiving_files import FileReceivingLimits

MB = 1 << 20
# An idle server has 125 MB resident, half of it mapped library files; 170 MB once calls of every kind have run.
LIBRARIES = 200 * MB
GPU_LIBRARIES = 1024 * MB  # CUDA, cuDNN or TensorRT in the host's memory: assumed, not measured
TOKENIZER_TIMES = 28  # a tokenizer in memory relative to its file: 217 MB for the published model's 8 MB
VOCABULARY_TIMES = 17  # what forms know of its tokens: 126 MB
# Weights in memory relative to their files, by whether our operators run and by precision. Mapped weights are 1. ONNX Runtime's own
# operators copy them into a layout of their own, and float16 is widened to float32 if the CPU has no operator for it.
WEIGHT_TIMES = {(True, "fp16"): 1.35, (False, "int4"): 1.75, (False, "int8"): 1.65, (False, "fp16"): 2.3}
DECODER_AT_REST = 64 * MB  # an idle process with Python, numpy, Pillow, pydicom and its decoders: 38 MB are not shared
MESSAGES_AT_ONCE = ReceivingLimits().total  # of all clients, before a call is admitted
PARTS_AT_ONCE = FileReceivingLimits().total  # of uploads; each may be as large as a message
PARSING = 2  # further copies of a message that is being parsed: as bytes and as a message
READ_AHEAD = 4  # studies whose pictures are read in the background


def account(shape: BundleShape, settings: ServeSettings) -> tuple[Item, ...]:
    """List everything that a server with these options needs.

    Raises:
        InvalidInput: `max_sequence` or `slots` is above the bundle's limit.
    """
    libraries = Item("libraries", LIBRARIES + (GPU_LIBRARIES if shape.on_gpu else 0), "", When.START)
    engine = tuple(_engine(shape, settings))
    second = (
        Item("a second engine", total(engine, where), "", When.SWAP, where)
        for where in dict.fromkeys(item.where for item in engine)
    )
    return (libraries, *engine, *_calls(shape, settings), *_decoding(settings), *second)


def sequence_length(shape: BundleShape, settings: ServeSettings) -> int:
    """Return the served context length, in tokens.

    Raises:
        InvalidInput: `max_sequence` is above the bundle's limit.
    """
    return context_length(shape.max_sequence, settings.max_sequence)


def served_slots(shape: BundleShape, settings: ServeSettings) -> int:
    """Return how many reports are decoded at the same time.

    Raises:
        InvalidInput: `slots` is above the bundle's limit.
    """
    return slot_count(shape.most_slots, settings.slots)


def spilled_bytes(shape: BundleShape, settings: ServeSettings) -> int:
    """Return the host's memory for cached prompts that a GPU has no room for; a GPU that shares the host's has none."""
    return settings.prefix_host_mb * MB if shape.place is Where.GPU else 0


def _engine(shape: BundleShape, settings: ServeSettings) -> Iterator[Item]:
    """List what each engine needs; there are two engines while a bundle is replaced."""
    length, slots = sequence_length(shape, settings), served_slots(shape, settings)
    yield Item("tokenizer", TOKENIZER_TIMES * shape.tokenizer, "", When.START)
    yield Item("vocabulary of forms", VOCABULARY_TIMES * shape.tokenizer, "", When.START)
    if shape.on_gpu:
        yield Item("token embedding", shape.embedding, "", When.START)
        yield from device_items(shape, SlotMemory(slots, length, settings.prefix_mb * MB))
        yield Item("prompts that left the GPU", spilled_bytes(shape, settings), "--prefix-host-mb", When.START)
    else:
        times = WEIGHT_TIMES.get((shape.native, shape.precision), 1.0)
        yield Item("weights", int(times * shape.weights) + shape.embedding, "", When.START)
    activations = activation_bytes(shape, length, settings.image_tokens)
    yield Item("activations", activations, "--max-sequence, --image-tokens", When.USED, shape.place)
    if not shape.on_gpu:
        cache = shape.cache_bytes(length)
        yield Item("KV caches", slots * cache, "--slots, --max-sequence", When.USED)
        # Slots change places so that those in use stay together, and what is kept is copied out of one.
        yield Item("copies of two KV caches", 2 * cache, "--max-sequence", When.USED)
        yield Item("prompt cache", settings.prefix_mb * MB, "--prefix-mb", When.USED)
    yield Item("preempted batch reports", settings.parked_mb * MB, "--parked-mb", When.USED)
    yield Item("image cache", settings.image_mb * MB, "--image-mb", When.USED)
    yield Item("forms of answers", (CACHED + slots) * MOST_BYTES, "--slots", When.USED)
    if settings.drafting != "off":
        own = slots * length * TOKEN_BYTES
        yield Item("phrases of each text itself", own, "--slots, --max-sequence", When.USED)
        yield Item("phrases of finished texts", settings.reply_mb * MB, "--reply-mb", When.USED)


def _calls(shape: BundleShape, settings: ServeSettings) -> Iterator[Item]:
    length, widths, slots = sequence_length(shape, settings), shape.widths, served_slots(shape, settings)
    places = slots + settings.queue
    embeddings, message = 4 * length * widths.hidden, settings.max_message_mb * MB
    inside = "--slots, --queue, --max-sequence"
    # The context length bounds how many pictures a call has, as frames are kept at the model's resolution.
    yield Item("pictures of open studies", settings.study_mb * MB, "--study-mb", When.USED)
    yield Item("uploaded files", settings.upload_mb * MB, "--upload-mb", When.USED)
    yield Item("pictures of calls", places * length * widths.token_pixels, inside, When.USED)
    yield Item("embeddings of calls", (places + READ_AHEAD) * embeddings, inside, When.USED)
    yield Item("prompts in prefill", (slots + 1) * embeddings, "--slots, --max-sequence", When.USED)
    yield Item("messages of calls", settings.request_mb * MB, "--request-mb", When.PEAK)
    yield Item("messages being received", (MESSAGES_AT_ONCE + PARSING) * message, "--max-message-mb", When.PEAK)
    if settings.http:
        parsed = PARSED_AT_ONCE * HTTP_PARSING * message
        yield Item("HTTP bodies being parsed", parsed, "--max-message-mb", When.PEAK)
    parts = PARTS_AT_ONCE * message if settings.upload_mb else 0
    yield Item("parts of uploads being received", parts, "--upload-mb, --max-message-mb", When.PEAK)
    # Decoders read an upload in place; a file in a message is copied for them.
    copies = settings.decode_processes * message
    yield Item("files being decoded", copies, "--decode-processes, --max-message-mb", When.PEAK)


def _decoding(settings: ServeSettings) -> Iterator[Item]:
    count, most = settings.decode_processes, settings.decode_mb * MB
    rest = min(DECODER_AT_REST, most)
    yield Item("decoding processes", (count + 1) * rest, "--decode-processes", When.START)  # one is spare
    yield Item("decoding", count * (most - rest), "--decode-processes, --decode-mb", When.PEAK)
