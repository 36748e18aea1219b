"""``medbert adapt``: the pretraining of a text BERT goes on over a corpus of notes."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import DataLoader

from medbert.commands.notes.adapted import judgement, sha256_of, write_report
from medbert.commands.notes.numbers import Numbers, numbers
from medbert.commands.notes.parts import withheld
from medbert.commands.output.artefacts import artefact, first_process, read_json, write_json
from medbert.commands.pretrain import deadline_of
from medbert.model.together import divisor
from medbert.schema import HELD_OUT, TRAIN, TUNING, InputError
from medbert.text.corpus.documents import Corpus, admitted
from medbert.text.corpus.plain import PlainText, open_corpus
from medbert.text.encoders.masked_lm import Losses, MaskedText, TextEncoder, load, masked_losses
from medbert.text.encoders.masks import Words
from medbert.text.encoders.pieces import Frame
from medbert.text.encoders.rows import InOrder, Rows, RowSampler, loader, source
from medbert.train.diagnostics import EpochLine
from medbert.train.fit import fit
from medbert.train.module import TrainingModule
from medbert.train.score import place

log = logging.getLogger(__name__)

_FREE = ("checkpoint_minutes", "time_limit", "workers")  # do not change what is learned
_GENERAL = "general"
_BEFORE = "before.json"
_UNTIL_LOOKS = 4  # steps between looks, below which there is one look an epoch


@withheld
def adapt(
    *,
    corpus: str,
    gate_override: str | None,
    base: str | None,
    tokenizer: str | None,
    general: str | None,
    replay: float,
    objective: Words,
    optimizer: Callable[..., Any],
    trainer: Callable[..., Any],
    length: int,
    batch_rows: int,
    steps: int | None,
    looks: int,
    judged: int,
    workers: int,
    patience: int,
    checkpoint_minutes: float,
    time_limit: str | int | None,
    seed: int,
    out: str,
    overwrite: bool,
    settings: dict[str, Any],
    architecture: Callable[..., TextEncoder] | None = None,
) -> Path:
    """Writes ``out``, a Hugging Face folder with a model card and metrics.json, and returns it.

    A corpus whose gate was not passed is refused. Held-out documents are read to be judged, before
    and after, and choose nothing. A killed run is taken up as one of ``medbert pretrain`` is.
    """
    writes, deadline = first_process(), deadline_of(time_limit)
    notes, gate = open_corpus(corpus), admitted(corpus, override=gate_override)
    other = None if general is None else open_corpus(general)
    if isinstance(other, Corpus):  # of notes: it has its gate too
        admitted(other.folder, override=gate_override)
    of = {"gate": gate, "corpus_sha256": notes.sha256, "base_sha256": base and sha256_of(base)}
    of |= {} if other is None else {"general_sha256": other.sha256}
    encoder = _start(base, tokenizer, architecture, seed, objective.next_sentence, length)
    kept = artefact(out, overwrite=overwrite, settings=settings, free=_FREE, writes=writes)
    with kept as folder:
        plan = _Plan(encoder, objective, length, batch_rows, workers, seed)
        found = _numbers(notes, other, plan, folder / "tokens", judged, replay > 0, writes)
        if base is None:
            encoder.start_at(found[TRAIN].tokens)
        before = _before(plan, found, folder) if writes else {}
        made, train = _training(plan, found, optimizer, settings["trainer"], steps, replay)
        metrics = fit(
            made,
            train=train,
            tuning=plan.tuning(found[TUNING], objective, shared=True),
            trainer=partial(trainer, **_looks(train, settings["trainer"], looks)),
            folder=folder,
            patience=patience,
            checkpoint_minutes=checkpoint_minutes,
            deadline=deadline,
            monitor="tuning/loss",
            mode="min",
            line=_Looks(unit="rows"),
        )
        if writes:
            _finish(folder, plan, found, before, metrics=metrics, of=of, settings=settings)
            log.info("made %s; next: AutoModelForMaskedLM.from_pretrained(%r)", out, out)
    return Path(out)


def _start(
    base: str | None,
    tokenizer: str | None,
    architecture: Callable[..., TextEncoder] | None,
    seed: int,
    next_sentence: bool,
    length: int,
) -> TextEncoder:
    if base is not None:
        if tokenizer is not None or architecture is not None:
            raise InputError("base= has its own tokenizer and architecture: name it, or those")
        encoder = load(base, next_sentence=next_sentence)
    elif tokenizer is None or architecture is None:
        raise InputError("base=null needs tokenizer= (see medbert tokenizer train) architecture=")
    else:
        encoder = architecture(tokenizer, seed=seed, next_sentence=next_sentence)
    if length > encoder.length:
        raise InputError(f"length={length}: the model reads at most {encoder.length} tokens")
    return encoder


class _Plan(NamedTuple):
    """How documents become batches."""

    encoder: TextEncoder
    objective: Words
    length: int
    batch_rows: int
    workers: int
    seed: int

    def rows(self, parts: list[Numbers], masking: Words, **shares: float) -> Rows:
        frame = Frame.of(self.encoder.tokenizer)
        sources = [
            source(
                part.tokens,
                frame=frame,
                length=self.length,
                pairs=masking.next_sentence,
                packed=self.encoder.packs,
                seed=self.seed,
            )
            for part in parts
        ]
        shown = self.encoder.replacement(**shares)
        return Rows(sources, frame=frame, masking=masking, replacement=shown, seed=self.seed)

    def tuning(
        self, part: Numbers, masking: Words, *, shared: bool = False, **shares: float
    ) -> DataLoader:
        data = self.rows([part], masking, **shares)
        return loader(data, InOrder(len(data), rows=self.batch_rows, shared=shared))

    def judge(self, found: dict[str, Numbers]) -> dict[str, Losses]:
        """15% of the tokens, all shown as masks: the same tokens for every model of a tokenizer."""
        plain = Words(rate=0.15)
        self.encoder.to(place())
        return {
            name: masked_losses(
                self.encoder,
                self.tuning(part, plain, masked=1.0, other=0.0),
                texts=len(part.who_N),
            )
            for name, part in found.items()
            if name not in (TRAIN, _GENERAL)
        }


def _numbers(
    notes: Corpus | PlainText,
    other: Corpus | PlainText | None,
    plan: _Plan,
    folder: Path,
    judged: int,
    replays: bool,
    writes: bool,
) -> dict[str, Numbers]:
    """By name: train, tuning, held_out, general (repeated), "general text" (judged)."""
    wanted: dict[str, tuple[Corpus | PlainText, str, int | None]] = {
        TRAIN: (notes, TRAIN, None),
        TUNING: (notes, TUNING, judged),
        HELD_OUT: (notes, HELD_OUT, judged),
    }
    if other is not None:
        wanted["general text"] = (other, HELD_OUT, judged)
    if other is not None and replays:
        wanted[_GENERAL] = (other, TRAIN, None)
    found = {
        name: numbers(
            corpus,
            folder / name,
            split=split,
            most=most,
            tokenizer=plan.encoder.tokenizer,
            sentences=plan.objective.next_sentence,
            writes=writes,
        )
        for name, (corpus, split, most) in wanted.items()
    }
    for name in (TRAIN, TUNING):
        if not int(found[name].tokens.offsets_N1[-1]):
            raise InputError(f"corpus: no documents in its {name} split")
    return found


def _training(
    plan: _Plan,
    found: dict[str, Numbers],
    optimizer: Callable[..., Any],
    trainer: dict[str, Any],
    steps: int | None,
    replay: float,
) -> tuple[TrainingModule, DataLoader]:
    parts = [found[name] for name in (TRAIN, _GENERAL) if name in found]
    data = plan.rows(parts, plan.objective)
    accumulate = trainer.get("accumulate_grad_batches") or 1
    epochs = trainer.get("max_epochs") or 1
    if steps is not None and epochs != 1:
        raise InputError("steps= is the whole training: leave trainer.max_epochs at 1")
    sampler = RowSampler(
        [of.rows for of in data.sources],
        rows=plan.batch_rows,
        batches=None if steps is None else steps * accumulate,
        replay=replay,
        epochs=epochs,
        multiple=accumulate,
        seed=plan.seed,
    )
    asks = MaskedText(divisor=divisor, next_sentence=plan.objective.next_sentence)
    module = TrainingModule(
        encoder=plan.encoder, objective=asks, optimizer=optimizer, seed=plan.seed
    )
    total = sampler.batches * sampler.epochs // accumulate
    text = "%s steps, %s rows of at most %d tokens in each; %s rows of the corpus"
    rows = plan.batch_rows * accumulate
    log.info(text, f"{total:,}", f"{rows:,}", plan.length, f"{data.sources[0].rows:,}")
    return module, loader(data, sampler, workers=plan.workers)


def _looks(train: DataLoader, trainer: dict[str, Any], looks: int) -> dict[str, Any]:
    """When tuning is looked at: the batches between are a whole part of an epoch, and of steps."""
    accumulate = trainer.get("accumulate_grad_batches") or 1
    steps = len(train) // accumulate
    most = max(1, min(looks, steps // _UNTIL_LOOKS))
    parts = next(n for n in range(most, 0, -1) if steps % n == 0)
    return {"val_check_interval": steps // parts * accumulate}


def _before(plan: _Plan, found: dict[str, Numbers], folder: Path) -> dict[str, Losses]:
    """Of the base; kept for a run that is taken up."""
    file = folder / _BEFORE
    if not file.is_file():
        told = plan.judge(found).items()
        write_json(file, {name: [loss.tolist() for loss in losses] for name, losses in told})
    return {name: Losses.read(*losses) for name, losses in read_json(file).items()}


def _finish(
    folder: Path,
    plan: _Plan,
    found: dict[str, Numbers],
    before: dict[str, Losses],
    *,
    metrics: dict[str, float],
    of: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    """The result; no text is left in the folder."""
    after = plan.judge(found)
    judgements = {
        name: judgement(before[name], after[name], found[name].who_N, seed=plan.seed)
        for name in before
        if len(found[name].who_N)
    }
    plan.encoder.save(folder)
    verdict = write_report(folder, settings, metrics=metrics, of=of, judgements=judgements)
    log.info("%s", "\n".join(verdict))
    for part in ("checkpoints", "tokens"):
        shutil.rmtree(folder / part)
    (folder / _BEFORE).unlink()


class _Looks(EpochLine):
    """A line for each look at tuning, too."""

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        loss = trainer.callback_metrics.get("tuning/loss")
        if trainer.state.fn == "fit" and loss is not None and trainer.is_global_zero:
            log.info("step %s: tuning loss %.3f", f"{trainer.global_step:,}", float(loss))
