"""From the answers of a benchmark's trainings to its study: the statistics, part by part."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medbert.commands.study.arms import LEAST_STEPS, Arm, BaselineArm, Trial
from medbert.commands.study.judging import groups, oracle
from medbert.commands.study.reporting import PRETRAINED, UNTRAINED
from medbert.commands.study.table_one import table_one
from medbert.commands.study.trainings import Answer, best_of_families
from medbert.commands.study.trials import EXTERNAL, LEAST_TUNING, Asked
from medbert.evaluate.baselines import LogisticBaseline
from medbert.evaluate.comparisons import SeedSpread, over_seeds
from medbert.evaluate.efficiency import efficiency, score
from medbert.evaluate.intervals import Results, summarise
from medbert.evaluate.leaks.findings import Finding
from medbert.evaluate.reports.study import Point, Study, Sweep, analyse
from medbert.schema import HELD_OUT, TRAIN, TUNING

Answers = Mapping[str, Mapping[str, Answer]]  # by the name of the trial, and of the arm

HEADS = (
    "Of what was made of one encoder the line shows the first, in the order of the settings, that "
    "the best on tuning did not beat beyond chance (95%); gradients took "
    f"{LEAST_STEPS} steps an epoch or more, in smaller batches where labels were few."
)
LABELS = (
    "Smaller numbers of labels came with tuning subsets in the same proportion, of at least "
    f"{LEAST_TUNING} subjects with and {LEAST_TUNING} without the outcome, as far as there are."
)
GAPS = (
    "Every gap has rows of its own (free of the outcome and alive at its end), so AUROCs at two "
    "gaps are not of the same subjects."
)
ERA = (
    "Out of time holds for what was trained on labels: the encoders were pretrained on whole "
    "records of the training subjects, those after the date too."
)
QUERY = (
    "No labels means no labels of this task: the encoder that is asked has read the codes of the "
    "outcome in the records of all training subjects, labelled or not, in the cohort or not."
)
SEEDS = "Seeds are those of the training on labels: no encoder was pretrained again."
FACTS = {
    "missing data": "a code that was not recorded counts as absent; unknown age or sex: the "
    "median of train and an indicator (logistic regression), left missing (trees), not given "
    "(encoders)",
    "encoding": "sequences of codes (encoders); counts of codes, age and sex (baselines)",
    "models": "heads on encoders, logistic regression and boosted trees; settings chosen by AUROC "
    "on tuning, judged once on held_out",
    "class imbalance": "no resampling, no weights",
    "updating": "answers beside counts are recalibrated on tuning; nothing else",
    "sample size": "all eligible rows",
}


@dataclass(frozen=True)
class Judge:
    """How answers are judged; the family of the first arm is the reference."""

    arms: Sequence[Arm]
    task: Mapping[str, Any]
    seed: int
    n: int
    min_count: int

    @property
    def reference(self) -> str:
        return self.arms[0].family

    @property
    def core(self) -> list[Arm]:
        """Reference, untrained, baselines: the arms of sweeps and of other seeds."""
        first = (self.reference, UNTRAINED)
        return [arm for arm in self.arms if arm.family in first or isinstance(arm, BaselineArm)]

    def study(self, asked: Asked, answers: Answers, found: Sequence[Finding]) -> Study:
        whole, mine = asked.whole, answers[asked.whole.name]
        frame, places = whole.judged[HELD_OUT]
        splits = {TRAIN: whole.train, TUNING: whole.tuning, HELD_OUT: places}
        given = {split: frame.at(where) for split, where in splits.items()}
        best = best_of_families(self.arms, mine)
        baselines = [arm for arm in self.arms if isinstance(arm, BaselineArm)]
        study = analyse(
            self._results(whole, mine, every=True),
            frame.subject_ids[places],
            groups=groups(frame.records, given[HELD_OUT], frame.counts.at(places)),
            over=next((a.name for a in baselines if type(a.baseline) is LogisticBaseline), None),
            seed=self.seed,
            n=self.n,
            min_count=self.min_count,
        )
        elsewhere = {name: self._results(t, answers[name]) for name, t in asked.later.items()}
        if EXTERNAL in whole.judged:
            other = whole.judged[EXTERNAL][0].records.folder.name
            elsewhere[f"{EXTERNAL}: {other}"] = self._results(whole, mine, where=EXTERNAL)
        return dataclasses.replace(
            study,
            **self._curve(asked, answers),
            sweeps=self._sweeps(asked, answers),
            elsewhere=elsewhere,
            seeds=self._seeds(asked, answers) if asked.again else {},
            table_one=table_one(frame.records, given, min_count=self.min_count),
            findings=found,
            notes=[
                HEADS,
                *([LABELS] if asked.curve else []),
                *([GAPS] if asked.gaps else []),
                *([ERA] if asked.later else []),
                *([SEEDS] if asked.again else []),
                *([QUERY] if any("query" in name for name in mine) else []),
            ],
            facts=FACTS,
            timing=_timing(answers),
            settings={
                "reference": best[self.reference].name,
                "best head on tuning": {f: a.name for f, a in best.items() if f != a.name},
                "chosen": {k: a.chosen.get("chosen", a.chosen) for k, a in mine.items()},
            },
        )

    def _models(
        self, answers: Mapping[str, Answer], where: str = HELD_OUT, *, every: bool = False
    ) -> dict[str, np.ndarray]:
        """Probabilities of the best arm of each family; with ``every``, then of the other arms."""
        best = best_of_families(self.arms, answers)
        found = {family: answers[arm.name].probabilities[where] for family, arm in best.items()}
        others = [arm for arm in self.arms if every and arm not in best.values()]
        return found | {arm.name: answers[arm.name].probabilities[where] for arm in others}

    def _results(
        self,
        trial: Trial,
        answers: Mapping[str, Answer],
        where: str = HELD_OUT,
        *,
        gap: float | None = None,
        every: bool = False,
    ) -> Results:
        frame, places = trial.judged[where]
        models, task = self._models(answers, where, every=every), self.task
        if gap is not None:
            task = {**task, "outcome": {**task["outcome"], "gap_days": gap}}
        return summarise(
            frame.rows.labels[places],
            models,
            frame.subject_ids[places],
            reference=self.reference,
            untrained=UNTRAINED if UNTRAINED in models and self.reference == PRETRAINED else None,
            oracle=oracle(frame.records, task, frame.at(places)),
            seed=self.seed,
            n_bootstrap=self.n,
        )

    def _curve(self, asked: Asked, answers: Answers) -> dict[str, Any]:
        if not asked.curve:
            return {}
        frame, places = asked.whole.judged[HELD_OUT]
        total = len(np.unique(frame.subject_ids[asked.whole.train]))
        trials = {**asked.curve, (total, 0): asked.whole}
        predictions = {
            (family, *size): values
            for size, trial in trials.items()
            for family, values in self._models(answers[trial.name]).items()
        }
        labels, ids = frame.rows.labels[places], frame.subject_ids[places]
        table, samples = score(labels, predictions, ids, seed=self.seed, n=self.n)
        curves = efficiency(table, samples=samples, seed=self.seed, n=self.n)
        families = dict.fromkeys(arm.family for arm in self.core)
        others = [family for family in families if family != self.reference]
        sizes = sorted({size for size, _ in asked.curve})
        return {
            "efficiency": curves,
            "leads": tuple(
                curves.lead(self.reference, over=family)
                for family in curves.curves
                if family != self.reference
            ),
            "multiples": tuple(
                curves.multiple(self.reference, over=other, at=size)
                for other in others
                for size in sizes
            ),
            "crossings": tuple(curves.crossing(self.reference, over=other) for other in others),
        }

    def _sweeps(self, asked: Asked, answers: Answers) -> tuple[Sweep, ...]:
        def points(trials: Mapping[float | None, Trial], *, gap: bool) -> tuple[Point, ...]:
            return tuple(
                Point(days, self._results(trial, answers[trial.name], gap=days if gap else None))
                for days, trial in trials.items()
            )

        found = (
            Sweep("prediction gap", "days", points(asked.gaps, gap=True)),
            Sweep("observation window", "days", points(asked.windows, gap=False)),
        )
        return tuple(sweep for sweep in found if sweep.points)

    def _seeds(self, asked: Asked, answers: Answers) -> dict[str, SeedSpread]:
        """Of the reference, the untrained encoder and the baseline that is best on tuning."""
        trained = [self._models(answers[trial.name]) for trial in (asked.whole, *asked.again)]
        frame, places = asked.whole.judged[HELD_OUT]
        mine = answers[asked.whole.name]
        baselines = [arm.name for arm in self.arms if isinstance(arm, BaselineArm)]
        best = max(baselines, key=lambda name: mine[name].auroc, default=self.reference)
        others = {"untrained": UNTRAINED, "best baseline": best}
        others = {k: f for k, f in others.items() if f in trained[0] and f != self.reference}

        def spread(family: str, minus: str = "") -> SeedSpread:
            return over_seeds(
                frame.rows.labels[places],
                [models[family] for models in trained],
                frame.subject_ids[places],
                minus=[models[minus] for models in trained if minus],
                seed=self.seed,
                n=self.n,
            )

        return {family: spread(family) for family in (self.reference, *others.values())} | {
            f"reference minus {name}": spread(self.reference, family)
            for name, family in others.items()
        }


def _timing(answers: Answers) -> dict[str, float]:
    """Seconds of training, by arm on all labels, and of everything."""
    first, *_ = answers
    # a set: what one trial took over from another has the very same seconds, and was trained once
    every = math.fsum({a.seconds for some in answers.values() for a in some.values()})
    return {
        **{f"{first}: {name}": answer.seconds for name, answer in answers[first].items()},
        "all trainings": every,
    }
