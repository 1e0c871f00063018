"""llama.cpp: GGUF by its own converter and quantizer, read by its own library of pictures (mtmd), compiled for this processor."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.environments import Environment, run
from benchmarks.peers.peer import IMAGE_MARK, Answer, Question, Task

PACKAGE = "llama-cpp-python"
ENVIRONMENT = Environment("llama", {"CMAKE_ARGS": "-DGGML_NATIVE=ON"})
BATCH, PHYSICAL_BATCH = 2048, 512  # llama.cpp's defaults
QUANTIZE = """
import sys, llama_cpp
source, target, kind = sys.argv[1:]
options = llama_cpp.llama_model_quantize_default_params()
options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
sys.exit(llama_cpp.llama_model_quantize(source.encode(), target.encode(), options))
"""


@dataclass
class Llama:
    """One quantization of the decoder, and one of the vision encoder.

    Attributes:
        weights: of the decoder, as llama.cpp names it: Q4_0, Q4_K_M.
        vision: of the vision encoder, as its converter names it: f16, q8_0.
    """

    weights: str
    vision: str
    _loaded: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"llama.cpp {self.weights}, vision {self.vision.upper()}"

    @property
    def python(self) -> str:
        """Return the interpreter of its environment."""
        return ENVIRONMENT.python

    def prepare(self, folder: Path) -> None:
        """Install llama.cpp and write two GGUF files; raises what `Environment.make` raises."""
        ENVIRONMENT.make()
        decoder, vision = self._files(folder)
        decoder.parent.mkdir(exist_ok=True)
        converter = ENVIRONMENT.source(PACKAGE) / "vendor" / "llama.cpp" / "convert_hf_to_gguf.py"
        convert = (ENVIRONMENT.python, str(converter), str(folder / "checkpoint"))
        if not vision.is_file():
            _made(f"{self.name}: vision encoder", (*convert, "--mmproj", "--outtype", self.vision, "--outfile"), vision)
        if not decoder.is_file():
            whole = decoder.with_name("bf16.gguf")
            if not whole.is_file():
                _made("llama.cpp: decoder in bfloat16", (*convert, "--outtype", "bf16", "--outfile"), whole)
            quantize = (ENVIRONMENT.python, "-c", QUANTIZE, str(whole))
            _made(f"{self.name}: decoder", quantize, decoder, self.weights)

    def versions(self) -> Mapping[str, str]:
        """Return the versions of the binding, and the instructions that llama.cpp was compiled for."""
        import llama_cpp

        flags = llama_cpp.llama_print_system_info().decode().replace("CPU :", "").split("|")
        compiled = " ".join(flag.partition("=")[0].strip() for flag in flags if flag.strip().endswith("= 1"))
        return {PACKAGE: llama_cpp.__version__, "compiled for": compiled}

    def load(self, task: Task) -> None:
        """Load both files."""
        import llama_cpp
        from llama_cpp import mtmd_cpp

        decoder, vision = (str(file).encode() for file in self._files(Path(task.folder)))
        llama_cpp.llama_backend_init()
        of_model = llama_cpp.llama_model_default_params()
        of_model.n_gpu_layers = 0
        model = llama_cpp.llama_model_load_from_file(decoder, of_model)
        of_context = llama_cpp.llama_context_default_params()
        of_context.n_ctx, of_context.n_batch, of_context.n_ubatch = task.context, BATCH, PHYSICAL_BATCH
        of_context.n_threads = of_context.n_threads_batch = task.threads
        of_vision = mtmd_cpp.mtmd_context_params_default()
        of_vision.use_gpu, of_vision.print_timings, of_vision.n_threads = False, False, task.threads
        self._loaded = {
            "context": llama_cpp.llama_init_from_model(model, of_context),
            "vision": mtmd_cpp.mtmd_init_from_file(vision, model, of_vision),
            "vocabulary": llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model)),
            "batch": llama_cpp.llama_batch_init(1, 0, 1),
        }
        assert all(self._loaded.values()), "llama.cpp could not load the model: its log says why"

    def ask(self, question: Question, new_tokens: int) -> Answer:
        """Answer greedily: the vision encoder, the prompt's pieces one after the other, then a token at a time."""
        pixels = question.pixels()
        started = time.perf_counter()
        visual, prompt, vision, past = self._read(pixels, question.prompt)
        tokens = [int(self._last_logits().argmax())]
        first = time.perf_counter()
        for place in range(past, past + new_tokens - 1):
            self._append(tokens[-1], place)
            tokens.append(int(self._last_logits().argmax()))
        return Answer(visual, prompt, vision, first - started, time.perf_counter() - first, len(tokens))

    def logits(self, task: Task) -> NDArray[np.float32]:
        """Compute logits in the same calls as `ask`."""
        self.load(task)
        question = task.questions[0]
        *_, past = self._read(question.pixels(), question.prompt)
        rows = [self._last_logits().copy()]
        for place, token in enumerate(task.forced, past):
            self._append(token, place)
            rows.append(self._last_logits().copy())
        return np.stack(rows)

    def _files(self, folder: Path) -> tuple[Path, Path]:
        return folder / "llama" / f"{self.weights}.gguf", folder / "llama" / f"mmproj-{self.vision}.gguf"

    def _read(self, pixels: NDArray[np.uint8], prompt: str) -> tuple[int, int, float, int]:
        """Read a prompt into an empty cache; returns visual tokens, all tokens, the vision encoder's seconds, the next position."""
        import llama_cpp
        from llama_cpp import mtmd_cpp

        context, vision = self._loaded["context"], self._loaded["vision"]
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        height, width, _ = pixels.shape
        content = np.ascontiguousarray(pixels).ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = mtmd_cpp.mtmd_bitmap_init(width, height, content)
        text = prompt.replace(IMAGE_MARK, mtmd_cpp.mtmd_default_marker().decode()).encode()
        pieces = mtmd_cpp.mtmd_input_chunks_init()
        asked = mtmd_cpp.mtmd_input_text(text, len(text), False, True)
        bitmaps = (mtmd_cpp.mtmd_bitmap_p_ctypes * 1)(bitmap)
        _check(mtmd_cpp.mtmd_tokenize(vision, pieces, ctypes.byref(asked), bitmaps, 1))
        past, visual, seconds = llama_cpp.llama_pos(0), 0, 0.0
        count = mtmd_cpp.mtmd_input_chunks_size(pieces)
        for number in range(count):
            piece = mtmd_cpp.mtmd_input_chunks_get(pieces, number)
            place, last = llama_cpp.llama_pos(past.value), number == count - 1
            if mtmd_cpp.mtmd_input_chunk_get_type(piece) == mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                visual = mtmd_cpp.mtmd_input_chunk_get_n_tokens(piece)
                started = time.perf_counter()
                _check(mtmd_cpp.mtmd_encode_chunk(vision, piece))
                seconds = time.perf_counter() - started
                embeddings = mtmd_cpp.mtmd_get_output_embd(vision)
                unheard = mtmd_cpp.mtmd_helper_post_decode_callback(0)
                picture = (vision, context, piece, embeddings, place, 0, BATCH, ctypes.byref(past), unheard, None)
                _check(mtmd_cpp.mtmd_helper_decode_image_chunk(*picture))
            else:
                words = (vision, context, piece, place, 0, BATCH, last, ctypes.byref(past))
                _check(mtmd_cpp.mtmd_helper_eval_chunk_single(*words))
        tokens = mtmd_cpp.mtmd_helper_get_n_tokens(pieces)
        mtmd_cpp.mtmd_input_chunks_free(pieces)
        mtmd_cpp.mtmd_bitmap_free(bitmap)
        return visual, tokens, seconds, past.value

    def _append(self, token: int, place: int) -> None:
        import llama_cpp

        batch = self._loaded["batch"]
        batch.n_tokens, batch.token[0], batch.pos[0], batch.n_seq_id[0], batch.logits[0] = 1, token, place, 1, True
        batch.seq_id[0][0] = 0
        _check(llama_cpp.llama_decode(self._loaded["context"], batch))

    def _last_logits(self) -> NDArray[np.float32]:
        import llama_cpp

        found = llama_cpp.llama_get_logits_ith(self._loaded["context"], -1)
        return np.ctypeslib.as_array(found, (self._loaded["vocabulary"],))


def _made(what: str, command: tuple[str, ...], target: Path, *rest: str) -> None:
    """Run a command that writes `target`, which appears when it is whole."""
    partial = target.with_name(f"partial-{target.name}")
    run(what, (*command, str(partial), *rest), target.with_suffix(".log"))
    partial.rename(target)


def _check(status: int) -> None:
    assert status == 0, f"llama.cpp refused a call with {status}: its log says why"
