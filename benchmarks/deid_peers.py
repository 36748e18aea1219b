"""Other finders of PHI, for ``deidentify.py``: as their users set them up, without a download.

A peer is ``find(text) -> spans``. Presidio has its own recognisers by pattern and, where it is
given one, a spaCy model trained on the same notes as ours; Philter (philter-lite) its published
filters, with a stub for the part-of-speech tagger that it would download (words of digits are
numbers, nothing else is known); the plain CRF is the usual recipe of sklearn-crfsuite: words,
cases and ends of words in a window.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from medbert.schema import Span
from medbert.text.detectors.thresholds import OUTSIDE, tag
from medbert.text.notes import Note
from medbert.text.tokens import lines, tokens

Find = Callable[[str], list[Span]]
_LABELS = {  # of Presidio
    "PERSON": "NAME",
    "DATE_TIME": "DATE",
    "LOCATION": "LOCATION",
    "PHONE_NUMBER": "CONTACT",
    "EMAIL_ADDRESS": "CONTACT",
    "URL": "CONTACT",
    "IP_ADDRESS": "CONTACT",
}


def plain_crf(notes: Sequence[Note], *, max_iterations: int) -> Find:
    import pycrfsuite

    trainer = pycrfsuite.Trainer("lbfgs", verbose=False)
    trainer.set_params({"c1": 0.1, "c2": 0.1, "max_iterations": max_iterations})
    for note in notes:
        words, rows = _plain(note.text)
        trainer.append(rows, tag(words, note.spans or ()))
    tagger = pycrfsuite.Tagger()
    with TemporaryDirectory() as folder:
        trainer.train(str(path := Path(folder) / "plain"))
        model = path.read_bytes()
    tagger.open_inmemory(model)

    def find(text: str) -> list[Span]:
        assert model, "the tagger reads in these bytes: they have to stay"
        words, rows = _plain(text)
        found: list[Span] = []
        inside = ""
        for (start, end), name in zip(words, tagger.tag(rows), strict=True):
            if name[0] == "I" and found and inside == name[2:]:
                found[-1] = found[-1]._replace(end=end)
            elif name != OUTSIDE:
                found.append(Span(start, end, name[2:], 1.0))
            inside = name[2:]
        return found

    return find


def _plain(text: str) -> tuple[list[tuple[int, int]], list[list[str]]]:
    words = tokens(text)
    first = {start for start, _ in lines(text)}
    of_word = []
    for start, end in words:
        form = text[start:end]
        shape = re.sub(r"\d", "0", re.sub(r"[^\W\d_]", "x", re.sub(r"[A-ZÆØÅÄÖÜÑ]", "X", form)))
        case = f"{form.isupper()}{form.istitle()}{form.isdigit()}"
        of_word.append((form.lower(), case, shape[:8]))
    rows = []
    for i, (low, _, shape) in enumerate(of_word):
        row = ["bias", f"e3={low[-3:]}", f"e2={low[-2:]}", f"p3={low[:3]}", f"shape={shape}"]
        row += ["first"] * (words[i][0] in first)
        for d in (-2, -1, 0, 1, 2):
            near = of_word[i + d] if 0 <= i + d < len(words) else ("<>", "", "")
            row += [f"{d}w={near[0]}", f"{d}c={near[1]}"]
        rows.append(row)
    return words, rows


def presidio(language: str, *, trained: Any = None) -> Find:
    """``trained``: a spaCy pipeline with an ``ner``; without it, its recognisers by pattern."""
    import spacy
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import NerModelConfiguration, SpacyNlpEngine

    pipeline = trained or spacy.blank(language)
    own = {label: label for label in pipeline.get_pipe("ner").labels} if trained else {}
    known = NerModelConfiguration(
        model_to_presidio_entity_mapping=own or {"PER": "PERSON"}, labels_to_ignore=set()
    )
    engine = SpacyNlpEngine(
        models=[{"lang_code": language, "model_name": "none"}], ner_model_configuration=known
    )
    engine.nlp = {language: pipeline}
    registry = RecognizerRegistry(supported_languages=[language])
    registry.load_predefined_recognizers(languages=[language], nlp_engine=engine)
    if trained:
        from presidio_analyzer.predefined_recognizers import SpacyRecognizer

        registry.add_recognizer(
            SpacyRecognizer(supported_language=language, supported_entities=list(own))
        )
    analyser = AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=[language])

    def find(text: str) -> list[Span]:
        found = analyser.analyze(text, language=language)
        return [
            Span(r.start, r.end, _LABELS.get(r.entity_type, r.entity_type), r.score) for r in found
        ]

    return find


def spacy_ner(notes: Sequence[Note], *, language: str, epochs: int, seed: int = 0) -> Any:
    """spaCy's own tagger (hash embeddings, CNN), from scratch on the same notes, line by line."""
    import spacy
    from spacy.training import Example
    from spacy.util import minibatch

    spacy.util.fix_random_seed(seed)
    pipeline = spacy.blank(language)
    ner = pipeline.add_pipe("ner")
    examples = []
    for note in notes:
        doc = pipeline.make_doc(note.text)
        spans = sorted(note.spans or ())
        apart = [b for a, b in pairwise([Span(0, 0, "", 0.0), *spans]) if b.start >= a.end]
        marked = [doc.char_span(*span[:2], span.label, alignment_mode="expand") for span in apart]
        doc.ents = spacy.util.filter_spans(
            [_trimmed(span) for span in marked if span and span.text.strip()]
        )
        for span in doc.ents:
            ner.add_label(span.label_)
        examples += _by_line(Example, doc)
    optimizer = pipeline.initialize(lambda: examples[:200])
    shuffled = random.Random(seed)
    for _ in range(epochs):
        shuffled.shuffle(examples)
        for batch in minibatch(examples, 64):
            pipeline.update(batch, sgd=optimizer, drop=0.2)
    return pipeline


def _trimmed(span: Any) -> Any:
    """Without white space at its ends, which spaCy's tagger cannot learn."""
    words = [token.i for token in span if not token.is_space]
    return type(span)(span.doc, words[0], words[-1] + 1, label=span.label)


def _by_line(example: Any, doc: Any) -> list[Any]:
    """Long notes train slowly; lines do as well."""
    ends = [t.i + 1 for t in doc if "\n" in t.text] + [len(doc)]
    inside = {i for span in doc.ents for i in range(span.start + 1, span.end)}
    cuts = [0, *sorted({end for end in ends if end not in inside})]
    parts = [doc[a:b].as_doc() for a, b in pairwise(cuts) if b > a]
    return [
        example(
            type(part)(part.vocab, [t.text for t in part], [bool(t.whitespace_) for t in part]),
            part,
        )
        for part in parts
    ]


def philter() -> Find:
    import philter_lite
    from philter_lite import philter as module

    module.nltk.pos_tag = lambda words: [(w, "CD" if w.isdigit() else "NN") for w in words]
    place = Path(philter_lite.__file__).parent / "configs" / "philter_delta.toml"
    filters = philter_lite.load_filters(str(place))

    def find(text: str) -> list[Span]:
        kept, _, _ = philter_lite.detect_phi(text, filters)
        hidden = kept.get_complement(text)
        marks = [m.span() for m in re.finditer(r"\w+", text)]
        spans = []
        for start, end in hidden.items() if isinstance(hidden, dict) else hidden:
            spans += [Span(a, b, "ID", 1.0) for a, b in marks if start < b and a < end]
        return spans

    return find
