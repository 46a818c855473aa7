"""
Connections and what becomes of them.
"""

import asyncio
import json

import pytest
from airflow.sdk import Connection
from airflow_provider.stand_ins import connection

from airflow_provider_milkrun import hooks
from airflow_provider_milkrun.hooks import Engine, MilkrunHook


@pytest.mark.parametrize(
    ("parts", "url"),
    [
        ({"host": "http://engine:8787"}, "http://engine:8787"),
        ({"host": "https://engine/"}, "https://engine"),
        ({"host": "engine", "port": 8787}, "http://engine:8787"),
        ({"host": "engine", "port": 443, "schema": "https"}, "https://engine"),
        ({"host": "http://engine", "port": 8787}, "http://engine:8787"),
        ({}, None),
    ],
)
def test_a_host_is_a_url_or_its_parts(parts, url):
    """The form has one field; a connection's URI has parts."""
    assert url == Engine.of(Connection(conn_id="c", conn_type="milkrun", **parts), {}).url


def test_the_key_never_shows():
    """An engine may end up in a log."""
    engine = Engine.of(Connection(conn_id="c", conn_type="milkrun", host="http://e", password="mk_secret_123"), {})

    assert engine.api_key == "mk_secret_123"
    assert "mk_secret_123" not in repr(engine)


def test_the_connection_can_be_tested(engine):
    """The form's button asks for what needs the key, too."""
    works, message = MilkrunHook().test_connection()

    assert works, message
    assert "smollm2-135m-instruct" in message


def test_a_wrong_key_is_told(engine, monkeypatch):
    """Health alone needs no key, and would look well."""
    wrong = json.dumps({"conn_type": "milkrun", "host": engine.url, "password": "mk_wrong_key_123"})
    monkeypatch.setenv("AIRFLOW_CONN_MILKRUN_DEFAULT", wrong)

    works, message = MilkrunHook().test_connection()

    assert not works
    assert "AuthenticationError" in message


def test_both_clients_reach_the_engine(engine):
    """One blocking, one awaited."""

    async def models():
        async with await MilkrunHook().get_async_client() as client:
            return [model.name for model in await client.models()]

    with MilkrunHook().get_client() as client:
        assert [model.name for model in client.models()] == asyncio.run(models())


def test_many_triggers_look_up_once(engine, monkeypatch):
    """A thousand triggers that start together must not ask Airflow a thousand times."""
    asked = []
    look_up = hooks.get_async_connection

    async def counted(conn_id):
        asked.append(conn_id)
        await asyncio.sleep(0.01)
        return await look_up(conn_id)

    monkeypatch.setattr(hooks, "get_async_connection", counted)

    async def many():
        return await asyncio.gather(*(MilkrunHook().aengine() for _ in range(50)))

    assert {engine.url} == {each.url for each in asyncio.run(many())}
    assert ["milkrun_default"] == asked


def test_a_failed_lookup_is_not_kept(engine, monkeypatch):
    """A connection that is made a moment later is found."""

    async def twice():
        monkeypatch.delenv("AIRFLOW_CONN_MILKRUN_DEFAULT")
        with pytest.raises(Exception, match="milkrun_default"):
            await MilkrunHook().aengine()
        monkeypatch.setenv("AIRFLOW_CONN_MILKRUN_DEFAULT", connection(engine))
        return await MilkrunHook().aengine()

    assert engine.url == asyncio.run(twice()).url


def test_links_go_where_a_browser_can(engine, client, monkeypatch):
    """The engine may have another address inside than outside."""
    monkeypatch.setenv("AIRFLOW_CONN_MILKRUN_DEFAULT", connection(engine, public_url="https://milkrun.example/"))
    job = client.submit(["hello"]).job

    page = MilkrunHook().engine().page(job)

    assert page.startswith("https://milkrun.example/")
    assert job.id in page
