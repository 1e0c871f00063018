"""OpenVINO GenAI: exported by optimum-intel's own command to int4, symmetric in groups of 128, and run by VLMPipeline."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.environments import Environment, run
from benchmarks.peers.peer import Answer, Question, Task

# torchvision's wheels load with PyTorch for CUDA alone, which takes gigabytes; where it is absent, the exporter does without.
ENVIRONMENT = Environment("openvino", {}, unwanted=("torchvision",))
VERSIONS = ("openvino-genai", "openvino", "optimum-intel", "nncf")
EXPORTED = "openvino"
INT4 = ("--weight-format", "int4", "--sym", "--group-size", "128")


@dataclass
class OpenVino:
    """Its pipeline with the settings that it has by itself, but for the threads."""

    _loaded: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """What tables call it."""
        return "OpenVINO GenAI int4/128"

    @property
    def python(self) -> str:
        """Return the interpreter of its environment."""
        return ENVIRONMENT.python

    def prepare(self, folder: Path) -> None:
        """Install it and export the checkpoint; raises what `Environment.make` raises."""
        ENVIRONMENT.make()
        target = folder / EXPORTED
        if not target.is_dir():
            partial = target.with_name("partial-openvino")
            shutil.rmtree(partial, ignore_errors=True)
            export = (
                "export",
                "openvino",
                "--model",
                str(folder / "checkpoint"),
                "--task",
                "image-text-to-text",
                *INT4,
            )
            command = (ENVIRONMENT.script("optimum-cli"), *export, str(partial))
            run("OpenVINO: exporting (minutes)", command, target.with_suffix(".log"), {"HF_HUB_OFFLINE": "1"})
            partial.rename(target)

    def versions(self) -> Mapping[str, str]:
        """Return its packages' versions."""
        from importlib.metadata import version

        return {name: version(name) for name in VERSIONS}

    def load(self, task: Task) -> None:
        """Compile the pipeline for the CPU."""
        import openvino_genai

        exported = str(Path(task.folder) / EXPORTED)
        self._loaded["pipeline"] = openvino_genai.VLMPipeline(exported, "CPU", INFERENCE_NUM_THREADS=task.threads)

    def ask(self, question: Question, new_tokens: int) -> Answer:
        """Answer greedily; the vision encoder's seconds are its own figure, which includes embedding the prompt's tokens."""
        import openvino
        import openvino_genai

        pipeline = self._loaded["pipeline"]
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = new_tokens, True, False
        config.apply_chat_template = False
        pixels = openvino.Tensor(np.ascontiguousarray(question.pixels()[None]))
        clock = _clock()
        started = time.perf_counter()
        result = pipeline.generate(question.prompt, images=[pixels], generation_config=config, streamer=clock)
        ended = time.perf_counter()
        found = result.perf_metrics
        written = found.get_num_generated_tokens()
        assert written == new_tokens, f"{written} tokens were written in the place of {new_tokens}"
        prompt_tokens = found.get_num_input_tokens()
        text = pipeline.get_tokenizer().encode(question.prompt.replace("<|image_pad|>", ""), add_special_tokens=False)
        visual = prompt_tokens - text.input_ids.shape[1]
        vision = found.get_prepare_embeddings_duration().mean / 1e3
        return Answer(visual, prompt_tokens, vision, clock.first - started, ended - clock.first, written)

    def logits(self, task: Task) -> NDArray[np.float32]:
        """Compute logits with the same graphs by optimum-intel, as the pipeline returns none; the tokens behind the prompt in one pass."""
        import torch
        from optimum.intel import OVModelForVisualCausalLM

        question = task.questions[0]
        settings = {"INFERENCE_NUM_THREADS": str(task.threads)}
        model = OVModelForVisualCausalLM.from_pretrained(str(Path(task.folder) / EXPORTED), ov_config=settings)
        tokens = torch.tensor([[*question.token_ids, *task.forced]])
        picture = {"pixel_values": torch.from_numpy(np.load(question.patches)), "image_grid_thw": [list(question.grid)]}
        picture["image_grid_thw"] = torch.tensor(picture["image_grid_thw"])
        found = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), **picture)
        rows: NDArray[np.float32] = found.logits[0, len(question.token_ids) - 1 :].float().numpy()
        return rows


def _clock() -> Any:
    """Make a streamer that keeps when the first token came."""
    import openvino_genai

    class Clock(openvino_genai.StreamerBase):
        def __init__(self) -> None:
            super().__init__()
            self.first = 0.0

        def write(self, token: object) -> Any:
            self.first = self.first or time.perf_counter()
            return openvino_genai.StreamingStatus.RUNNING

        def end(self) -> None:
            pass

    return Clock()
