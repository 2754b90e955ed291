"""`k25 export` and `k25 import` as a user runs them: a lake, a folder, exit codes and one line of error."""

import argparse

import pytest

from k25_pipelines.commands import model as model_command
from k25_pipelines.commands.parts import Parser
from k25_pipelines.storage.local import LocalStore
from tests.trainers.interchange import checkpoint, grown, tiny
from trainers.checkpoint import load_weights
from trainers.interchange import export, importing
from trainers.interchange.weights import weights_digest

CONFIG = tiny()


def options_of(*words: object) -> argparse.Namespace:
    parser = Parser(prog="k25")
    model_command.add_commands(parser.add_subparsers(dest="command", required=True))
    return parser.parse_args([str(word) for word in words])


@pytest.fixture
def lake(tmp_path, monkeypatch) -> LocalStore:
    """A lake of its own with one checkpoint; the working folder is another than the repository's."""
    monkeypatch.setenv("K25_LAKE", str(tmp_path / "lake"))
    monkeypatch.chdir(tmp_path)
    store = LocalStore(str(tmp_path / "lake"))
    checkpoint(store, grown(CONFIG).state_dict(), CONFIG)
    return store


def test_a_checkpoint_goes_out_and_comes_back_at_the_command_line(lake, tmp_path, capfd):
    options = options_of("export", "joint-1/00000070", "--to", "out", "--dtype", "float32")
    assert options.run(options) == 0
    assert capfd.readouterr().out.startswith(f"{tmp_path / 'out'}: 10 files, weights ")
    options = options_of("import", "out")
    assert options.run(options) == 0
    key = capfd.readouterr().out.strip()
    assert weights_digest(load_weights(lake, key)) == weights_digest(grown(CONFIG).state_dict())


@pytest.mark.parametrize(
    ("program", "words", "said"),
    [
        (export, ["joint-9/00000070", "--to", "out"], "k25 export: no checkpoint 'joint-9/00000070'"),
        (export, ["joint-1/00000070", "--to", "."], "is there already; name a new folder"),
        (export, ["joint-1/00000070", "--to", "out", "--tokenizer", "nowhere.json"], "k25 export: no tokenizer"),
        (export, ["joint-1/00000070", "--to", "out", "--merge"], "has no adapters to merge; leave out --merge"),
        (importing, ["nowhere"], "k25 import: nowhere/config.json is missing; give a folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(lake, monkeypatch, capsys, program, words, said):
    monkeypatch.setattr("sys.argv", ["program", *words, "--store", lake.url])
    assert program.main() == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert said in errors[0]


@pytest.mark.parametrize("words", ["export", "export a/1", "import", "export a/1 --to b --dtype int4"])
def test_a_wrong_command_line_names_the_help(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        options_of(*words.split())
    assert capsys.readouterr().err.endswith(f"see: k25 {words.split()[0]} --help\n")


@pytest.mark.parametrize("name", ["export", "import"])
def test_help_shows_an_example(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        options_of(name, "--help")
    assert f"k25 {name} " in capsys.readouterr().out.partition("example")[2]
