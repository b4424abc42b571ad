"""A version for which there is no room beside the one in service: requests wait while it takes its place."""

import asyncio
import threading
import weakref
from contextlib import asynccontextmanager

import pytest
import torch

from plinth_api.run import ServeRun
from plinth_workloads.errors import UserError
from plinth_workloads.models.model_load import ModelLoad
from plinth_workloads.serving.app import _room_for
from plinth_workloads.serving.replica_memory import tidy_memory
from plinth_workloads.serving.room import Room, needed_bytes
from plinth_workloads.serving.served_model import ServedModel
from unit.plinth_workloads.serving.asgi_service import service, texts_until
from unit.plinth_workloads.serving.fake_engine import FakeEngine
from unit.plinth_workloads.serving.test_app import ARGS, saved
from unit.plinth_workloads.serving.tiny_model import greedy_text, make_engine, make_model, until

pytestmark = pytest.mark.anyio

OLD, NEW = "models:/m/1", "models:/m/2"


class Memory:
    """Takes one engine at a time; outcomes by URI, an exception is raised."""

    def __init__(self, **outcomes):
        self.outcomes = {f"models:/m/{name[1:]}": outcome for name, outcome in outcomes.items()}
        self.loaded: list[str] = []
        self.engines: weakref.WeakSet[FakeEngine] = weakref.WeakSet()
        self.may_load = threading.Event()
        self.may_load.set()

    def make_engine(self, uri):
        assert all(engine.is_stopped for engine in self.engines), "two at once"
        self.loaded.append(uri)
        self.may_load.wait()
        outcome = self.outcomes.get(uri)
        outcome = outcome.pop(0) if isinstance(outcome, list) else outcome
        if isinstance(outcome, Exception):
            raise outcome
        engine = FakeEngine((uri,))
        self.engines.add(engine)
        return engine

    def answer_all(self):
        for engine in self.engines:
            engine.gate.set()

    def room_for(self, uri):
        return Room(2, 1)


async def full(memory, **options):
    """Version 1 in service, in a memory that takes no second one."""
    served = ServedModel(memory.make_engine, room_for=memory.room_for, **options)
    served.set_target(OLD)
    await served.wait_loaded()
    return served


def ask(client):
    return client.completions.create(model="m", prompt="p")


@asynccontextmanager
async def held_service():
    """A new version waits for the one in service, which works on a request: memory, state, clients and that request."""
    memory = Memory()
    async with service(memory.make_engine, room_for=memory.room_for) as (served, http, client):
        (old,) = memory.engines
        old.gate.clear()
        running = asyncio.create_task(ask(client))
        await until(lambda: old.num_running == 1)
        served.set_target(NEW)
        await until(lambda: served.held is not None)
        yield memory, served, http, client, running


async def test_requests_wait_until_the_new_version_has_taken_the_place_of_the_old_one():
    async with held_service() as (memory, served, http, client, running):
        waiting = [asyncio.create_task(ask(client)) for _ in range(5)]
        ready, live = await http.get("/health/ready"), await http.get("/health/live")
        state = (await http.get("/-/state")).json()
        held = f"requests wait while {NEW} takes the place of {OLD}"
        assert (ready.status_code, ready.json()) == (503, {"status": "held", "message": held})
        assert (live.status_code, state["held"], state["modelUri"]) == (200, held, OLD)
        assert (memory.loaded, [task.done() for task in waiting]) == ([OLD], [False] * 5)
        memory.answer_all()
        assert (await running).choices[0].text == OLD
        assert [(await task).choices[0].text for task in waiting] == [NEW] * 5
        assert (memory.loaded, served.held, served.load_error) == ([OLD, NEW], None, None)
        assert (await http.get("/health/ready")).status_code == 200


async def test_a_version_that_fails_in_the_place_of_another_gives_it_back():
    memory = Memory(v2=UserError("ModelLoadFailed", "it is damaged"))
    served = await full(memory)
    served.set_target(NEW)
    await served.wait_loaded()
    assert (memory.loaded, served.uri, served.held) == ([OLD, NEW, OLD], OLD, None)
    assert served.load_error == f"it is damaged; {OLD} answers again"
    # As it had been before, the failure stays told, and nothing is loaded again.
    served.set_target(OLD)
    assert served.load_error is None
    await served.check_health()


async def test_what_may_pass_is_not_waited_for_while_nobody_answers():
    memory = Memory(v2=OSError("no route"))
    served = await full(memory, retry_seconds=(60.0,))
    served.set_target(NEW)
    await served.wait_loaded()
    assert (served.uri, served.load_error) == (OLD, f"OSError: no route; {OLD} answers again")


