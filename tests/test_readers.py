"""Files that anybody may have written: read, or refused in one line that says what is wrong.

FWRNN_EXAMPLES=2000 tries so many of each.
"""

import copy
import gzip
import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fwrnn.commands.sweeps import Sweep
from fwrnn.comparison.found import find
from fwrnn.errors import UserError
from fwrnn.learning.assembly import load_run
from fwrnn.learning.retest import evaluated
from fwrnn.learning.run_folder import RunFolder
from fwrnn.learning.shipped import FOLDER
from fwrnn.learning.trained import load
from fwrnn.tasks import mnist_files
from fwrnn.tasks.assoc_retrieval import AssocRetrieval, read_file, split_question
from fwrnn.tasks.mnist_files import MD5, BrokenFile, load_mnist, parse_idx

SHIPPED = FOLDER / "retrieval"
CONFIG = yaml.safe_load((SHIPPED / "config.yaml").read_text(encoding="utf-8"))

quickly = settings(
    max_examples=int(os.environ.get("FWRNN_EXAMPLES", "40")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)
numbers = st.one_of(
    st.integers(), st.floats(), st.sampled_from([10**5, 10**6, 10**12, 2**63, 10**30, 0, -1])
)
words = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["${oc.env:SECRET}", "???", "\x1b[2J", "cuda", "lstm", "catch", "1e3", "nan"]),
)
leaves = st.one_of(st.none(), st.booleans(), numbers, words)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(words, st.integers()), inner)
    ),
    max_leaves=4,
)
keys = [(key,) for key in CONFIG] + [
    (group, key) for group in ("task", "model", "trainer") for key in CONFIG[group]
]
keys += [("other",), ("model", "other"), ("model", 3), (3,)]


