import asyncio
import gc
import threading
import weakref

import pytest

from plinth_api.model_service import PromptTemplate
from plinth_api.run import ServeCandidate
from plinth_workloads.errors import UserError
from plinth_workloads.models.model_load import LoadStep, ModelLoad
from plinth_workloads.serving import served_model
from plinth_workloads.serving.engine import GenerationFailed
from plinth_workloads.serving.served_model import ModelNotReady, ServedModel
from unit.plinth_workloads.serving.fake_engine import FakeEngine
from unit.plinth_workloads.serving.tiny_model import collect, make_request, until

pytestmark = pytest.mark.anyio

FIRST, SECOND = PromptTemplate(system="one"), PromptTemplate(system="two")


def make_served(engines, **options):
    """Serves `engines` by URI; an exception in place of an engine is raised, a list is used up one by one."""

    def make_engine(uri):
        outcome = engines[uri].pop(0) if isinstance(engines[uri], list) else engines[uri]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return ServedModel(make_engine, **options)


async def test_nothing_is_healthy_before_the_model_is_loaded():
    may_load = threading.Event()

    def make_engine(uri):
        may_load.wait()
        return FakeEngine()

    served = ServedModel(make_engine)
    served.set_target("m/1")

    with pytest.raises(ModelNotReady, match="m/1 is being loaded") as raised:
        await served.check_health()
    assert not raised.value.failed
    may_load.set()
    await served.wait_loaded()
    await served.check_health()
    assert served.uri == "m/1"


async def test_what_the_user_must_mend_is_tried_once_and_said():
    served = make_served({"m/1": [UserError("ModelNotFound", "there is no m/1")]})
    served.set_target("m/1")
    await served.wait_loaded()

    with pytest.raises(ModelNotReady, match="there is no m/1") as raised:
        await served.check_health()
    assert raised.value.failed


@pytest.mark.parametrize("passing", [OSError("no route"), UserError("TrackingUnavailable", "MLflow is away")])
async def test_what_may_pass_is_tried_again(passing):
    served = make_served({"m/1": [passing, passing, FakeEngine()]}, retry_seconds=(0.01,))
    served.set_target("m/1")
    await served.wait_loaded()

    await served.check_health()
    assert served.load_error is None


async def test_a_model_that_does_not_answer_does_not_go_into_service():
    good, bad = FakeEngine(), FakeEngine(healthy=False)
    served = make_served({"m/1": good, "m/2": bad})
    served.set_target("m/1")
    await served.wait_loaded()
    served.set_target("m/2")
    await served.wait_loaded()

    await served.check_health()
    assert (served.uri, served.target_uri) == ("m/1", "m/2")
    assert served.load_error == "the model does not answer: no token"
    assert bad.is_stopped
    assert not good.is_stopped


async def test_a_swap_lets_requests_finish_on_the_old_version():
    old, new = FakeEngine(("old", "old")), FakeEngine(("new",))
    old.gate.clear()
    served = make_served({"m/1": old, "m/2": new})
    served.set_target("m/1")
    await served.wait_loaded()

    async def ask():
        with served.lease() as version:
            return (await collect(version.engine, make_request("p")))[0]

    in_flight = asyncio.create_task(ask())
    await asyncio.sleep(0)
    served.set_target("m/2")
    await served.wait_loaded()
    assert await ask() == "new"
    assert not old.is_stopped
    old.gate.set()
    assert await in_flight == "oldold"
    await asyncio.sleep(0.01)
    assert old.is_stopped


async def test_another_prompt_of_the_version_in_service_counts_at_once():
    served = make_served({"m/1": FakeEngine()})
    served.set_target("m/1", FIRST)
    await served.wait_loaded()
    with served.lease() as version:
        assert version.prompt == FIRST
    engine, before = served.engine, served.prompt_hash
    served.set_target("m/1", SECOND)
    with served.lease() as version:
        assert (version.prompt, version.engine) == (SECOND, engine)
    assert served.prompt_hash not in ("", before)
    served.set_target("m/1")
    assert served.prompt_hash == ""


