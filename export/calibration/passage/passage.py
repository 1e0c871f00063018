"""Take all calibration tokens through the model once, a layer at a time, showing every linear layer to a visitor; resumes after a kill."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from echovlm_edge.export.bundle.journal import Journal
from echovlm_edge.export.calibration.passage.decoder_pass import DecoderPass, Tokens
from echovlm_edge.export.calibration.passage.linears import Visitor
from echovlm_edge.export.calibration.passage.parallel import Workers
from echovlm_edge.export.calibration.passage.rows import Rows
from echovlm_edge.export.calibration.passage.texts import Picture, Text
from echovlm_edge.export.calibration.passage.vision_pass import VisionPass
from echovlm_edge.export.model import weights
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.runtime.prompting.rotary import MultimodalRotary

# How much a prompt's tokens count, where answers follow: prompts are much alike, and what matters is what the model writes.
PROMPT_WEIGHT = 0.1


@dataclass(frozen=True)
class Passage:
    """The model on its texts, with a folder and an open journal for what is in between."""

    checkpoint: Checkpoint
    texts: Sequence[Text]
    folder: Path
    journal: Journal
    pool: Workers

    def run(self, visitor: Visitor, name: str) -> None:
        """Show every linear layer to the visitor; `name` tells this run's files from those of another run in the same folder."""
        decoder, layers = (
            DecoderPass(self.checkpoint, self.folder, self.pool, visitor),
            self.checkpoint.config.decoder.num_hidden_layers,
        )
        done, hidden = self._resume(name, layers, visitor)
        if hidden is None:
            hidden = self._embed(VisionPass(self.checkpoint, self.folder, self.pool, visitor), self._path(name, 0))
            self._record(hidden)
        tokens = self.tokens()
        for number in range(done, layers):
            following = decoder.layer(number, tokens, hidden, self._path(name, number + 1))
            self._record(following)
            hidden.remove()
            hidden = following
        decoder.head(tokens, hidden)
        hidden.close()  # it stays: a build that is killed later need not repeat this

    def tokens(self) -> Tokens:
        """Return where each text's tokens are, at which positions, and how much they count."""
        config = self.checkpoint.config.decoder
        rotary = MultimodalRotary(config.mrope_section, config.rope_theta)
        answered = any(text.answered for text in self.texts)
        spans, angles, counts = [], [], []
        end = 0
        for text in self.texts:
            spans.append(slice(end, end + len(text.token_ids)))
            end = spans[-1].stop
            one = rotary.angles(text.positions)
            angles.append((torch.from_numpy(one.cos)[None], torch.from_numpy(one.sin)[None]))
            count = torch.ones(len(text.token_ids))
            if answered:
                count[: text.prompt - 1] = PROMPT_WEIGHT  # the prompt's last token gives the answer's first
            counts.append(count)
        return Tokens(spans, angles, torch.cat(counts))

    def _embed(self, vision: VisionPass, output: Path) -> Rows:
        """Write the texts' embeddings, the pictures' in their places."""
        pictures: dict[str, Picture] = {picture.hash: picture for text in self.texts for picture in text.pictures}
        embeddings = vision.run(list(pictures.values()), self.folder / "pictures")
        places, end, merged = {}, 0, self.checkpoint.config.vision.spatial_merge_size**2
        for picture in pictures.values():
            places[picture.hash] = slice(end, end + len(picture.patches.values) // merged)
            end = places[picture.hash].stop
        hidden = Rows(output, sum(len(text.token_ids) for text in self.texts), embeddings.width)
        for text, span in zip(self.texts, self.tokens().spans, strict=True):
            rows = self._embed_tokens(text)
            rows[torch.from_numpy(text.image_rows)] = torch.cat(
                [embeddings.read(places[one.hash]) for one in text.pictures]
            )
            hidden.write(span, rows)
        embeddings.remove()
        return hidden

    def _embed_tokens(self, text: Text) -> torch.Tensor:
        ids, places = np.unique(text.token_ids, return_inverse=True)
        read = [weights.TOKEN_EMBEDDING.read(self.checkpoint, slice(one, one + 1)) for one in ids.tolist()]
        return torch.cat(read)[torch.from_numpy(places)]

    def _resume(self, name: str, layers: int, visitor: Visitor) -> tuple[int, Rows | None]:
        """Find the last hidden states that an earlier run has left: how many layers they have passed, and they."""
        count, width = sum(len(text.token_ids) for text in self.texts), self.checkpoint.config.decoder.hidden_size
        for number in range(layers, -1, -1):
            path = self._path(name, number)
            known = self.journal.known.get(path.name)
            intact = known is not None and path.is_file() and _hash(path) == known
            if intact and visitor.resume(self._names(number)):
                return number, Rows(path, count, width)
        return 0, None

    def _names(self, layers: int) -> Iterator[str]:
        """Yield the checkpoint tensors that are shown before the decoder's layer of this number."""
        config = self.checkpoint.config
        decoder = weights.decoder_weights(config)
        before = [weights.below(decoder, f"layers.{number}") for number in range(layers)]
        for sources in (weights.vision_encoder_weights(config), weights.projector_weights(config), *before):
            for weight in sources.values():
                yield from weight.tensors

    def _record(self, hidden: Rows) -> None:
        self.journal.record(hidden.path.name, _hash(hidden.path))

    def _path(self, name: str, layers: int) -> Path:
        return self.folder / f"{name}-{layers}"


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
