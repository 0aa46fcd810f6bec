"""What is said between the suite and a peer: as the schema has it; and whatever a peer says wrongly ends in one clear line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from attnspec.adapters import Adapter, ResolveError, resolve
from attnspec.adapters.remote import isolated as module
from attnspec.adapters.remote.isolated import Isolated, Limits, isolated
from attnspec.adapters.remote.process import Process
from attnspec.adapters.remote.protocol import ABILITIES
from attnspec.adapters.remote.told import FIELDS
from attnspec.adapters.within import Within
from attnspec.conformance import check
from attnspec.conformance.subject.meeting import meet
from attnspec.spec import Problem
from attnspec.spec.files import Stored, read, write
from attnspec.spec.place import Place

SCHEMA = json.loads((Path(module.__file__).parent / "protocol.schema.json").read_text(encoding="utf-8"))
# A peer of 20 lines. `said` maps an operation to the rest of its reply, or to a line as it is; what is not in it is said rightly.
FAKE = """
import json, shutil, sys
said = json.loads({said!r})
fake = {{"name": "fake", "offers": ["mha"]}}
right = {{"start": {{"version": 1}}, "describe": {{"implementations": [fake]}}, "run": {{"refusal": "no"}}}}
print("a line of the log")
print('{{"and": "another"}}')
for line in sys.stdin:
    request = json.loads(line)
    if request["op"] == "stop":
        break
    rest = said.get(request["op"], right[request["op"]])
    if rest == "exit":
        print("why it ended", file=sys.stderr)
        sys.exit(3)
    if isinstance(rest, dict):
        if "answer" in rest:
            shutil.copy(rest.pop("answer"), request["into"])
        rest = json.dumps({{**rest, "id": rest.get("id", request["id"]), "op": request["op"]}})
    print(rest, flush=True)