@pytest.fixture
def run(tmp_path) -> Path:
    """A copy of the run that ships."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "run"))


def told_in_a_line(job):
    """What ``job`` returns; None where it was refused, which may not be by any other error."""
    try:
        return job()
    except UserError as error:
        assert len(str(error)) < 1000
        return None


# Configurations


@quickly
@given(st.lists(st.tuples(st.sampled_from(keys), values), min_size=1, max_size=3))
def test_any_change_of_a_configuration_is_read_or_refused(run, monkeypatch, changes):
    monkeypatch.setenv("SECRET", "told")
    config = copy.deepcopy(CONFIG)
    for path, value in changes:
        inside = config
        for key in path[:-1]:
            inside = inside[key] if isinstance(inside.get(key), dict) else {}
        inside[path[-1]] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    told_in_a_line(lambda: load_run(run))
    assert len(list(find([run]))) == 1


@quickly
@given(st.one_of(st.binary(max_size=200), st.text(alphabet="[]{}&*!:-, \n?|>'\"%@aé\0")))
def test_any_text_in_the_place_of_a_configuration_is_refused(run, content):
    content = content.encode() if isinstance(content, str) else content
    (run / "config.yaml").write_bytes(content)
    with pytest.raises(UserError):
        load_run(run)


BOMB = "a0: &a0 [1, 1]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 30)
)


@pytest.mark.parametrize(("content", "words"), [
    (BOMB, "aliases"), ("[" * 100_000, "nested too deeply"), ("a: {" * 1000, "nested too deeply"),
    ("a: 1\n" * 100_000, "larger than 256 KiB"),
    ("task: !!python/object/apply:os.mkdir [pwned]", "not YAML"),
], ids=["laughs", "depth", "mappings", "length", "code"])  # fmt: skip
def test_configurations_that_would_grow_are_refused(run, monkeypatch, content, words):
    monkeypatch.chdir(run)
    (run / "config.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        load_run(run)
    assert not (run / "pwned").exists()


@pytest.mark.parametrize("value", [
    "${oc.env:SECRET}", ["${oc.env:SECRET}"], [{"a": ["${oc.env:SECRET}"]}], "x${seed}",
])  # fmt: skip
def test_interpolations_of_a_run_are_refused_however_deep(run, monkeypatch, value):
    monkeypatch.setenv("SECRET", "told")
    config = {**CONFIG, "task": {**CONFIG["task"], "pairs": value}}
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.raises(UserError, match="is not resolved") as error:
        load_run(run)
    assert "told" not in str(error.value)


@pytest.mark.parametrize("changes", [
    {"hidden_size": 10**12}, {"hidden_size": 10**6}, {"hidden_size": 10**30},
    {"encoding_size": 10**9, "embedding_size": 10**9}, {"inner_steps": 10**12},
    {"name": "lstm", "core": "lstm", "hidden_size": 50_000},
    {"name": "a", "core": "associative_lstm", "copies": 10**12, "heads": 3},
])  # fmt: skip
def test_models_that_the_weights_are_not_of_take_no_memory(run, changes):
    own = {"hidden_size", "embedding_size", "encoding_size", "head_size"}
    shared = CONFIG["model"] if "core" not in changes else {k: CONFIG["model"][k] for k in own}
    config = {**CONFIG, "model": {**shared, **changes}}
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.raises(UserError, match="fit|cannot be made|or less"):
        load_run(run)


def test_splits_that_no_memory_holds_are_refused(run):
    config = {**CONFIG, "task": {**CONFIG["task"], "test_size": 10**12}}
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.raises(UserError, match="test_size must be 10,000,000 or less"):
        load_run(run)


# Metrics and sweeps


@quickly
@given(st.dictionaries(st.sampled_from(["test_error", "val_error", "best_update", "x"]), values))
def test_any_metrics_are_read_or_refused(run, metrics):
    (run / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    told_in_a_line(lambda: RunFolder(run).read_metrics())
    assert len(list(find([run]))) == 1


@pytest.mark.parametrize("metrics", [
    '{"test_error": "half"}', '{"test_error": [1]}', "[" * 100_000, " " * 10**6, '{"a": ' * 10**4,
    "9" * 10_000, "[1]",
], ids=lambda text: text[:20])  # fmt: skip
def test_evaluate_refuses_metrics_that_it_cannot_compare_with(run, metrics):
    (run / "metrics.json").write_text(metrics, encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics\.json is broken"):
        evaluated(str(run), device="cpu")


JOB = {"state": "done", "cause": None, "folder": "x", "status": 0}


@quickly
@given(st.fixed_dictionaries({
    "command": st.one_of(values, st.lists(words, max_size=3)),
    "jobs": st.one_of(values, st.dictionaries(words, st.one_of(values, st.fixed_dictionaries({
        "state": st.one_of(values, st.sampled_from(["done", "failed", "running"])),
        "cause": values, "folder": values, "status": values,
    })), max_size=3)),
}))  # fmt: skip
def test_any_sweep_is_read_or_refused(run, content):
    (run.parent / "sweep.json").write_text(json.dumps(content), encoding="utf-8")
    (run / "metrics.json").unlink(missing_ok=True)
    assert told_in_a_line(lambda: Sweep(run.parent).summary()) != ""
    assert len(list(find([run.parent]))) == 1


# Weights


BEST = Path("checkpoints", "best.pt")


@quickly
@given(st.data())
def test_damaged_weights_are_never_answered_with(run, data):
    intact = (SHIPPED / BEST).read_bytes()
    place = data.draw(st.integers(0, len(intact) - 1))
    cut = data.draw(st.booleans())
    flipped = bytes([intact[place] ^ data.draw(st.integers(1, 255))])
    (run / BEST).write_bytes(
        intact[:place] if cut else intact[:place] + flipped + intact[place + 1 :]
    )
    found = told_in_a_line(lambda: RunFolder(run).read_checkpoint(run / BEST)["model"])
    if found is not None:  # what was changed says nothing: dates, padding
        wanted = RunFolder(SHIPPED).read_checkpoint(SHIPPED / BEST)["model"]
        same = {name: torch.equal(x, found[name]) for name, x in wanted.items() if name in found}
        assert all(same.values())
        told_in_a_line(lambda: load(run))


def test_nobody_waits_for_what_is_no_file(run):
    for path in (run / BEST, run / "config.yaml", run / "metrics.json"):
        content = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(UserError):
            evaluated(str(run))
        path.unlink()
        path.write_bytes(content)


# Questions


@quickly
@given(st.one_of(
    st.text(max_size=60), st.text(alphabet="abc019?\t", max_size=60),
    st.from_regex(r"([a-c]\d)+\?\?[a-c]"),
))  # fmt: skip
def test_any_string_is_a_question_or_says_where_it_is_not(text):
    try:
        pairs, asked = split_question(text)
    except ValueError as error:
        assert f"as character {error.at + 1}, got" in str(error)  # pyright: ignore
    else:
        assert text == "".join(pairs) + "??" + asked
        assert len(AssocRetrieval().encode(text)) == len(text)


@quickly
@given(st.one_of(st.binary(), st.lists(st.text(alphabet="ab01?\t\r ", max_size=9)).map("\n".join)))
def test_any_file_of_questions_is_read_or_its_line_named(tmp_path, content):
    content = content.encode() if isinstance(content, str) else content
    (tmp_path / "mine.tsv").write_bytes(content)
    try:
        lines = read_file(tmp_path / "mine.tsv")
    except ValueError as error:
        assert "line " in str(error) or "holds no example" in str(error)
    else:
        assert all(split_question(line.text) for line in lines)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there is none here")
def test_a_file_without_an_end_is_given_up():
    with pytest.raises(ValueError, match="larger than 64 MiB"):
        read_file("/dev/zero")


# IDX


@quickly
@given(
    st.lists(st.one_of(st.integers(0, 3), st.integers(0, 2**32 - 1)), min_size=3, max_size=3),
    st.binary(max_size=40),
    st.binary(max_size=4),
)
def test_any_idx_file_is_as_long_as_it_says(shape, content, junk):
    head = struct.pack(">4B3I", 0, 0, 8, 3, *shape)
    for whole in (head + content, head[: len(junk) * 4], junk + content):
        try:
            array = parse_idx(whole, dimensions=3)
        except BrokenFile as error:
            assert "\n" not in str(error)
        else:
            assert list(array.shape) == shape and array.tobytes() == whole[16:]


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_that_is_too_large_or_cut_short_is_refused(tmp_path, monkeypatch, zipped):
    monkeypatch.setattr(mnist_files, "LARGEST", 1000)
    content = struct.pack(">4B3I", 0, 0, 8, 3, 1, 28, 28) + bytes(784)
    for broken in (content + bytes(5000), content[:-1], content):
        whole = gzip.compress(broken) if zipped else broken
        for cut in (len(whole), len(whole) - 9):
            (tmp_path / next(iter(MD5))).write_bytes(whole[:cut])
            with pytest.raises(UserError, match="more than|damaged|promises|but not MNIST"):
                load_mnist(str(tmp_path))
