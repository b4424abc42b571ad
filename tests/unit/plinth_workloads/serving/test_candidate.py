"""A version that is tried beside the one in service: its share of the requests, what is counted, how it ends."""

import asyncio
import threading

import pytest

from plinth_api.run import ServeCandidate
from plinth_workloads.errors import UserError
from plinth_workloads.serving.candidate import Split
from plinth_workloads.serving.room import Room
from plinth_workloads.serving.served_model import ModelNotReady, ServedModel
from unit.plinth_workloads.serving.asgi_service import service
from unit.plinth_workloads.serving.fake_encoder import FakeEncoder
from unit.plinth_workloads.serving.fake_engine import FakeEngine
from unit.plinth_workloads.serving.tiny_model import until

pytestmark = pytest.mark.anyio

OLD, NEW = "models:/m/1", "models:/m/2"


@pytest.mark.parametrize("weight", [1, 10, 33, 50, 99])
def test_any_hundred_requests_in_a_row_meet_the_weight_exactly(weight: int):
    split = Split()
    dealt = [split.is_candidates(weight) for _ in range(350)]
    assert {sum(dealt[start : start + 100]) for start in range(250)} == {weight}


@pytest.mark.parametrize("period", [2, 3, 4, 5])
def test_clients_with_a_rhythm_meet_both_versions(period: int):
    split = Split()
    dealt = [split.is_candidates(50) for _ in range(600)]
    for start in range(period):
        assert 0.4 < sum(dealt[start::period]) / len(dealt[start::period]) < 0.6


def of(engines):
    def make_engine(uri):
        if isinstance(engines[uri], Exception):
            raise engines[uri]
        return engines[uri]

    return make_engine


async def tried(served, weight=50, uri=NEW):
    served.set_candidate(ServeCandidate(uri=uri, weight=weight))
    await served.candidate.wait_loaded()


async def ask(client, times=1, **options):
    return [(await client.completions.create(model="m", prompt="p", **options)).choices[0].text for _ in range(times)]


async def candidate_of(http):
    return (await http.get("/-/state")).json().get("candidate")


async def test_a_share_of_the_requests_goes_to_it_and_both_are_counted():
    async with service(of({OLD: FakeEngine(("old",)), NEW: FakeEngine(("new", "new"))})) as (served, http, client):
        assert await candidate_of(http) is None
        await tried(served, weight=30)
        texts = await ask(client, 100)
        told = await candidate_of(http)
        assert (texts.count("newnew"), texts.count("old")) == (30, 70)
        assert (told["uri"], told["weight"], told["loaded"]) == (NEW, 30, True)
        assert (told["candidate"]["requests"], told["stable"]["requests"]) == (30, 70)
        assert told["candidate"]["firstToken"]["count"] == told["candidate"]["outputToken"]["count"] == 30
        assert (await http.get("/-/state")).json()["modelUri"] == OLD


async def test_counts_begin_anew_with_another_share_only():
    async with service(of({OLD: FakeEngine(), NEW: FakeEngine()})) as (served, http, client):
        await tried(served)
        await ask(client, 4)
        await tried(served)
        told = await candidate_of(http)
        assert told["stable"]["requests"] + told["candidate"]["requests"] == 4
        await tried(served, weight=99)
        told = await candidate_of(http)
        assert (told["stable"]["requests"], told["candidate"]["requests"], told["loaded"]) == (0, 0, True)


async def test_failures_and_time_outs_of_a_version_are_its_errors_and_bad_requests_are_not():
    stuck = FakeEngine()
    async with service(of({OLD: FakeEngine(), NEW: FakeEngine(fails_after=1)})) as (served, http, _):
        await tried(served)
        statuses = [
            (await http.post("/v1/completions", json={"model": "m", "prompt": "p"})).status_code for _ in range(10)
        ]
        told = await candidate_of(http)
        failed = statuses.count(500)
        assert 0 < failed < 10
        assert (told["candidate"]["requests"], told["candidate"]["errors"]) == (failed, failed)
        assert (told["stable"]["requests"], told["stable"]["errors"]) == (10 - failed, 0)
    async with service(of({OLD: FakeEngine(), NEW: stuck})) as (served, http, _client):
        stuck.gate.clear()
        whole = served.limits.model_copy(update={"max_prompt_tokens": 5})
        served.limits = whole.model_copy(update={"request_timeout_seconds": 0.01})
        await tried(served, weight=99)
        assert (await http.post("/v1/completions", json={"model": "m", "prompt": "p"})).status_code == 504
        served.limits = whole
        assert (await http.post("/v1/completions", json={"model": "m", "prompt": "p" * 6})).status_code == 400
        told = (await candidate_of(http))["candidate"]
        assert (told["requests"], told["errors"]) == (2, 1)
        stuck.gate.set()


async def test_a_client_that_goes_away_without_a_text_has_waited_so_long():
    stuck = FakeEngine(("only",))
    async with service(of({OLD: FakeEngine(), NEW: stuck})) as (served, http, client):
        stuck.gate.clear()
        await tried(served, weight=99)
        asking = asyncio.create_task(ask(client))
        await until(lambda: stuck.num_running == 1)
        assert (await candidate_of(http))["candidate"]["running"] == 1
        asking.cancel()
        await until(lambda: stuck.num_running == 0)
        told = (await candidate_of(http))["candidate"]
        assert told["running"] == 0
        assert (told["requests"], told["errors"], told["firstToken"]["count"]) == (1, 0, 1)
        assert told["firstToken"]["total"] > 0
        stuck.gate.set()


