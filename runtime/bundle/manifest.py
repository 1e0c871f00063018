"""The bundle: one folder with a model's engines and bundle.json, the contract between export and runtime."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from echovlm_edge.runtime.bundle.signature import PublicKey, check_signature
from echovlm_edge.runtime.contracts.errors import NotPossibleHere, UserError

FORMAT = 1
MANIFEST = "bundle.json"
CURRENT = "current"  # in a folder of bundles, the link to the one that is served
TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"
TOKEN_EMBEDDING = "token_embedding.bin"
WEIGHT_ALIGNMENT = 4096  # a page: each tensor in a file of weights can be memory-mapped by itself
PARTS = ("vision_encoder", "projector", "decoder")
PREFILL_CHUNK = 512  # the most tokens that one call of the decoder takes: engines are built for it
FIX = "copy it or build the bundle again"

_STRICT = ConfigDict(extra="forbid")


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError("it leads out of the bundle")
    return name


Size = Annotated[int, Field(gt=0, lt=1 << 40)]
Count = Annotated[int, Field(ge=0, lt=1 << 62)]


@dataclass(frozen=True, config=_STRICT)
class ModelSpec:
    """The properties of the model that the runtime needs.

    `vision_window` is the side, in visual tokens, of the squares within which most blocks of the vision encoder attend; 0 where there
    are none.
    """

    hidden_size: Size
    num_layers: Size
    num_kv_heads: Size
    head_dim: Size
    vocab_size: Size
    mrope_section: tuple[Count, Count, Count]
    rope_theta: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    vision_head_dim: Size
    merge_size: Size
    image_token_id: Count
    stop_token_ids: tuple[Count, ...]
    vision_window: Count = 0

    @model_validator(mode="after")
    def _rotates_a_head(self) -> Self:
        if 2 * sum(self.mrope_section) != self.head_dim:
            raise ValueError("mrope_section is not half of head_dim")
        return self


@dataclass(frozen=True, config=_STRICT)
class FileSpec:
    """One file of the bundle; `name` is relative to its folder."""

    name: Annotated[str, AfterValidator(_inside)]
    bytes: Count
    sha256: str


@dataclass(frozen=True, config=_STRICT)
class TensorSpec:
    """An input or output of a part; a dimension is a number, or a name where it varies."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, config=_STRICT)
