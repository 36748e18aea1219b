"""The modern encoder is what its plain reading says, and every switch of it acts alone."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from medbert.commands.vocabulary_extend import _extended
from medbert.model.checkpoint import load_module, save_module
from medbert.model.modern import ModernEncoder, age_waves, angles, days
from medbert.model.objectives import masked_code_and_stay
from medbert.schema import FEMALE, MALE, UNKNOWN_SEX, Batch

VOCABULARY, HIDDEN, HEADS = 50, 32, 4
LENGTHS = [7, 20, 1, 0, 19, 33, 7, 40, 18, 2]
NAN = float("nan")
SWITCHES: list[dict[str, Any]] = [
    {},
    {"time": "order"},
    {"time": "both", "gated": False},
    {"time": "none", "ages": False, "sex": False},
    {"visits": 3, "positions": 64},
    {"causal": True, "edges": [0, 30, 365]},
    {"causal": True, "ever": True},
    {"causal": True, "ever": True, "linear": 8, "edges": [0]},
    {"causal": True, "linear": 5, "ages": False, "sex": False, "recent": 4000, "edges": [0]},
    {"causal": True, "linear": 8, "recent": [4000, 9000], "edges": [0]},
]


def encoder(**changes: Any) -> ModernEncoder:
    torch.manual_seed(0)
    sizes = {"vocabulary_size": VOCABULARY, "layers": 2, "heads": HEADS, "hidden": HIDDEN}
    rest = {"feed_forward": 24, "dropout": 0.1, "attention_dropout": 0.0}
    built = ModernEncoder(**{**sizes, **rest, **changes})
    with torch.no_grad():  # make every weight matter: norms start at 1, and the rest is small
        for weight in built.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    return built.eval()


def batch(lengths: list[int] = LENGTHS, *, seed: int = 1) -> Batch:
    """Some ages are unknown, and all of every fourth subject."""
    torch.manual_seed(seed)
    total = sum(lengths)
    made = Batch(
        tokens_T=torch.randint(4, VOCABULARY, (total,)),
        visit_T=torch.randint(0, 6, (total,)),
        age_T=torch.randint(0, 36_000, (total,)).float(),
        offsets_B1=torch.tensor([0, *lengths]).cumsum(0),
        rows_B=torch.arange(len(lengths)),
        sex_B=torch.arange(len(lengths)) % 3,
    )
    made.age_T[torch.rand(total) < 0.2] = NAN
    made.age_T[made.subject_T % 4 == 1] = NAN
    return made


def alone(given: Batch, subject: int) -> Batch:
    start, end = given.offsets_B1[subject : subject + 2].tolist()
    return Batch(
        tokens_T=given.tokens_T[start:end],
        visit_T=given.visit_T[start:end],
        age_T=given.age_T[start:end],
        offsets_B1=torch.tensor([0, end - start]),
        rows_B=given.rows_B[subject : subject + 1],
        sex_B=given.sex_B[subject : subject + 1],
    )


# --- what it is ---------------------------------------------------------------------------------


def plainly(model: ModernEncoder, given: Batch) -> torch.Tensor:
    """One subject at a time, one head at a time, one pair at a time."""
    return torch.cat([_one(model, alone(given, i)) for i in range(len(given.rows_B))])


def _one(model: ModernEncoder, person: Batch) -> torch.Tensor:
    length, config = len(person.tokens_T), model.config
    hidden = model.codes.weight[person.tokens_T]
    if config["ages"]:
        rows = [_age_row(age) for age in person.age_T.tolist()]
        hidden = hidden + torch.tensor(rows).reshape(length, 13) @ model.ages.weight.T
    if config["sex"]:
        hidden = hidden + model.sex.weight[person.sex_B]
    if config["visits"]:
        hidden = hidden + model.visits.weight[person.visit_T.clamp(max=config["visits"] - 1)]
    if config["positions"]:
        hidden = hidden + model.positions.weight[:length]
    hidden = _normal(hidden, model.norm.weight)
    times = _times(person.age_T.tolist(), config["time"])
    for layer in model.layers:
        hidden = hidden + _attended(layer, hidden, times, causal=config["causal"])
        wide = _normal(hidden, layer.change_norm.weight) @ layer.widen.weight.T
        if config["gated"]:
            wide = F.gelu(wide[:, : config["feed_forward"]]) * wide[:, config["feed_forward"] :]
        else:
            wide = F.gelu(wide)
        hidden = hidden + wide @ layer.narrow.weight.T
    if config["ever"]:
        for place in range(length):
            known = person.tokens_T[: place + 1].unique()
            hidden[place] += model.ever.weight[known].sum(0)
    hidden = _normal(hidden, model.final_norm.weight)
    times, said = _running(person), []
    for place in range(length if config["linear"] else 0):
        summed, beside = torch.zeros(config["linear"]), []
        for window, table in zip([math.inf, *config["recent"]], model.linear, strict=True):
            late = torch.tensor([time + window > times[place] for time in times[: place + 1]])
            known = person.tokens_T[: place + 1][late].unique()
            summed += table.weight[known].sum(0) / math.sqrt(1 + len(known) / 20)
            beside.append(math.log(len(known)))
        beside += _age_row(float(person.age_T[place])) if config["ages"] else []
        beside += [float(person.sex_B[0] == sex) for sex in range(3)] if config["sex"] else []
        said.append(torch.cat([summed, torch.tensor(beside)]))
    if not config["linear"]:
        return hidden
    said_TX = torch.stack(said) if said else hidden.new_zeros(0, model.hazards.linear_CR.shape[1])
    return torch.cat([hidden, said_TX], dim=1)


def _running(person: Batch) -> list[float]:
    """The latest time by each code, in days; the visits of undated subjects are a day apart."""
    dated = not person.age_T.isnan().all()
    clock = person.age_T.tolist() if dated else [visit or NAN for visit in person.visit_T.tolist()]
    return [*itertools.accumulate([-1e6 if math.isnan(time) else time for time in clock], max)]


def _age_row(age: float) -> list[float]:
    if math.isnan(age):
        return [0.0] * 12 + [1.0]
    turns = [2 * math.pi * age / 365.25 / period for period in (160, 80, 40, 20, 10, 5)]
    return [*map(math.sin, turns), *map(math.cos, turns), 0.0]


def _times(ages: list[float], time: str) -> list[list[float]]:
    """Of each code, a list of clocks: the pairs of a head are shared among them."""
    known = [age for age in ages if not math.isnan(age)]
    since = [(0.0 if math.isnan(age) else age - min(known)) for age in ages] if known else None
    order = [float(place) for place in range(len(ages))]
    clocks = {"age": [since or order], "order": [order], "both": [since or order, order]}
    return [list(clock) for clock in zip(*clocks.get(time, []), strict=True)]


def _attended(
    layer: Any, hidden: torch.Tensor, times: list[list[float]], *, causal: bool
) -> torch.Tensor:
    later = torch.ones(len(hidden), len(hidden)).triu(1).bool() & causal
    normal, width = _normal(hidden, layer.attention_norm.weight), HIDDEN // HEADS
    heads = []
    for head in range(HEADS):
        query, key, value = (
            normal @ layer.attention.project.weight.T[:, start + head * width :][:, :width]
            for start in (0, HIDDEN, 2 * HIDDEN)
        )
        if times:
            query, key = _turned(query, times), _turned(key, times)
        scores = (query @ key.T / math.sqrt(width)).masked_fill(later, -math.inf)
        heads.append(scores.softmax(1) @ value)
    return torch.cat(heads, dim=1) @ layer.attention.output.weight.T


def _turned(vector: torch.Tensor, times: list[list[float]]) -> torch.Tensor:
    turned, pairs = torch.empty_like(vector), HIDDEN // HEADS // 2
    each = pairs // len(times[0])
    for place, pair in itertools.product(range(len(vector)), range(pairs)):
        share = (pair % each) / max(each - 1, 1)
        wavelength = 7.0 ** (1 - share) * 36_525**share
        angle = 2 * math.pi * times[place][pair // each] / wavelength
        rotation = torch.tensor(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        both = [pair, pair + pairs]
        turned[place, both] = rotation @ vector[place, both]
    return turned


def _normal(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    centred = hidden - hidden.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * weight


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
@torch.no_grad()
def test_equals_a_plain_reading_of_it(changes: dict[str, Any]) -> None:
    model, given = encoder(**changes), batch([7, 20, 1, 0, 12])
    # angles of decades in float32 are right to about a thousandth
    every_T = torch.arange(len(given.tokens_T))
    told_TD = model.with_regression(model(given), given, every_T)
    torch.testing.assert_close(told_TD, plainly(model, given), atol=2e-3, rtol=0)
    some_M = torch.tensor([0, 3, 7, 7, 26, 28, 39])  # alone, and one twice
    told_MD = model.with_regression(model(given), given, some_M)
    torch.testing.assert_close(told_MD, told_TD[some_M], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_looking_back_only_a_history_says_what_it_said_before_it_went_on() -> None:
    sums = {"ever": True, "linear": 8, "recent": [4000, 9000]}
    model, given = encoder(causal=True, time="both", **sums), batch([12, 7, 3])
    given = given._replace(age_T=given.age_T.nan_to_num(5.0).sort().values)
    whole = model(given)
    for until in range(1, 12):
        cut = alone(given, 0)
        cut = cut._replace(**{k: getattr(cut, k)[:until] for k in ("tokens_T", "visit_T", "age_T")})
        cut = cut._replace(offsets_B1=torch.tensor([0, until]))
        torch.testing.assert_close(model(cut), whole[:until], atol=1e-5, rtol=0)


@torch.no_grad()
def test_equals_a_plain_reading_closely_within_a_year() -> None:
    model, given = encoder(time="both"), batch([7, 20, 1, 0, 12])
    given = given._replace(age_T=20_000 + given.age_T % 365)
    told_TD = model.with_regression(model(given), given, torch.arange(len(given.tokens_T)))
    torch.testing.assert_close(told_TD, plainly(model, given), atol=2e-5, rtol=0)


def test_the_preset_is_as_large_as_it_says() -> None:
    with torch.device("meta"):
        preset = ModernEncoder(
            vocabulary_size=5000,
            layers=6,
            heads=6,
            hidden=192,
            feed_forward=512,
            dropout=0.1,
            attention_dropout=0.0,
        )
    counted = sum(weight.numel() for weight in preset.parameters()) - preset.codes.weight.numel()
    assert counted == 2_659_968
    conf = Path(__file__).resolve().parents[2] / "conf" / "encoder" / "modern.yaml"
    assert f"{counted / 1e6:.1f} M parameters" in conf.read_text(encoding="utf-8")


# --- a subject is by itself ---------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["groups", "flex"])
@torch.no_grad()
def test_neighbours_and_packing_do_not_change_a_subject(attention: str) -> None:
    model, given = encoder(attention=attention, time="both"), batch()
    reference = encoder(attention="groups", time="both")
    together = model(given).split(LENGTHS)
    for subject, own in enumerate(together):
        lonely = reference(alone(given, subject))
        torch.testing.assert_close(own, lonely, atol=1e-5, rtol=0)


def test_gradients_are_those_of_subjects_alone() -> None:
    model, given = encoder(time="both"), batch([9, 10, 3, 0])
    model(given).pow(3).sum().backward()
    together = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    for subject in range(4):
        model(alone(given, subject)).pow(3).sum().backward()
    for weight, grad in zip(model.parameters(), together, strict=True):
        torch.testing.assert_close(weight.grad, grad, atol=1e-3, rtol=1e-4)


def test_a_batch_without_tokens_is_empty() -> None:
    assert encoder()(batch([0, 0])).shape == (0, HIDDEN)


@torch.no_grad()
def test_only_positions_bound_the_length() -> None:
    assert encoder()(batch([3, 1500])).isfinite().all()
    with pytest.raises(ValueError, match=r"1500 codes.*64 positions.*encoder\.positions=null"):
        encoder(positions=64)(batch([3, 1500]))


# --- time, age, sex -----------------------------------------------------------------------------


@torch.no_grad()
def test_only_the_days_between_codes_turn() -> None:
    model, given = encoder(ages=False), batch()
    older = given._replace(age_T=given.age_T + 9_000)
    torch.testing.assert_close(model(older), model(given), atol=1e-5, rtol=0)
    slower = given._replace(age_T=given.age_T * 2)
    dated = torch.repeat_interleave(torch.arange(len(LENGTHS)) % 4 != 1, given.lengths_B)
    changed = (model(slower) - model(given)).abs().amax(1) > 1e-3
    assert changed[dated & (given.lengths_B[given.subject_T] > 2)].all()
    assert not changed[~dated].any()


def test_codes_without_age_stand_at_the_first_or_in_their_order() -> None:
    given = batch([4, 3, 2])._replace(
        age_T=torch.tensor([NAN, 900, 1000.5, 850, NAN, NAN, NAN, NAN, 30_000])
    )
    assert days(given).tolist() == [0, 50, 150.5, 0, 0, 1, 2, 0, 0]


def test_rotations_span_a_week_and_a_century() -> None:
    given = batch([2])._replace(age_T=torch.tensor([10_000.0, 10_007.0]))
    angle_Te = angles(given, time="age", turns=16)
    assert angle_Te[0].tolist() == [0.0] * 16
    assert angle_Te[1, 0].item() == pytest.approx(2 * math.pi)
    assert angle_Te[1, -1].item() == pytest.approx(2 * math.pi * 7 / 36_525)
    assert (angle_Te[1].diff() < 0).all()
    halves = angles(given, time="both", turns=16)[1].split(8)
    torch.testing.assert_close(halves[0], 7 * halves[1])


@torch.no_grad()
def test_order_and_none_know_no_time() -> None:
    given = batch()
    other = given._replace(age_T=given.age_T * 3)
    turned = given._replace(tokens_T=given.tokens_T.flip(0), offsets_B1=torch.tensor([0, 147]))
    turned = turned._replace(rows_B=torch.zeros(1, dtype=torch.int64))
    for time in ("order", "none"):
        model = encoder(time=time, ages=False, sex=False)
        assert torch.equal(model(given), model(other))
    straight = turned._replace(tokens_T=given.tokens_T)
    difference = model(turned).flip(0) - model(straight)  # of none: a bag of codes
    assert difference.abs().max() < 1e-4
    assert (encoder(time="order")(turned).flip(0) - encoder(time="order")(straight)).norm() > 0.1


def test_age_is_smooth_distinct_and_may_be_unknown() -> None:
    waves = age_waves(torch.arange(0.0, 110 * 365.25, 365.25 / 4))
    steps = waves.diff(dim=0).norm(dim=1)
    assert steps.max() < 0.5
    distance = torch.cdist(waves, waves).fill_diagonal_(math.inf)
    assert distance.min() > 0.9 * steps.min()
    assert age_waves(torch.tensor([NAN])).tolist() == [[0.0] * 12 + [1.0]]


@torch.no_grad()
def test_every_input_is_a_switch() -> None:
    given = batch()
    changed = {
        "ages": given._replace(age_T=given.age_T + 9_000),
        "sex": given._replace(sex_B=torch.full_like(given.sex_B, MALE)),
        "visits": given._replace(visit_T=(given.visit_T + 1) % 6),
    }
    off = {"ages": False, "sex": False, "visits": 0}
    for name, other in changed.items():
        on = encoder(**{**off, name: 6})
        assert (on(other) - on(given)).abs().max() > 0.01, name
        blind = encoder(**off)
        torch.testing.assert_close(blind(other), blind(given), atol=1e-5, rtol=0)
        assert f"{name}.weight" in on.state_dict() and f"{name}.weight" not in blind.state_dict()


@torch.no_grad()
def test_no_sex_is_an_unknown_sex() -> None:
    model, given = encoder(), batch()
    unknown = given._replace(sex_B=torch.full_like(given.sex_B, UNKNOWN_SEX))
    female = given._replace(sex_B=torch.full_like(given.sex_B, FEMALE))
    assert torch.equal(model(given._replace(sex_B=None)), model(unknown))
    assert not torch.allclose(model(female), model(unknown))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time": "date"}, "unknown time 'date': choose one of age, order, both, none"),
        ({"hidden": 36, "heads": 4}, "width that 2 divides: hidden=36 with heads=4 makes 9"),
        ({"hidden": 24, "time": "both"}, "width that 4 divides: hidden=24 with heads=4 makes 6"),
        ({"heads": 5}, "hidden=32 must be a multiple of heads=5"),
        ({"edges": [0, 30]}, "need causal=true"),
        ({"causal": True, "edges": []}, r"edges=\[\]: expected rising days, the first of them 0"),
        ({"causal": True, "edges": [5, 30]}, r"edges=\[5, 30\]"),
        ({"causal": True, "edges": [0, 30, 30]}, "rising days"),
        ({"causal": True, "edges": [0, 60, 30]}, "rising days"),
        ({"causal": True, "linear": 4, "recent": [0]}, r"recent=\[0\]: expected more than 0 days"),
    ],
)
def test_wrong_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder(**changes)


# --- its life -----------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_comes_back_from_a_folder(tmp_path: Path, changes: dict[str, Any]) -> None:
    saved, given = encoder(**changes), batch()
    save_module(tmp_path, modules={"encoder": saved}, extra={})
    loaded = load_module(tmp_path, "encoder").eval()
    assert torch.equal(loaded(given), saved(given))
    if saved.hazards is not None:  # the edges are not in the file
        assert torch.equal(loaded.hazards.edge_P, saved.hazards.edge_P)
    weights = loaded.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in saved.state_dict().items())


def test_a_larger_vocabulary_changes_nothing_for_the_old_codes() -> None:
    small, given = encoder(), batch()
    larger = _extended(small, [[4, 5], [7]]).eval()
    assert torch.equal(larger(given), small(given))
    expected = small.codes.weight[[4, 5]].mean(0)
    torch.testing.assert_close(larger.codes.weight[VOCABULARY], expected)
    small = encoder(causal=True, edges=[0, 30], ever=True)
    larger = _extended(small, [[4, 5], [7]]).eval()
    assert torch.equal(larger(given), small(given))
    torch.testing.assert_close(larger.ever.weight[VOCABULARY], small.ever.weight[[4, 5]].mean(0))
    assert torch.equal(larger.hazards.level_CP[:VOCABULARY], small.hazards.level_CP)
    assert torch.equal(larger.hazards.level_CP[VOCABULARY + 1], small.hazards.level_CP[7])
    assert torch.equal(larger.hazards.edge_P, small.hazards.edge_P)


def test_half_precision_keeps_the_angles() -> None:
    model, given = encoder(), batch()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = model(given)
    whole = model(given)
    assert (half.float() - whole).norm() / whole.norm() < 0.03


@pytest.mark.parametrize("changes", [SWITCHES[0], SWITCHES[4]], ids=str)
def test_a_few_steps_lower_the_loss(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    given = batch([6] * 24)
    given = given._replace(
        tokens_T=torch.randint(4, 12, (24,)).repeat_interleave(6),  # one code a subject, repeated
        visit_T=torch.tensor([1, 1, 1, 2, 2, 2]).repeat(24),
        stay_V=torch.tensor([1.0, 9.0]).repeat(24),
        visit_offsets_B1=torch.arange(0, 50, 2),
    )
    model = encoder(layers=1, **changes).train()
    objective = masked_code_and_stay(
        vocabulary_size=VOCABULARY,
        hidden=HIDDEN,
        counts=given.tokens_T.bincount(minlength=VOCABULARY),
        rate=0.2,
        static=True,
        days=7,
        masked_code_weight=1.0,
        stay_weight=1.0,
        seed=0,
        visit_rate=0.2,
        per_visit=True,
    )
    weights = [*model.parameters(), *objective.parameters()]
    optimizer = torch.optim.Adam(weights, lr=0.005)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = objective(model, given).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(weight.grad is not None for weight in weights)
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