async def test_the_old_version_is_tried_until_it_answers_again():
    memory = Memory(v2=UserError("ModelLoadFailed", "it is damaged"))
    served = await full(memory, retry_seconds=(0.0,))
    memory.outcomes[OLD] = [OSError("no route"), OSError("no route"), None]
    served.set_target(NEW)
    await served.wait_loaded()
    assert (memory.loaded, served.uri) == ([OLD, NEW, OLD, OLD, OLD], OLD)


async def test_where_neither_can_be_loaded_requests_are_told():
    memory = Memory(v2=UserError("ModelLoadFailed", "it is damaged"))
    async with service(memory.make_engine, room_for=memory.room_for) as (served, http, _):
        memory.outcomes[OLD] = UserError("ModelNotFound", "it is gone")
        served.set_target(NEW)
        await served.wait_loaded()
        answer = await http.post("/v1/completions", json={"model": "m", "prompt": "p"})
        assert (answer.status_code, served.held) == (503, None)
        assert f"it is damaged; {OLD} cannot be loaded any more" in answer.json()["error"]["message"]


async def test_a_request_that_has_waited_for_half_its_time_is_sent_away_to_come_again():
    async with held_service() as (memory, served, http, _, running):
        served.limits = served.limits.model_copy(update={"request_timeout_seconds": 0.2})
        answer = await http.post("/v1/completions", json={"model": "m", "prompt": "p"})
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert "takes the place of" in answer.json()["error"]["message"]
        memory.answer_all()
        await running
        await served.wait_loaded()


async def test_a_version_that_is_not_wanted_any_more_leaves_the_old_one_in_its_place():
    memory = Memory()
    served = await full(memory)
    with served.lease():
        served.set_target(NEW)
        await until(lambda: served.held is not None)
        served.set_target(OLD)
        await until(lambda: served.held is None)
    await served.check_health()
    assert (memory.loaded, served.uri) == ([OLD], OLD)


async def test_a_third_version_may_follow_while_the_second_takes_the_place_of_the_first():
    memory = Memory(v3=UserError("ModelNotFound", "there is no m/3"))
    served = await full(memory)
    memory.may_load.clear()
    served.set_target(NEW)
    await until(lambda: NEW in memory.loaded)
    served.set_target("models:/m/3")
    memory.may_load.set()
    await served.wait_loaded()
    assert (served.uri, served.held) == (OLD, None)
    assert served.load_error == f"there is no m/3; {OLD} answers again"


async def test_what_was_in_use_before_is_waited_for_before_memory_is_called_full():
    engines = {uri: FakeEngine((uri,)) for uri in (OLD, NEW, "models:/m/3")}
    served = ServedModel(engines.__getitem__, room_for=lambda uri: Room(2, 2 if engines[OLD].is_stopped else 1))
    served._room_for, room_for = None, served._room_for
    served.set_target(OLD)
    await served.wait_loaded()
    with served.lease():
        served.set_target(NEW)
        await served.wait_loaded()
        served._room_for = room_for
        served.set_target("models:/m/3")
        await asyncio.sleep(0.02)
        assert (served.uri, served.held) == (NEW, None)
    await served.wait_loaded()
    assert served.uri == "models:/m/3"


async def test_a_real_model_gives_its_memory_back_before_the_next_one_takes_any():
    weights, alive = [], []

    def make_version(uri):
        alive.append(sum(ref() is not None for ref in weights))
        model = make_model(seed=int(uri[-1]))
        weights.append(weakref.ref(model.model.embed_tokens.weight))
        return make_engine(model)

    async with service(make_version, room_for=lambda uri: Room(2, 1), tidy=tidy_memory) as (served, _, client):
        texts = await texts_until(served, client, NEW, max_tokens=10)
        assert set(texts) == {greedy_text(make_model(seed=seed), "abc", 10) for seed in (1, 2)}
        assert alive == [0, 0]


def test_a_model_needs_what_its_weights_take_in_float32_and_a_quarter_more(tmp_path):
    uri = saved(make_model().to(torch.bfloat16), tmp_path)
    size = sum(parameter.numel() for parameter in make_model().parameters())
    assert needed_bytes(tmp_path) == 5 * size
    room = _room_for(ServeRun.model_validate(ARGS), ModelLoad(), uri)
    assert (room.needed_bytes, room.lacking("new", "old")) == (5 * size, None)
    assert room.free_bytes > 2**20