class Part:
    """One engine: `files[0]` is what is loaded, the others are its weights.

    `operators` counts the nodes of its graph, `layers` what TensorRT's parser made of them, by TensorRT's layer types; `profiles`
    names a TensorRT engine's optimization profiles in their order.
    """

    name: str
    precision: str
    files: Annotated[tuple[FileSpec, ...], Field(min_length=1)]
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    operators: dict[str, int] = field(default_factory=dict)
    layers: dict[str, int] = field(default_factory=dict)
    profiles: tuple[str, ...] = ()

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of its weights: an ONNX graph comes first, then its weights; an engine contains its weights."""
        return sum(file.bytes for file in self.files[1:] or self.files)


@dataclass(frozen=True, config=_STRICT)
class Limits:
    """What the bundle was built for."""

    max_sequence: Size
    max_batch: Size


@dataclass(frozen=True, config=_STRICT)
class Parity:
    """How one stage of the bundle's engines compares with the PyTorch model on one sample.

    `peak` is the largest reference value, to which errors can be compared; only logits have `top1_agreement` (share of `positions`)
    and `kl_divergence` (nats, mean over `positions`, and that mean's standard error). Of the `written_tokens` that the bundle wrote,
    each its likeliest, the PyTorch model would have written the first `agreed_tokens`, too, and then another.
    """

    stage: str
    sample: str
    peak: float
    max_abs_error: float
    mean_abs_error: float
    relative_error: float
    top1_agreement: float | None = None
    kl_divergence: float | None = None
    kl_standard_error: float | None = None
    positions: Count = 0
    agreed_tokens: Count | None = None
    written_tokens: Count | None = None


@dataclass(frozen=True, config=_STRICT)
class EmbeddingSpec:
    """How the token embedding is stored: `block_size` values share a scale where `dtype` is int8, else it is 0."""

    dtype: str
    block_size: Count = 0


@dataclass(frozen=True, config=_STRICT)
class Footprint:
    """A bundle's disk and memory use, in bytes.

    Attributes:
        disk: all of its files.
        weights: mapped into memory while it runs, shared by all processes on one machine.
        kv_cache: of one sequence of `max_sequence` tokens.
        kv_cache_batch: of `max_batch` such sequences.
        working: the largest further memory of a process: libraries, tokenizer, activations (an estimate). A server's total
            depends on its options, see `server_memory`.
    """

    disk: int
    weights: int
    kv_cache: int
    kv_cache_batch: int
    working: int


@dataclass(frozen=True, config=_STRICT)
class AdapterSource:
    """The adapter that was merged into a bundle's weights.

    Attributes:
        name: of its folder.
        kind: how it changes weights.
        sha256: what `sha256sum adapter_config.json adapter_model.safetensors | sha256sum` prints in its folder.
    """

    name: str
    kind: Literal["LoRA", "rsLoRA", "DoRA"]
    sha256: str


@dataclass(frozen=True, config=_STRICT)
class Source:
    """The checkpoint that a bundle was built from.

    Attributes:
        name: of the model, in the service's answers and in reports.
        sha256: of its config.json and weights, as `sha256sum config.json model*.safetensors | sha256sum` prints it; in
            older bundles, of its config and its tensors' shapes only.
        config: its config.json.
        adapter: that was merged into its weights, if any.
    """

    name: str
    sha256: str
    config: dict[str, Any] = field(default_factory=dict)
    adapter: AdapterSource | None = None


@dataclass(frozen=True, config=_STRICT)
class RoundedLayers:
    """How weights that differ in their layer only were rounded.

    Attributes:
        weight: the checkpoint tensor's name, with `*` for the layer's number.
        layers: their numbers, such as `0-5 8`; empty where the name has none.
        method: `feedback` (error feedback) or `importance` (a search weighted by the inputs' mean squares).
        bits: 4 or 8.
        block_size: values that share a scale.
        tokens: the fewest and the most inputs that one of them was rounded for.
        everyones: the layers of an expert that too few tokens reach, which was rounded for all tokens instead.
    """

    weight: str
    layers: str
    method: Literal["feedback", "importance"]
    bits: Literal[4, 8]
    block_size: Size
    tokens: tuple[Count, Count]
    everyones: str = ""


@dataclass(frozen=True, config=_STRICT)
class Calibration:
    """What a bundle's weights were rounded with. Weights that it does not list were rounded without data.

    Attributes:
        pictures: how many there were; their hashes are in the bundle's file `calibration_pictures.txt`.
        tokens: of pictures and texts together.
        answers: whether the texts had answers, and not prompts alone.
        bits: of a value of the decoder's layers on average, with its share of the scales.
        weights: how each weight was rounded.
    """

    pictures: Count
    tokens: Count
    answers: bool
    bits: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    weights: tuple[RoundedLayers, ...]


@dataclass(frozen=True, config=_STRICT)
class KeptPhrases:
    """What the bundle's table of phrases, its file `phrases.bin`, was made of.

    Attributes:
        reports: how many there were.
        shared_by: a phrase is in the table if at least so many of the reports have it.
        kept: contexts in the table.
        found: contexts in the reports.
    """

    reports: Count
    shared_by: Size
    kept: Count
    found: Count


@dataclass(frozen=True, config=_STRICT)
class Manifest:
    """bundle.json.

    `parity` was measured on the `engines`, or where they cannot run, on their `graphs` with ONNX Runtime on a CPU. `finish_with`
    names the script that builds the engines on the device, where they are still to be built. `rounding` says how weights became 4 or 8
    bits; bundles without it are of versions that knew `plain` only.
    """

    format: int
    bundle_id: str
    source: Source
    target: str
    precision: str
    block_size: int
    embedding: EmbeddingSpec
    model: ModelSpec
    preprocess: dict[str, Any]
    limits: Limits
    parts: tuple[Part, ...]
    files: tuple[FileSpec, ...]
    toolchain: dict[str, str]
    parity: tuple[Parity, ...] = ()
    parity_of: Literal["engines", "graphs"] = "engines"
    operator_library: str | None = None
    footprint: Footprint | None = None
    finish_with: str | None = None
    rounding: str = "plain"
    calibration: Calibration | None = None
    phrases: KeptPhrases | None = None

    def part(self, name: str) -> Part:
        """Return the part called `name`."""
        return next(part for part in self.parts if part.name == name)

    @property
    def on_gpu(self) -> bool:
        """Whether its parts run on a GPU."""
        return on_gpu(self.target)

    @property
    def most_slots(self) -> int | None:
        """How many sequences a GPU decodes together at most; on a CPU any number, None."""
        return self.limits.max_batch if self.on_gpu else None

    @property
    def cache_tensor(self) -> TensorSpec:
        """The first layer's keys, as the decoder takes them: [batch, kv_heads, context, head_dim]."""
        return next(tensor for tensor in self.part("decoder").inputs if tensor.name == "keys.0")

    def all_files(self) -> tuple[FileSpec, ...]:
        """List every file of the bundle except bundle.json."""
        return (*self.files, *(file for part in self.parts for file in part.files))


_MANIFEST = TypeAdapter(Manifest)


def on_gpu(target: str) -> bool:
    """Return whether bundles for a target run on a GPU."""
    return target not in ("cpu", "portable")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the numpy dtype of a tensor type in bundle.json, which has ONNX's names in lower case."""
    return np.dtype("float32" if name == "float" else name)


class Bundle:
    """A bundle on disk whose files are all there and of the sizes that bundle.json states.

    Raises:
        NotPossibleHere: no bundle there, a bundle of a newer format, or a damaged file; the sentence names it.
    """

    def __init__(
        self, path: Path, verify: bool = False, finished: bool = True, signers: Sequence[PublicKey] = ()
    ) -> None:
        """Open the bundle at `path`, see `bundle_at`.

        Args:
            path: the folder.
            verify: hash every file too, which reads the whole bundle.
            finished: false opens one whose engines are still to be built on the device.
            signers: if any, one of them must have signed bundle.json, and every file is hashed.
        """
        self.path = path = bundle_at(path)
        self.manifest = read_manifest(path, signers)
        if finished and self.manifest.finish_with:
            raise NotPossibleHere(
                f"The engines of the bundle {path} are still to be built: run {path / self.manifest.finish_with} on a "
                f"{self.manifest.target}."
            )
        for file in self.manifest.all_files():
            _check_file(path / file.name, file, verify or bool(signers))

    def text(self, name: str) -> str:
        """Read one of the bundle's text files."""
        with reading(self.path / name):
            return (self.path / name).read_text(encoding="utf-8")


def bundle_at(path: Path) -> Path:
    """Return the folder of the bundle at `path`: itself, what a link leads to, or the current bundle of a folder of bundles.

    Links are followed here, once, so that one that changes while a bundle is loaded does not mix two bundles.
    """
    if not (path / MANIFEST).exists() and os.path.lexists(path / CURRENT):
        path = path / CURRENT
    try:
        return path.resolve(strict=True) if path.is_symlink() else path
    except (OSError, RuntimeError):  # it leads nowhere, or to itself
        return path


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn any exception while a bundle's file is read into one sentence that names the file and the fix.

    Raises:
        NotPossibleHere: the block raised an exception.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except OSError as error:
        raise NotPossibleHere(
            f"The bundle's file {file} cannot be read ({error.strerror or type(error).__name__}): {FIX}."
        ) from error
    except Exception as error:
        raise NotPossibleHere(f"The bundle's file {file} is damaged ({type(error).__name__}): {FIX}.") from error


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write bundle.json into the folder `path`."""
    path.joinpath(MANIFEST).write_bytes(_MANIFEST.dump_json(manifest, indent=1))


def describe_file(folder: Path, name: str) -> FileSpec:
    """Read the size and hash of a file on disk."""
    with (folder / name).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileSpec(name, (folder / name).stat().st_size, digest)


def bundle_id(files: tuple[FileSpec, ...]) -> str:
    """Name a bundle by its contents: 16 hex digits of a hash over its files' names and hashes."""
    listing = "".join(f"{file.name} {file.sha256}\n" for file in sorted(files, key=lambda file: file.name))
    return hashlib.sha256(listing.encode()).hexdigest()[:16]


def read_manifest(path: Path, signers: Sequence[PublicKey] = ()) -> Manifest:
    """Read bundle.json in the folder `path`; if there are `signers`, one of them must have signed it.

    Raises:
        NotPossibleHere: there is none, its signature is missing or another's, it is of a newer format, or damaged.
    """
    file = path / MANIFEST
    try:
        raw = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NotPossibleHere(f"There is no bundle at {path}: build one with echovlm-build.") from None
    except OSError as error:
        raise NotPossibleHere(f"The bundle's file {file} cannot be read ({error.strerror}): {FIX}.") from None
    if signers:
        check_signature(raw, file, signers)
    try:
        found = json.loads(raw)["format"]
        if found != FORMAT:
            age = "newer" if found > FORMAT else "older"
            fix = "update echovlm-edge" if found > FORMAT else "build it again with echovlm-build"
            raise NotPossibleHere(
                f"The bundle {path} has format {found}, {age} than {FORMAT}, which this version reads: {fix}."
            )
        manifest = _MANIFEST.validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise NotPossibleHere(f"The bundle's file {file} is damaged at {where} ({first['msg']}): {FIX}.") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NotPossibleHere(f"The bundle's file {file} is damaged: it is no bundle description; {FIX}.") from None
    names = [part.name for part in manifest.parts]
    for name in PARTS:
        if names.count(name) != 1:
            raise NotPossibleHere(f"The bundle's file {file} is damaged: it must describe one {name}; {FIX}.")
    return manifest


def _check_file(path: Path, expected: FileSpec, verify: bool) -> None:
    with reading(path):
        if not path.is_file():
            raise NotPossibleHere(f"The bundle's file {path} is missing: {FIX}.")
        size = path.stat().st_size
        if size != expected.bytes:
            raise NotPossibleHere(f"The bundle's file {path} has {size} bytes instead of {expected.bytes}: {FIX}.")
        if verify and describe_file(path.parent, path.name).sha256 != expected.sha256:
            raise NotPossibleHere(f"The bundle's file {path} has changed since it was built (its hash differs): {FIX}.")
