"""Compile forms for a bundle's tokenizer, within bounds on time and memory: what is refused is refused before any work."""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from echovlm_edge.runtime.contracts.errors import UnusableForm
from echovlm_edge.runtime.contracts.text_form import ChoiceForm, PatternForm, SchemaForm, TextForm
from echovlm_edge.runtime.engine.forms.form_state import FormState, Mask
from echovlm_edge.runtime.engine.forms.form_trial import TOO_COMPLEX, is_bounded
from echovlm_edge.runtime.engine.forms.grammar import grammar_of
from echovlm_edge.runtime.engine.forms.mask_threads import MaskThreads
from echovlm_edge.runtime.engine.forms.schema_faults import explain, pattern_fault
from echovlm_edge.runtime.engine.forms.vocabulary import Vocabulary, read_vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MOST_CHOICE_TOKENS = 32
CACHED = 8  # forms; one takes some hundred kilobytes, and at most what LIMITS allow
MOST_BYTES = 40 << 20  # of one form, and of each text that is held to it
# What one form may take, in llguidance's own units: some 30 ms for a mask, and 40 MB. More than a report's form needs. What they do
# not bound, a trial does.
LIMITS = {
    "initial_lexer_fuel": 100_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 50_000,
    "max_lexer_states": 10_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
LONGEST_REASON = 400


@dataclass(frozen=True)
class CompiledForm:
    """A form for one vocabulary, which any number of texts can have.

    Attributes:
        matcher: before the first token; texts have copies.
        first: which tokens may be the first.
        choices: each choice's tokens; none for other forms.
        stops: what ends a text.
        threads: compute masks.
    """

    matcher: LLMatcher = field(repr=False)
    first: Mask = field(repr=False)
    choices: tuple[tuple[int, ...], ...] = field(repr=False)
    stops: Collection[int] = field(repr=False)
    threads: MaskThreads = field(repr=False)

    def begin(self) -> FormState:
        """Return the state of a text that begins."""
        return FormState(self.matcher.deep_copy, self.first, self.stops, self.threads)


class FormCompiler:
    """Compiles and caches forms. Any thread may call it; the vocabulary is read with the first form, or before."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        stop_token_ids: Collection[int],
        bounded: Callable[[str, dict[str, Any]], bool] = is_bounded,
    ) -> None:
        """Compile for a byte-level BPE tokenizer whose ids are padded to `vocab_size`.

        Args:
            tokenizer: of the model.
            vocab_size: of the model.
            stop_token_ids: what ends a text.
            bounded: tells whether a client's grammar may be compiled here, see `form_trial`.
        """
        self._bounded, self._compiling = bounded, threading.Lock()
        self._tokenizer, self._vocab_size, self._stops = tokenizer, vocab_size, frozenset(stop_token_ids)
        self._changed, self._threads = threading.Lock(), MaskThreads()
        self._vocabulary: Vocabulary | None = None
        self._cached: OrderedDict[TextForm, CompiledForm] = OrderedDict()

    def read_vocabulary(self) -> Vocabulary:
        """Read the vocabulary, unless that is done: see `vocabulary.read_vocabulary`."""
        if self._vocabulary is None:
            self._vocabulary = read_vocabulary(self._tokenizer, self._vocab_size, self._stops)
        return self._vocabulary

    def compile(self, form: TextForm) -> CompiledForm:
        """Return a form's compiled one.

        Raises:
            UnusableForm: no text has the form, or it is not supported or too complex; the sentence says what of it.
        """
        if known := self._known(form):
            return known
        with self._compiling:  # one at a time: a client that sends many new forms has one processor's share
            if known := self._known(
                form
            ):  # another call of the same form, as the choices of one request, compiled it meanwhile
                return known
            compiled = self._compile(form)
            with self._changed:
                self._cached[form] = compiled
                while len(self._cached) > CACHED:
                    self._cached.popitem(last=False)
            return compiled

    def _known(self, form: TextForm) -> CompiledForm | None:
        with self._changed:
            if form in self._cached:
                self._cached.move_to_end(form)
            return self._cached.get(form)

    def close(self) -> None:
        """End the threads that compute masks."""
        self._threads.close()

    def _compile(self, form: TextForm) -> CompiledForm:
        from llguidance import LLMatcher, LLParserLimits

        try:
            grammar = grammar_of(form)
        except ValueError as error:
            raise _unusable(form, str(error)) from None
        if isinstance(form, SchemaForm | PatternForm) and not self._bounded(grammar, LIMITS):
            raise UnusableForm(f"The {_name(form)} cannot be used: {TOO_COMPLEX}.")
        tokens = self.read_vocabulary().tokens
        # Both take no Python lock, so that other calls and the decoder's thread run meanwhile.
        matcher = LLMatcher(tokens, grammar, log_level=0, limits=LLParserLimits(**LIMITS))  # type: ignore[arg-type]
        mask = np.zeros(-(-self._vocab_size // 32), np.uint32)
        if not matcher.is_error():
            matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if matcher.is_error():
            raise _unusable(form, matcher.get_error())
        if not mask.any():
            raise UnusableForm(f"No text matches the {_name(form)}: change it.")
        choices = tuple(_choice_tokens(tokens, text) for text in form.texts) if isinstance(form, ChoiceForm) else ()
        return CompiledForm(matcher, mask, choices, self._stops, self._threads)


def _choice_tokens(vocabulary: LLTokenizer, text: str) -> tuple[int, ...]:
    tokens = tuple(vocabulary.tokenize_str(text))
    if len(tokens) > MOST_CHOICE_TOKENS:
        raise UnusableForm(
            f"The choice that begins with {text[:20]!r} has {len(tokens)} tokens, more than {MOST_CHOICE_TOKENS}: "
            "send a shorter one."
        )
    return tokens


def _name(form: TextForm) -> str:
    return "JSON schema" if isinstance(form, SchemaForm) else "regular expression"


def _unusable(form: TextForm, said: str) -> UnusableForm:
    """Make the error for a form that llguidance refuses."""
    lines = [line.strip() for line in said.replace("<non-verbose/>", "").splitlines()]
    said = " ".join(line for line in lines if line and set(line) != {"^"}).rstrip(". ")
    reason = explain(json.loads(form.schema), said) if isinstance(form, SchemaForm) else None
    if reason is None and re.search(r"limit|too (?:many|large)", said):
        reason = "it is too complex, so send a simpler one"
    elif reason is None:
        reason = pattern_fault(said) if isinstance(form, PatternForm) else f"the library that keeps to it says: {said}"
    return UnusableForm(f"The {_name(form)} cannot be used: {reason[:LONGEST_REASON]}.")