async def test_what_both_are_busy_with_is_told_together():
    old, new = FakeEngine(), FakeEngine()
    async with service(of({OLD: old, NEW: new})) as (served, http, _):
        assert served.stats() == old.stats()
        await tried(served)
        old.num_running, new.num_running = 2, 3
        assert (await http.get("/-/state")).json()["running"] == 5
        assert 'plinth_requests_running{model_name="m"} 5.0' in (await http.get("/metrics")).text
        old.num_running = new.num_running = 0


async def test_requests_for_adapters_stay_with_the_version_in_service():
    old, new = FakeEngine(("old",)), FakeEngine(("new",))
    async with service(of({OLD: old, NEW: new})) as (served, _, client):
        served.adapters._fetch = lambda uri, model_uri: uri
        served.set_adapters({"docs": "models:/docs/1"})
        await until(lambda: "docs" in old.adapters)
        await tried(served, weight=99)
        for _ in range(5):
            await client.completions.create(model="docs", prompt="p")
        assert (len(old.requests), len(new.requests), new.adapters) == (5, 0, {})


async def test_texts_that_are_read_are_dealt_out_as_well():
    old, new = FakeEncoder(), FakeEncoder()
    async with service(of({OLD: old, NEW: new})) as (served, http, client):
        await tried(served)
        for _ in range(10):
            await client.embeddings.create(model="m", input="text")
        told = await candidate_of(http)
        assert told["candidate"]["firstToken"]["count"] == len(new.rows) > 0
        assert told["stable"]["firstToken"]["count"] == len(old.rows) == 10 - len(new.rows)


async def test_a_version_in_which_all_trust_is_put_takes_over_without_being_loaded_again():
    made = []
    engines = {OLD: FakeEngine(("old",)), NEW: FakeEngine(("new",))}

    def make_engine(uri):
        made.append(uri)
        return engines[uri]

    async with service(make_engine) as (served, http, client):
        await tried(served)
        served.set_target(NEW)
        served.set_candidate(None)
        await served.wait_loaded()
        assert await ask(client, 3) == ["new"] * 3
        assert (made, served.uri) == ([OLD, NEW], NEW)
        assert await candidate_of(http) is None
        await until(lambda: engines[OLD].is_stopped)
        assert not engines[NEW].is_stopped


async def test_one_that_is_still_loading_takes_over_once_it_is_loaded():
    may_load, made = threading.Event(), []

    def make_engine(uri):
        made.append(uri)
        if uri == NEW:
            may_load.wait()
        return FakeEngine((uri,))

    async with service(make_engine) as (served, _, client):
        served.set_candidate(ServeCandidate(uri=NEW, weight=50))
        await until(lambda: NEW in made)
        assert await ask(client) == [OLD]
        served.set_target(NEW)
        served.set_candidate(None)
        may_load.set()
        await served.wait_loaded()
        assert await ask(client) == [NEW]
        assert made == [OLD, NEW]


async def test_one_that_is_taken_back_finishes_what_it_answers():
    old, new = FakeEngine(("old",)), FakeEngine(("new",))
    async with service(of({OLD: old, NEW: new})) as (served, _http, client):
        new.gate.clear()
        await tried(served, weight=99)
        asking = asyncio.create_task(ask(client))
        await until(lambda: new.num_running == 1)
        served.set_candidate(None)
        assert await ask(client, 3) == ["old"] * 3
        assert not new.is_stopped
        new.gate.set()
        assert await asking == ["new"]
        await until(lambda: new.is_stopped)


async def test_one_that_is_taken_back_while_it_loads_is_given_back():
    may_load = threading.Event()
    engines = {OLD: FakeEngine(), NEW: FakeEngine()}

    def make_engine(uri):
        if uri == NEW:
            may_load.wait()
        return engines[uri]

    async with service(make_engine) as (served, http, client):
        served.set_candidate(ServeCandidate(uri=NEW, weight=50))
        await asyncio.sleep(0.01)
        served.set_candidate(None)
        may_load.set()
        await ask(client, 3)
        assert await candidate_of(http) is None
        assert not engines[NEW].requests


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        pytest.param(UserError("ModelLoadFailed", "it is damaged"), "it is damaged", id="damaged"),
        pytest.param(FakeEngine(healthy=False), "does not answer", id="silent"),
        pytest.param(FakeEncoder(), "it is made to embed, and models:/m/1 to generate", id="of another task"),
    ],
)
async def test_one_that_cannot_be_served_is_told_and_the_other_answers(engine, words: str):
    async with service(of({OLD: FakeEngine(("old",)), NEW: engine})) as (served, http, client):
        await tried(served)
        told = await candidate_of(http)
        assert (told["loaded"], told["failed"]) == (False, True)
        assert words in told["loadError"]
        assert await ask(client, 3) == ["old"] * 3
        assert served.load_error is None


async def test_one_that_does_not_fit_beside_the_other_is_refused_with_the_numbers():
    served = ServedModel(of({OLD: FakeEngine()}), room_for=lambda uri: Room(3 * 2**30, 2**30))
    served.set_target(OLD)
    await served.wait_loaded()
    await tried(served)
    state = served.candidate.state()
    assert state is not None
    assert state.failed
    assert f"{NEW} needs 3.00 GiB beside {OLD}, and 1.00 GiB are free" in (state.load_error or "")
    assert served.held is None
    with served.lease() as version:
        assert version.uri == OLD


async def test_nothing_is_tried_before_there_is_something_to_fall_back_on():
    served = ServedModel(of({OLD: UserError("ModelNotFound", "there is no m/1"), NEW: FakeEngine()}))
    served.set_target(OLD)
    await served.wait_loaded()
    await tried(served)
    with pytest.raises(ModelNotReady, match="there is no m/1"):
        await served.check_health()
