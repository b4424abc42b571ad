"""The files of the page: open to everybody, complete, and under a policy that lets them reach nobody else."""

import re

import pytest

from plinth_workloads.serving.api_keys import ApiKeys
from plinth_workloads.serving.chat_page import PAGE_PATHS
from unit.plinth_workloads.serving.asgi_service import service
from unit.plinth_workloads.serving.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio

TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", "/": "text/html"}
NAMESPACE_OF_SVG = "http://www.w3.org/2000/svg"


def media_type(path):
    return next(kind for suffix, kind in TYPES.items() if path.endswith(suffix))


@pytest.fixture
async def files(tmp_path):
    """What a browser without a key gets from a service that asks for one."""
    async with service(FakeEngine(), keys=ApiKeys(tmp_path)) as (_, http, _):
        return {path: await http.get(path) for path in PAGE_PATHS}


async def test_the_page_and_its_files_need_no_key(files):
    assert {"/", "/page/main.js", "/page/style.css", "/page/icon.svg"} <= set(files)
    assert {path: answer.status_code for path, answer in files.items()} == dict.fromkeys(files, 200)
    assert {path: answer.headers["Content-Type"].partition(";")[0] for path, answer in files.items()} == {
        path: media_type(path) for path in files
    }


async def test_what_is_not_a_file_of_the_page_needs_a_key(tmp_path):
    async with service(FakeEngine(), keys=ApiKeys(tmp_path)) as (_, http, _):
        for path in ("/page", "/page/", "/page/../chat_page.py", "/page/index.html", "/v1/models"):
            assert (await http.get(path)).status_code == 401


async def test_every_file_comes_under_a_policy_that_lets_it_run_and_reach_nothing_but_this_service(files):
    for answer in files.values():
        policy = answer.headers["Content-Security-Policy"]
        rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
        assert rules.pop("default-src") == "'none'"
        assert rules["require-trusted-types-for"] == "'script'"
        assert set(rules.values()) == {"'self'", "'none'", "'script'"}
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"


async def test_no_file_names_another_place_or_an_absolute_one(files):
    for path, answer in files.items():
        text = answer.text.replace(NAMESPACE_OF_SVG, "")
        assert "//" not in re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE), path
        assert not re.search(r"""(?:src|href|from|url|fetch\w*|stream\w*)[=(\s]+["'`]/""", text), path


async def test_every_file_that_the_page_names_is_there(files):
    named = {f"/{name}" for name in re.findall(r'(?:src|href)="([^"]+)"', files["/"].text)}
    for path, answer in files.items():
        named |= {f"/page/{name}" for name in re.findall(r'from "\./([^"]+)"', answer.text) if path.endswith(".js")}
    assert named == set(files) - {"/"}


async def test_probes_of_load_balancers_may_ask_for_the_head_alone():
    async with service(FakeEngine()) as (_, http, _):
        head, whole = await http.head("/"), await http.get("/")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == str(len(whole.content))