async def test_a_prompt_comes_into_service_with_its_version():
    may_load = threading.Event()

    def make_engine(uri):
        if uri == "m/2":
            may_load.wait()
        return FakeEngine()

    served = ServedModel(make_engine)
    served.set_target("m/1", FIRST)
    await served.wait_loaded()
    first = served.prompt_hash
    served.set_target("m/2", SECOND)
    await asyncio.sleep(0.01)
    assert served.prompt_hash == first
    may_load.set()
    await served.wait_loaded()
    with served.lease() as version:
        assert (version.uri, version.prompt) == ("m/2", SECOND)


async def test_going_back_to_the_version_in_service_loads_nothing():
    first = FakeEngine()
    may_load = threading.Event()

    def make_engine(uri):
        if uri == "m/1":
            return first
        may_load.wait()
        return FakeEngine()

    served = ServedModel(make_engine)
    served.set_target("m/1")
    await served.wait_loaded()
    served.set_target("m/2")
    await asyncio.sleep(0.01)
    served.set_target("m/1")
    may_load.set()
    await served.wait_loaded()

    assert served.engine is first
    assert (served.uri, served.load_error) == ("m/1", None)


async def test_an_engine_that_stops_producing_tokens_is_not_healthy():
    engine = FakeEngine()
    served = make_served({"m/1": engine})
    served.set_target("m/1")
    await served.wait_loaded()
    engine.healthy = False

    with pytest.raises(GenerationFailed):
        await served.check_health()


async def test_each_step_of_a_loading_is_told_and_nothing_after_it():
    told = []

    class Listening(ModelLoad):
        def tell(self, step):
            told.append(step)

    served = make_served({"m/1": FakeEngine(), "m/2": UserError("ModelLoadFailed", "damaged")}, load=Listening())
    for uri in ("m/1", "m/2"):
        served.set_target(uri)
        await served.wait_loaded()
    assert told == [LoadStep("warmingUp"), None, None]


class Cycle(FakeEngine):
    """Is not given back before it is looked for, as models are not."""

    def __init__(self):
        super().__init__()
        self.self = self


@pytest.fixture
def soon_let_go(monkeypatch):
    monkeypatch.setattr(served_model, "_LAST_HOLDERS_SECONDS", 0.5)


async def test_memory_is_looked_for_before_a_version_is_loaded_and_once_it_is_and_after_the_old_one_has_ended(
    soon_let_go,
):
    alive: dict[str, weakref.ref] = {}
    seen = []

    def make_engine(uri):
        engine = Cycle()
        alive[uri] = weakref.ref(engine)
        return engine

    def tidy():
        gc.collect()
        seen.append([uri for uri, engine in alive.items() if engine() is not None])

    served = ServedModel(make_engine, tidy=tidy)
    served.set_target("m/1")
    await served.wait_loaded()
    assert seen == [[], ["m/1"]]

    served.set_target("m/2")
    await served.wait_loaded()
    await until(lambda: seen[-1] == ["m/2"])
    assert seen[2:4] == [["m/1"], ["m/1", "m/2"]]


async def test_what_holds_a_version_for_a_moment_does_not_keep_it(soon_let_go):
    engines = {"m/1": Cycle(), "m/2": FakeEngine()}
    holder: list[FakeEngine] = [engines["m/1"]]
    alive = weakref.ref(holder[0])
    looked = []
    served = ServedModel(engines.pop, tidy=lambda: looked.append(gc.collect()))
    served.set_target("m/1")
    await served.wait_loaded()
    served.set_target("m/2")
    await served.wait_loaded()
    await until(lambda: len(looked) == 5)
    assert alive() is not None

    holder.clear()
    await until(lambda: alive() is None)


async def test_the_memory_of_a_version_that_is_no_longer_tried_is_given_back(soon_let_go):
    engines = {"m/1": FakeEngine(), "m/2": Cycle()}
    alive = weakref.ref(engines["m/2"])
    served = ServedModel(engines.pop, tidy=lambda: gc.collect())
    served.set_target("m/1")
    await served.wait_loaded()
    served.set_candidate(ServeCandidate(uri="m/2", weight=10))
    await served.candidate.wait_loaded()
    assert alive() is not None

    served.set_candidate(None)
    await until(lambda: alive() is None)
