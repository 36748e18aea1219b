"""When codes come: what is asked, what it costs, and what is foretold."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medbert.model.hazards import NEW_CODES_A_DAY, SPECIALS, Hazards, TimeToEvent, foretell
from medbert.model.modern import ModernEncoder
from medbert.model.objectives import MaskedCode, combined
from medbert.schema import UNK, Batch

VOCABULARY, HIDDEN, EDGES = 14, 8, [0, 30, 200]
FACTS = {"vocabulary_size": VOCABULARY, "hidden": HIDDEN}
NAN, NOTHING, STATIC_ALONE = float("nan"), 1, 4
goal = partial(TimeToEvent, **FACTS, counts=range(VOCABULARY))


def encoder() -> Any:
    torch.manual_seed(0)
    sizes = {"layers": 1, "heads": 2, "feed_forward": 8, "dropout": 0.0, "attention_dropout": 0.0}
    made = ModernEncoder(**FACTS, **sizes, causal=True, edges=EDGES)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
        made.hazards.level_CP.sub_(5)
    return made


def foreteller(hazards: Hazards, codes: torch.nn.Embedding) -> Any:
    """An encoder whose hazards know its outputs alone."""
    alone = {"with_regression": lambda hidden_TD, batch, place_M: hidden_TD[place_M]}
    return SimpleNamespace(hazards=hazards, codes=codes, **alone)


def batch(*, seed: int = 0) -> Batch:
    """Static codes, then several a moment, some more than once; every third subject has no ages."""
    torch.manual_seed(seed)
    ages, visits = [], []
    for subject, size in enumerate([5, 0, 9, 1, 0, 7, 12, 3]):
        age = torch.randint(9_000, 9_400, (size,)).sort().values.float()
        age[1 : size // 2] = age[:1]
        when = torch.unique(age, return_inverse=True)[1] + 1
        static = torch.zeros(0 if subject == NOTHING else 2)
        ages.append(torch.cat([static * NAN, age * (NAN if subject % 3 == 2 else 1)]))
        visits.append(torch.cat([static.long(), when]))
    return Batch(
        tokens_T=torch.randint(UNK, VOCABULARY, (sum(map(len, ages)),)),
        visit_T=torch.cat(visits),
        age_T=torch.cat(ages),
        offsets_B1=torch.tensor([0, *map(len, ages)]).cumsum(0),
        rows_B=torch.arange(8) + 70,
        end_B=torch.tensor([9_300.0, 9_500.0, 3.0, 9_500.0, 9_500.0, 3.0, 9_350.0, 9_500.0]),
    )


def plainly(given: Batch) -> dict[int, tuple[float, dict[int, float]]]:
    """By place: days left, and days until each code; one subject and one token at a time."""
    found = {}
    for subject in range(8):
        start, stop = given.offsets_B1[subject : subject + 2].tolist()
        times, codes = given.age_T[start:stop].tolist(), given.tokens_T[start:stop].tolist()
        if subject % 3 == 2:
            times = [visit or NAN for visit in given.visit_T[start:stop].tolist()]
        known = [-math.inf if math.isnan(time) else time for time in times]
        last = max(known, default=NAN) if given.end_B is None else given.end_B[subject].item()
        for i, now in enumerate(times):
            if math.isnan(now) or times[i + 1 : i + 2] == [now] or last <= now:
                continue
            first = dict.fromkeys(range(SPECIALS, VOCABULARY), math.inf)
            for code, time in zip(codes, known, strict=True):
                if code in first:
                    first[code] = min(first[code], time)
            found[start + i] = last - now, {code: time - now for code, time in first.items()}
    return found


def cost(model: Any, hidden_D: torch.Tensor, left: float, waits: dict[int, float]) -> float:
    """Negative log-likelihood of one moment."""
    asked = model.hazards.pieces(model.hazards.norm(hidden_D)).view(len(EDGES), HIDDEN)
    total = 0.0
    for code, wait in waits.items():
        for piece, (begin, end) in enumerate(zip(EDGES, [*EDGES[1:], math.inf], strict=True)):
            level = model.hazards.level_CP[code, piece]
            log_hazard = (asked[piece] @ model.codes.weight[code] + level).item()
            total += math.exp(log_hazard) * max(min(wait, left, end) - begin, 0)
            total -= log_hazard if begin < wait <= end and wait <= left else 0
    return total


# --- what is asked ------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_what_follows_each_moment_is_that_of_a_plain_reading(seed: int, ends: bool) -> None:
    given = batch(seed=seed) if ends else batch(seed=seed)._replace(end_B=None)
    shown, future = goal().corrupt(given)
    wanted = plainly(given)
    assert shown is given and len(wanted) > 10
    assert future.place_M.tolist() == [*wanted]
    assert future.code_K.tolist() == [*range(SPECIALS, VOCABULARY)]
    assert future.left_M.tolist() == [left for left, _ in wanted.values()]
    assert future.wait_MK.tolist() == [[*waits.values()] for _, waits in wanted.values()]


def test_the_loss_is_that_of_explicit_loops_and_all_of_the_encoder_learns() -> None:
    model, given, term = encoder(), batch(), goal()
    hidden_TD = model(given)
    told = term.loss(model, hidden_TD, *term.corrupt(given))
    costs = [cost(model, hidden_TD[place], *rest) for place, rest in plainly(given).items()]
    assert told.loss.item() == pytest.approx(sum(costs) / len(costs), rel=1e-4)
    told.loss.backward()
    for name, weight in model.named_parameters():
        assert name == "sex.weight" or weight.grad.abs().sum() > 0, name
    assert not model.hazards.level_CP.grad[:SPECIALS].any()
    none = given._replace(end_B=torch.zeros(8))
    told = term.loss(model, model(none), *term.corrupt(none))
    told.loss.backward()  # a step of training goes on
    assert told.loss.item() == 0 and told.metrics == {}


def test_hazards_of_invented_lives_are_found_again() -> None:
    """One code comes at rate 0.02 a day for 40 days, then at 0.005; observation ends at any day."""
    torch.manual_seed(0)
    n, first, coming = 4_000, 5, 6
    early = torch.empty(n).exponential_(0.02)
    day = torch.where(early < 40, early, 40 + torch.empty(n).exponential_(0.005))
    end_B = torch.rand(n) * 300 + 1
    seen = day < end_B
    age_T = torch.stack([torch.zeros(n), day], 1)[torch.stack([seen | True, seen], 1)]
    given = Batch(
        tokens_T=torch.where(age_T == 0, first, coming),
        visit_T=torch.where(age_T == 0, 1, 2),
        age_T=age_T,
        offsets_B1=torch.tensor([0, *(1 + seen.long())]).cumsum(0),
        rows_B=torch.arange(n),
        end_B=end_B,
    )
    codes = torch.nn.Embedding.from_pretrained(torch.zeros(VOCABULARY, HIDDEN))
    model, term = foreteller(Hazards(**FACTS, edges=[0, 40]), codes), goal()
    term.start(model)
    level_CP = model.hazards.level_CP
    start_CP, future = level_CP.detach().clone(), term.corrupt(given)[1]
    optimizer = torch.optim.Adam([level_CP], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        term.loss(model, torch.zeros(len(age_T), HIDDEN), given, future).loss.backward()
        optimizer.step()
    assert level_CP[coming].exp().tolist() == pytest.approx([0.02, 0.005], rel=0.1)
    assert torch.equal(level_CP[first], start_CP[first])  # it had been there always
    assert (level_CP[7:] < start_CP[7:] - 1).all()  # they never come


def test_an_encoder_starts_with_the_frequencies_of_training() -> None:
    counts = torch.arange(VOCABULARY) ** 2
    masked = partial(MaskedCode, rate=0.3, static=False, seed=0)
    terms = {"time_to_event": TimeToEvent, "masked_code": masked}
    objective = combined(**FACTS, counts=counts, terms=terms, weights=dict.fromkeys(terms, 1.0))
    model = encoder()
    objective.start(model)
    rate_CP = model.hazards.level_CP.detach().exp()[SPECIALS:]
    share_C1 = (counts + 1)[SPECIALS:, None] / (counts + 1)[SPECIALS:].sum()
    torch.testing.assert_close(rate_CP, (NEW_CODES_A_DAY * share_C1).expand_as(rate_CP))
    assert {*terms} <= {*objective(model, batch()).metrics}


@torch.no_grad()
def test_codes_that_stand_for_the_vocabulary_cost_on_average_what_all_do() -> None:
    model, given = encoder(), batch()
    hidden_TD, some, every = model(given), goal(sampled=4), goal()
    torch.manual_seed(0)
    draws = [some.corrupt(given)[1] for _ in range(1_500)]
    told = torch.stack([some.loss(model, hidden_TD, given, draw).loss for draw in draws])
    wanted, error = (
        every.loss(model, hidden_TD, *every.corrupt(given)).loss,
        told.std() / 1_500**0.5,
    )
    assert error < 0.05 * wanted and abs(told.mean() - wanted) < 4 * error
    assert 3 < sum(len(draw.code_K) for draw in draws) / 1_500 < 5
    assert some.eval().loss(model, hidden_TD, *some.corrupt(given)).loss == wanted  # on tuning


def test_what_comes_later_does_not_say_whether_a_moment_is_asked() -> None:
    """A third of them, however many a subject has; fixed on tuning subjects."""
    given, term = batch(), goal(moments=1 / 3, sampled=4)
    torch.manual_seed(0)
    draws = [term.corrupt(given)[1].place_M for _ in range(1_500)]
    often_T = torch.cat(draws).bincount(minlength=len(given.tokens_T)) / 1_500
    every_M = goal().corrupt(given)[1].place_M
    torch.testing.assert_close(
        often_T[every_M], torch.full((len(every_M),), 1 / 3), atol=0.06, rtol=0
    )
    still = [term.eval().corrupt(given)[1] for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*still, strict=True))
    assert 0 < len(still[0].place_M) < len(every_M)


# --- what is foretold ---------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("since", [0.0, 12.0, 250.0])
@pytest.mark.parametrize(("gap", "window"), [(0, 10), (0, 365), (25, 300), (400, 1), (31.5, 90)])
def test_risk_is_one_minus_exp_of_the_integral(since: float, gap: float, window: float) -> None:
    model, hidden_BD, steps = encoder(), torch.randn(5, HIDDEN), 20_000
    every_C = torch.arange(VOCABULARY)
    log_MPK = model.hazards.logs(hidden_BD, model.codes.weight, every_C).double()
    hazard_PB = log_MPK[:, :, [5, 9]].exp().sum(2).T

    def passed(begin: float, length: float) -> torch.Tensor:
        day = since + begin + (torch.arange(steps) + 0.5) / steps * length
        return hazard_PB[torch.bucketize(day, torch.tensor(EDGES[1:]))].mean(0) * length

    wanted = torch.exp(-passed(0, gap)) * -torch.expm1(-passed(gap, window))
    risk = partial(model.hazards.risk, hidden_BD, codes_K=torch.tensor([5, 9]), gap=gap)
    ask = partial(risk, model.codes.weight, since_B=torch.full((5,), since))
    told = ask(window=window).double().sigmoid()
    torch.testing.assert_close(told, wanted, rtol=2e-3, atol=0)
    assert (ask(window=window * 1.1) > ask(window=window)).all()
    assert (ask(window=1e-3).sigmoid() < 1e-3).all() and ask(window=1e9).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("since", [0.0, 12.0])
@pytest.mark.parametrize(("gap", "window"), [(0, 25), (10, 300), (500, 90)])
def test_only_the_first_code_of_a_case_counts(since: float, gap: float, window: float) -> None:
    model, hidden_BD = encoder(), torch.randn(5, HIDDEN)
    firsts = ((0.0, 0.9), (20.0, 0.5), (400.0, 0.25))
    codes_K, since_B = torch.tensor([5, 9]), torch.full((5,), since)
    log_MPK = model.hazards.logs(hidden_BD, model.codes.weight[codes_K], codes_K)
    hazard_PB = log_MPK.exp().sum(2).T
    day = (torch.arange(60_000) + 0.5) / 100  # from now
    share = torch.tensor([share for _, share in firsts])
    share = share[torch.bucketize(day, torch.tensor([20.0, 400.0]), right=True)]
    daily = hazard_PB[torch.bucketize(day + since, torch.tensor(EDGES[1:]))] * share[:, None] / 100
    before, inside = daily[day < gap].sum(0), daily[(day > gap) & (day < gap + window)].sum(0)
    told = model.hazards.risk(
        *(hidden_BD, model.codes.weight, codes_K),
        **{"since_B": since_B, "gap": gap, "window": window, "firsts": firsts},
    )
    wanted = torch.exp(-before) * -torch.expm1(-inside)
    torch.testing.assert_close(told.sigmoid(), wanted, rtol=2e-3, atol=0)


@torch.no_grad()
def test_the_future_is_foretold_from_the_end_of_a_history() -> None:
    model, given = encoder(), batch()
    given = given._replace(end_B=given.end_B + 1_000)
    later = given._replace(end_B=given.end_B + 50)
    say = partial(foretell, model, tokens=torch.tensor([5, 6]), gap=0.0)
    no = [1 - say(when, window=w).sigmoid() for when, w in ((given, 50), (later, 70), (given, 120))]
    dated = torch.tensor([0, 2, 3, 5, 6, 7])  # for these, days pass without it
    torch.testing.assert_close((no[0] * no[1])[dated], no[2][dated], atol=1e-5, rtol=0)
    told = say(given, window=50)
    assert told.isfinite().all()
    for subject in (NOTHING, STATIC_ALONE):  # no last moment: asked as of now
        assert told[subject] == say(later, window=50)[subject]
        assert told[subject] == say(given._replace(end_B=None), window=50)[subject]


# --- days on which nothing comes ----------------------------------------------------------------


def test_moments_are_asked_between_them_and_the_next_one() -> None:
    given = batch()
    every, some = goal().corrupt(given)[1], goal(later=0.9, seed=1).eval().corrupt(given)[1]
    assert (every.since_M == 0).all()
    kept = torch.isin(every.place_M, some.place_M)  # none that would come at the end
    since_M = some.since_M
    dated_M = given.subject_T[some.place_M] % 3 != 2
    assert 0 < (since_M[dated_M] > 0).sum() < dated_M.sum() and not since_M[~dated_M].any()
    near = partial(torch.testing.assert_close, atol=2e-3, rtol=0)  # ages are float32 days
    near(some.left_M + since_M, every.left_M[kept])
    near(some.wait_MK + since_M[:, None], every.wait_MK[kept])
    assert ((some.wait_MK > 0) == (every.wait_MK[kept] > 0)).all()  # nothing came in between
    term = goal(later=0.6).eval()
    term.start(encoder())  # its hazards know no silence
    assert all(map(torch.equal, term.corrupt(given)[1], every))


def test_hazards_know_how_long_nothing_has_come() -> None:
    """Half of the subjects leave after their first code; the others have one within two years."""
    torch.manual_seed(0)
    n, first, coming = 3_000, 5, 6
    day = torch.where(torch.rand(n) < 0.5, torch.inf, torch.rand(n) * 700 + 1)
    seen = day < 3_000
    age_T = torch.stack([torch.zeros(n), day], 1)[torch.stack([seen | True, seen], 1)]
    given = Batch(
        tokens_T=torch.where(age_T == 0, first, coming),
        visit_T=torch.where(age_T == 0, 1, 2),
        age_T=age_T,
        offsets_B1=torch.tensor([0, *(1 + seen.long())]).cumsum(0),
        rows_B=torch.arange(n),
        end_B=torch.full((n,), 3_000.0),
    )
    codes = torch.nn.Embedding.from_pretrained(torch.zeros(VOCABULARY, HIDDEN))
    hazards = Hazards(**FACTS, edges=[0, 700], silence=True, linear=2)
    torch.nn.init.normal_(hazards.linear_CR)
    model, term = foreteller(hazards, codes), goal(later=0.5).eval()
    term.start(model)
    future, hidden_TD = term.corrupt(given)[1], torch.randn(1, HIDDEN + 2).expand(len(age_T), -1)
    optimizer = torch.optim.Adam(hazards.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        term.loss(model, hidden_TD, given, future).loss.backward()
        optimizer.step()
    ask = partial(hazards.risk, hidden_TD[:1], codes.weight, torch.tensor([coming]))
    silent = (0.0, 150.0, 1000.0)
    told = [ask(since_B=torch.tensor([s]), gap=0.0, window=700.0).sigmoid() for s in silent]
    # of those for whom nothing has come, how many within 700 days
    wanted = [((day > s) & (day <= s + 700)).sum() / (day > s).sum() for s in silent]
    torch.testing.assert_close(torch.cat(told), torch.stack(wanted), atol=0.05, rtol=0)
