"""A wrong word gets the right one, in one line, with status 2."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from geres.cli.help import exit_code_lines
from geres.cli.main import cli
from geres.cli.words import COMMANDS, MEANT
from geres.errors import BY_CODE
from geres.model.states import JobState, Reason, TaskState
from geres.store.task_list import FILTER_FIELDS


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["squeue"], "geres tasks"),
        (["sbatch", "x.sh"], "geres submit"),
        (["ps"], "geres tasks"),
        (["scancel", "12"], "geres cancel"),
        (["submitt"], "geres submit"),
        (["job", "shwo"], "geres job show"),
        (["submit", "--mem", "2G", "x"], "-m / --memory"),
        (["run", "--ntasks", "2", "x"], "-a / --array"),
        (["submit", "--memry", "2G", "x"], "--memory"),
        (["up", "--prot", "1"], "--port"),
        (["task", "lisst"], "geres task list"),
    ],
)
def test_a_wrong_word_gets_the_right_one(geres, words, meant):
    done = geres(*words)
    assert done.status == 2
    assert done.out == ""
    assert re.fullmatch(r"geres: invalid: [^\n]*did you mean [^\n]*\n", done.err), done.err
    assert meant in done.err


def test_a_word_like_nothing_gets_the_way_to_the_list(geres):
    assert geres("xyzzy").err == "geres: invalid: there is no command 'xyzzy' (`geres --help` says more)\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["jbos"], "there is no command 'jbos'; did you mean `geres jobs`?"),
        (["drain", "x"], "did you mean `geres node drain`?"),
        (["revoke", "7"], "did you mean `geres token revoke`?"),
        (["submit", "--tme", "3", "true"], "there is no option --tme; did you mean -t / --time-limit?"),
        (["submit", "--mem-per", "3", "true"], "did you mean -m / --memory?"),
        (["submit", "--retry", "3", "true"], "did you mean --retries?"),
        (["submit", "--foo", "true"], "there is no option --foo (`geres submit"),
        (["tasks", "--zzz"], "there is no option --zzz (`geres tasks"),
    ],
)
def test_only_what_is_near_is_proposed(geres, words, said):
    assert said in geres(*words).err


@pytest.mark.parametrize(
    "words", [["task", "1.7"], ["job", "my-job-name", "--json"], ["node", "vm"], ["job", "2"]]
)
def test_a_noun_and_a_name_show_one(geres, words):
    shown, meant = geres(*words), geres(words[0], "show", *words[1:])

    assert shown == meant
    assert "no geres here" in shown.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["states"], [*TaskState, *JobState]),
        (["reasons"], [*Reason]),
        (["filters"], [*(name + ".KEY" if field.keys else name for name, field in FILTER_FIELDS.items())]),
        (["placeholders"], ["{}", "{.}", "{/}", "{index}", "{task}"]),
        (["environment"], ["GERES_TASK_ID", "GERES_HOME"]),
        (["exit", "codes"], ["128+N"]),
    ],
)
def test_a_topic_tells_of_all_that_there_is(geres, words, told):
    done = geres("help", *words)

    assert (done.status, done.err) == (0, "")
    assert not [word for word in told if str(word) not in done.out]


def test_the_topic_on_the_environment_has_what_the_reference_has(geres):
    reference = (Path(__file__).parents[2] / "docs/reference/environment.md").read_text()

    names = set(re.findall(r"`(GERES_[A-Z_]+)`", reference))

    assert not [name for name in names if name not in geres("help", "environment").out]


def test_an_unknown_topic_is_refused_with_those_that_there_are(geres):
    done = geres("help", "colours")

    assert done.status == 4
    assert "environment, exit-codes, filters" in done.err


def test_what_is_proposed_exists():
    for proposal in MEANT.values():
        words = proposal.split()[1:]
        assert words[0] in COMMANDS[""], proposal


def _all_commands():
    for within, entries in COMMANDS.items():
        for name in entries:
            yield [*within.split(), name]


@pytest.mark.parametrize("words", list(_all_commands()), ids=" ".join)
def test_every_command_has_its_help(geres, words):
    done = geres(*words, "--help")
    if words not in (["server"], ["agent"]):  # they pass their words on
        assert (done.status, done.err) == (0, "")
        assert f"Usage: geres {' '.join(words)}" in done.out


def test_one_letter_means_one_thing_everywhere():
    import click

    meanings: dict[str, set[str]] = {}
    context = click.Context(cli)
    for words in _all_commands():
        command = cli
        for word in words:
            command = command.get_command(context, word)
        for option in command.params:
            for short in option.opts:
                if re.fullmatch("-[a-zA-Z]", short):
                    meanings.setdefault(short, set()).add(option.name)
    same = {"limit", "tail", "most"}  # all of -n: how many lines
    ambiguous = {
        short: names for short, names in meanings.items() if len(names - same) + bool(names & same) > 1
    }
    assert ambiguous == {"-r": {"resources"}} or ambiguous == {}


def test_the_table_of_exit_statuses_has_every_code():
    text = "\n".join(exit_code_lines())
    for code, kind in BY_CODE.items():
        if code != "error":
            assert re.search(rf"^  {kind.exit_status}  .*\b{code}\b", text, re.M), code


def test_help_on_a_command_is_its_help(geres):
    assert geres("help", "job", "create").out.startswith("Usage: geres job create")
    assert "128+N" in geres("help", "exit-codes").out
    assert geres("help", "nothing").status == 4


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_come_for_each_shell(geres, shell):
    done = geres("completion", shell)
    assert done.status == 0
    assert "_GERES_COMPLETE" in done.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["submit", "--retries", "-5", "true"], "--retries: -5 is not -1 (no limit), 0 or above"),
        (["submit", "--array", "5-1", "true"], "--array: '5-1' counts down"),
        (["submit", "--array", "1-3", "--max-parallel", "0", "true"], "--max-parallel: 0 is not"),
        (["submit", "-t", "abc", "true"], "--time-limit: 'abc' is no duration"),
        (["submit", "-m", "x", "true"], "--memory: 'x' is no size"),
        (["submit", "-r", "disk=-1", "true"], "--resource disk: -1 is below 0"),
        (["submit", "--label", "a.b", "true"], "--label: 'a.b' cannot be a name"),
        (["submit", "-w", "", "true"], "--nodelist: is empty"),
        (["tasks", "--limit", "x"], "--limit: 'x' is not a valid integer"),
        (["user", "create", "x", "--role", "boss"], "--role: 'boss' is not one of"),
        (["job", "edit", "1.x", "--max-parallel", "z"], "--max-parallel: 'z' is not a valid integer"),
    ],
)
def test_the_option_is_named_as_it_was_typed(geres, words, said):
    done = geres(*words)

    assert done.status == 2
    assert done.err.startswith(f"geres: invalid: {said}"), done.err