"""


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Callable[..., Isolated]]:
    """Makes a peer that says these things."""
    made: list[Isolated] = []

    def make(limits: Limits | None = None, **said: Any) -> Isolated:
        path = tmp_path / "fake.py"
        path.write_text(FAKE.format(said=json.dumps(said)), encoding="utf-8")
        made.extend(isolated(f"cmd:{sys.executable} -S {path}", limits=limits))
        return made[-1]

    yield make
    for one in made:
        one.peer.close()


def plain(**more: Any) -> Problem:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 4, generator=generator) for n in (3, 5, 5))
    return Problem(**{"q": q, "k": k, "v": v} | more)


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """All that is said either way."""
    seen: list[dict[str, Any]] = []
    send, message = Process.send, Process._message

    def sent(self: Process, said: Any) -> None:
        seen.append(dict(said))
        send(self, said)

    def received(self: Process, line: bytes) -> dict[str, Any] | None:
        found = message(self, line)
        if found is not None:
            seen.append(found)
        return found

    monkeypatch.setattr(Process, "send", sent)
    monkeypatch.setattr(Process, "_message", received)
    return seen


def must_be_valid(traffic: list[dict[str, Any]]) -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.check_schema(SCHEMA)
    for message in traffic:
        written = json.loads(json.dumps(message))  # a tuple is an array there
        problems = [error.message for error in validator.iter_errors(written)]
        assert not problems, f"{message}: {problems}"


# THE SCHEMA


def test_all_that_is_said_to_and_by_the_peer_in_python_is_in_the_schema(traffic: list[dict[str, Any]]) -> None:
    adapter = isolated("sdpa-math")[0].on("cpu")
    assert isinstance(adapter, Isolated)
    mask = torch.ones(1, 1, 3, 5, dtype=torch.bool)
    problem = plain(mask=mask, do=torch.ones(1, 2, 3, 4), wrt=("q", "v"))
    place = Place(1024)
    for asked in (problem, plain(causal=True, scale=0.5), problem.replace(v=problem.k), plain(q=place.lay(torch.ones(1, 2, 3, 4)))):
        assert adapter.ask(asked).refusal is None
    assert adapter.ask(problem, Within("no_grad", seed=3)).refusal is None
    assert adapter.ask(plain(), Within(checked=False)).refusal is None
    adapter.again(adapter.ask(problem, Within(kept=True)))
    adapter.holds(place)
    adapter.trace(plain())
    adapter.wholly(plain())
    adapter.presented(problem.replace(causal=True))
    adapter.script(problem)
    adapter.fresh()
    adapter.peer.close()
    must_be_valid(traffic)
    assert {message["op"] for message in traffic} >= {
        "start",
        "describe",
        "run",
        "stop",
        "on",
        "again",
        "holds",
        "trace",
        "script",
    }


def test_all_that_is_said_in_a_run_is_in_the_schema(traffic: list[dict[str, Any]]) -> None:
    adapter = isolated("sdpa-math")[0]
    check(adapter, clauses="PURITY-2,ERROR-2,ERROR-5,GRAD-7", dtypes="float32", search=False)
    adapter.peer.close()
    assert len(traffic) > 100
    must_be_valid(traffic)


@pytest.mark.parametrize(
    "message",
    [
        {"op": "run", "id": 1},  # a reply without anything
        {"op": "run", "id": 1, "error": {"text": "no"}},
        {"op": "start", "id": 1, "version": 2},
        {"op": "describe", "id": 1, "implementations": [{"name": "x", "offer": []}]},
        {"op": "holds", "id": 1},
        {"op": "dance", "id": 1},
        {"id": 1, "file": "o"},
    ],
)
def test_the_schema_is_not_met_by_all_and_sundry(message: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        must_be_valid([message])


def test_the_schema_and_the_reader_know_the_same_fields() -> None:
    assert SCHEMA["$defs"]["description"]["properties"].keys() == FIELDS.keys()


def test_the_page_names_every_field_and_every_ability() -> None:
    page = (Path(__file__).parent.parent / "docs" / "protocol.md").read_text(encoding="utf-8")
    assert not [name for name in (*FIELDS, *ABILITIES) if f"`{name}`" not in page]


# WHAT A PEER SAYS OF ITSELF


@pytest.mark.parametrize(
    ("described", "line"),
    [
        ({"offers": ["mha", "causality"]}, "its offers names unknown causality; choose from mha"),
        ({"dialect": {"empty_row": "seven"}}, "its dialect has empty_row=seven; choose from"),
        ({"restrictions": ["odd_lengths"]}, "its restrictions name unknown odd_lengths; choose from always_causal"),
        ({"dtypes": ["float8"]}, "its dtypes names unknown float8; choose from float32"),
        ({"dtypes": []}, "its dtypes is [], and must be a list of texts, not empty"),
        ({"does": ["magic"]}, "its does names unknown magic; choose from memory"),
        ({"accuracy": "A+"}, "its accuracy is 'A+'; choose from"),
        ({"widths": "64"}, "its widths is '64', and must be a list of numbers"),
        ({"offer": ["mha"]}, "it describes itself by 'offer', which is no field"),
        ({"name": ""}, "it must say a name and what it offers"),
        ({"offers": ["mha", "strided"]}, "it offers strided, and gets its tensors row by row"),
    ],
)
def test_what_a_peer_says_of_itself_is_read_strictly(fake: Callable[..., Isolated], described: dict[str, Any], line: str) -> None:
    with pytest.raises(ResolveError) as error:
        fake(describe={"implementations": [{"name": "fake", "offers": ["mha"], **described}]})
    assert f"does not keep to the protocol: {line}" in str(error.value)
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"start": {"version": 2}}, "speaks version 2 of the protocol, and this attnspec version 1"),
        ({"start": {}}, "speaks version None of the protocol"),
        ({"start": {"version": 1, "failed": "it has no licence"}}, "it has no licence"),
        ({"start": {"version": 1, "id": 17}}, "it answered 'start' 17 where 'start' 1 was asked"),
        ({"start": '{"op": "start", "id": 1, version: 1}'}, "it wrote a message that is no JSON"),
        ({"describe": {"implementations": []}}, "its answer to describe has no list `implementations` of objects"),
        ({"describe": {"implementations": ["x"]}}, "its answer to describe has no list `implementations` of objects"),
        ({"describe": {}}, "its answer to describe has no list `implementations` of objects"),
    ],
)
def test_a_start_that_goes_wrong_ends_in_one_line(fake: Callable[..., Isolated], said: dict[str, Any], line: str) -> None:
    with pytest.raises(ResolveError) as error:
        fake(**said)
    assert line in str(error.value)
    assert str(error.value).count("\n") == 0


def test_a_peer_that_ends_says_its_last_lines(fake: Callable[..., Isolated]) -> None:
    with pytest.raises(ResolveError, match=r"did not start: its process ended with exit code 3(\n.*)*why it ended"):
        fake(describe="exit")


def test_a_peer_that_does_not_flush_is_told(fake: Callable[..., Isolated]) -> None:
    with pytest.raises(ResolveError, match=r"it had not answered after 0\.5 s; it must flush each line"):
        fake(Limits(first=0.5), start="a line that is no message")


def test_a_peer_that_does_not_stop_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "deaf.py"
    path.write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n", encoding="utf-8")
    process = Process([sys.executable, "-S", str(path)])
    process.close()
    assert process.process.poll() is not None
    assert not process.folder.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of another process")
def test_a_peer_has_no_more_memory_than_it_may(fake: Callable[..., Isolated]) -> None:
    adapter = fake(Limits(memory=1 << 30))
    assert adapter.peer.process is not None
    limits = Path(f"/proc/{adapter.peer.process.process.pid}/limits").read_text(encoding="utf-8")
    assert re.search(rf"Max data size +{1 << 30} +{1 << 30}", limits)


def test_a_command_that_is_none_is_told() -> None:
    with pytest.raises(ResolveError, match="No such file or directory"):
        isolated("cmd:./there-is-no-such-peer")


def test_a_short_description_is_enough(fake: Callable[..., Isolated]) -> None:
    adapter = fake()
    assert (adapter.name, adapter.offers, adapter.devices) == ("fake", {"mha"}, ("cpu",))
    assert (adapter.dtypes, adapter.widths, adapter.dialect, adapter.does) == (None, None, {}, frozenset())


# ANSWERS


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        ({}, "its answer to run has neither a file, nor a refusal, nor an error"),
        ({"error": "no"}, "its error is 'no', and must be an object with the text `line`"),
        ({"refusal": 7}, "its refusal is 7, and must be a text"),
        ({"file": "there-is-none.safetensors"}, "No such file or directory"),
        ({"file": "LOG"}, "is no file of tensors"),
        ({"file": "ODD"}, "its file has no tensor o; there is out"),
        ({"id": 99, "refusal": "no"}, "it answered 'run' 99 where 'run' 3 was asked"),
        ('{"op": "run", "id": 3, "refusal": "no}', "it wrote a message that is no JSON"),
    ],
)
def test_an_answer_that_is_none_is_an_error_in_one_line(
    fake: Callable[..., Isolated], tmp_path: Path, reply: Any, line: str
) -> None:
    (tmp_path / "LOG").write_text("this is a text, and no file of tensors", encoding="utf-8")
    write(tmp_path / "ODD", {"out": Stored.of(torch.zeros(1, 2, 3, 4).numpy())})
    if isinstance(reply, dict) and (tmp_path / reply.get("file", "-")).is_file():
        reply = {"file": str(tmp_path / reply["file"])}
    answer = fake(run=reply).ask(plain())
    assert answer.unsupported is None
    assert answer.refusal is not None
    assert answer.refusal.startswith("the peer does not keep to the protocol: ")
    assert line in answer.refusal
    assert "\n" not in answer.refusal


def test_after_an_answer_to_another_question_the_peer_is_started_again(fake: Callable[..., Isolated]) -> None:
    adapter = fake(run={"id": 3, "refusal": "no"})  # right in the first call of a process, and in no other
    assert adapter.ask(plain(causal=True)).unsupported == "no"
    assert "it answered 'run' 3" in str(adapter.ask(plain()).refusal)
    adapter.ask(plain())
    assert adapter.peer.starts == 2


def test_what_is_not_said_in_an_answer_has_a_default(fake: Callable[..., Isolated], tmp_path: Path) -> None:
    o, dq = torch.rand(1, 2, 3, 4), torch.rand(1, 2, 3, 4)
    write(tmp_path / "answer", {"o": Stored.of(o.numpy()), "dq": Stored.of(dq.numpy())})
    adapter = fake(run={"file": str(tmp_path / "answer")})
    answer = adapter.ask(plain(do=torch.ones(1, 2, 3, 4), wrt=("q", "k")))
    assert answer.refusal is None
    assert torch.equal(answer.o, o)
    assert answer.gradients["dq"] is not None
    assert torch.equal(answer.gradients["dq"], dq)
    assert answer.gradients["dk"] is None  # missing, which is for the judge to say
    assert answer.changed == answer.shares == ()
    assert answer.disturbed == {}


def test_an_error_is_one(fake: Callable[..., Isolated]) -> None:
    answer = fake(run={"error": {"line": "OutOfRange: no such key"}}).ask(plain())
    assert answer.refusal == "OutOfRange: no such key"
    assert answer.raised == "OutOfRange"
    assert answer.unsupported is None


def test_who_refuses_what_he_offers_breaks_a_promise(fake: Callable[..., Isolated]) -> None:
    adapter = fake(run={"refusal": "too hard"})
    answer = adapter.ask(plain())
    assert answer.unsupported is None
    assert str(answer.refusal).startswith("Unsupported: too hard; it is a plain call")
    not_offered = adapter.ask(plain(causal=True))
    assert not_offered.unsupported == "too hard"
    assert not_offered.refuses


def test_what_a_restriction_leaves_out_is_not_asked(fake: Callable[..., Isolated]) -> None:
    described = {"name": "fake", "offers": ["mha", "causal"], "restrictions": ["always_causal"]}
    answer = fake(describe={"implementations": [described]}, run="exit").ask(plain())
    assert str(answer.unsupported).startswith("always_causal: ")


def test_dtypes_that_are_said_are_those_that_are_promised(fake: Callable[..., Isolated]) -> None:
    described = {"name": "fake", "offers": ["mha"], "dtypes": ["float64", "bfloat16"]}
    adapter = fake(describe={"implementations": [described]}, run={"error": {"line": "no"}})
    assert meet(adapter, "cpu", {}, None, None).dtypes == ("float64", "bfloat16")
    assert meet(adapter, "cpu", {}, None, ("float32",)).dtypes == ("float32",)  # --impl-dtypes wins


def test_an_adapter_in_python_promises_dtypes_in_the_same_way() -> None:
    class Half(Adapter):
        dtypes: Iterable[Any] | None = ("bfloat16",)

        def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    assert meet(resolve(Half)[0], "cpu", {}, None, None).dtypes == ("bfloat16",)
    for dtypes in (("float8",), (torch.float16, torch.bfloat16)):
        Half.dtypes = dtypes
        with pytest.raises(ResolveError, match=r"Half\.dtypes names unknown (float8|torch\.bfloat16, torch\.float16); choose"):
            resolve(Half)


# WHAT A PEER GETS


def test_who_keeps_no_memory_gets_tensors_row_by_row(fake: Callable[..., Isolated], traffic: list[dict[str, Any]]) -> None:
    qkv = torch.rand(1, 5, 3, 2, 4)
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
    mask, bias = torch.ones(1, 1, 5, 5, dtype=torch.bool), torch.rand(1, 1, 1, 5).expand(1, 2, 5, 5)
    problem = Problem(q, k, v, mask=mask, bias=bias, do=torch.rand(1, 2, 4, 5).transpose(2, 3), wrt=("q",))
    fake().ask(problem)
    (request,) = (message for message in traffic if "file" in message)
    stored, metadata = read(Path(request["file"]))
    assert not metadata
    assert "same" not in request
    assert "free" not in request
    assert stored.keys() == {"q", "k", "v", "mask", "bias", "do"}
    for name, x in {**problem.inputs(), "do": problem.do}.items():
        assert torch.equal(torch.from_numpy(stored[name].array.copy()), x), name


def test_one_tensor_that_is_given_twice_is_told(fake: Callable[..., Isolated], traffic: list[dict[str, Any]]) -> None:
    adapter, problem = fake(), plain()
    adapter.ask(problem.replace(v=problem.k))
    x = torch.rand(1, 2, 5, 4)
    adapter.ask(Problem(x, x, x))
    same = [message.get("same") for message in traffic if "file" in message]
    assert same == [{"v": "k"}, {"k": "q", "v": "q"}]
