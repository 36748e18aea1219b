from __future__ import annotations

import subprocess
import sys

import pytest

from medbert.commands import VERBS, _words


def medbert(*words: str, cwd=None) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from medbert.commands.main import main; main()", *words]
    return subprocess.run(program, cwd=cwd, capture_output=True, text=True, check=False)


def test_help_names_every_verb():
    done = medbert("--help")
    assert done.returncode == 0 and all(
        f"\n  {verb.replace('_', ' ')} " in done.stdout for verb in VERBS
    )


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_lists_its_settings_and_choices(verb):
    text = medbert(*verb.split("_"), "--help").stdout
    makes_nothing_new = verb in ("plan", "corpus_gate")  # the gate is kept in the corpus
    assert ("out: ???" in text or makes_nothing_new) and "_target_" not in text
    if verb == "finetune":
        assert "dhf_casecontrol" in text and "temporally biased" in text


def test_help_with_a_choice_shows_its_settings():
    assert "time_format" in medbert("prepare", "source=flat", "--help").stdout


def test_a_slip_of_the_pen_gets_a_suggestion():
    done = medbert("evalute")
    assert done.returncode == 1 and "did you mean `medbert evaluate`" in done.stderr


@pytest.mark.parametrize(
    "words", [["vocabulary"], ["vocabulary", "extnd"], ["vocabulry", "extend"]]
)
def test_so_does_half_a_verb_of_two_words(words):
    done = medbert(*words, "out=x")
    assert done.returncode == 1 and "did you mean `medbert vocabulary extend`" in done.stderr


def test_help_for_the_first_of_two_words_lists_the_second():
    done = medbert("vocabulary", "--help")
    assert done.returncode == 0 and "\n  vocabulary extend  " in done.stdout
    assert "synthesize" not in done.stdout


def test_a_verb_of_two_words_is_run(tmp_path):
    done = medbert("vocabulary", "extend", "store=x", "out=y", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("medbert vocabulary extend: needs encoder_dir=...")


def test_bad_input_is_one_line_and_exit_status_2(tmp_path):
    done = medbert("pretrain", "store=nowhere", "out=encoder", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "nowhere/dataset.json: not found" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("source=meds", "source.path=x", "visit.by=week"), "visit.by=week visit.gap_days=1.0: "),
        (
            ("source=omop_postgres", "source.uri='postgresql://me:hush@h/b'", "source.schema=cdm"),
            "source.uri: holds a password",
        ),
    ],
)
def test_so_is_a_setting_that_its_owner_refuses(tmp_path, words, said):
    done = medbert("prepare", *words, "out=store", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"medbert prepare: {said}") and "hush" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag_first", [True, False])
def test_several_runs_in_one_command(tmp_path, flag_first):
    settings = ["n_subjects=20", "seed=1,2", "out=events/${seed}"]
    settings += [] if flag_first else ["hydra.sweep.dir=told"]  # where Optuna says what was best
    words = ["-m", *settings] if flag_first else [*settings, "-m"]
    done = medbert("synthesize", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "events").iterdir()) == ["1", "2"]
    told = ["events"] if flag_first else ["events", "told"]
    assert sorted(path.name for path in tmp_path.iterdir()) == told


def test_settings_become_command_line_words():
    words = _words({"store": "a b/", "trainer": {"max_epochs": 3, "max_time": None}, "x": [1, "y"]})
    assert words == ["store='a b/'", "trainer.max_epochs=3", "trainer.max_time=null", "x=[1,y]"]


def test_a_recipe_is_read_changed_and_run(tmp_path):
    import medbert

    recipe = medbert.compose("synthesize", "seed=4", n_subjects=50, out=tmp_path / "events")
    recipe.n_subjects = 7
    assert medbert.synthesize(recipe) == tmp_path / "events"
    told = (tmp_path / "events" / "settings.json").read_text()
    assert '"n_subjects": 7' in told and '"seed": 4' in told


@pytest.mark.parametrize("own", [None, "77"])
def test_threads_that_wait_sleep_soon_unless_told_otherwise(own, monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if own:
        monkeypatch.setenv("GOMP_SPINCOUNT", own)
    told = "import os, sys; from medbert.commands import main as m; m._can_be_repeated = lambda *_:"
    told += " sys.exit(os.environ['GOMP_SPINCOUNT']); m.main()"
    done = subprocess.run(
        [sys.executable, "-c", told, "plan", "store=x"],
        **{"capture_output": True, "text": True, "check": False},
    )
    assert done.stderr.splitlines()[-1] == (own or "10000")
