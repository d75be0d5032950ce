"""Tests of ray_pipeline.sandbox.serving."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from ray_pipeline import recipe as recipes
from ray_pipeline import storage
from ray_pipeline.errors import RecipeError
from ray_pipeline.gemini import client
from ray_pipeline.gemini.client import Client, Reply, Unavailable
from ray_pipeline.gemini.prompts import Item
from ray_pipeline.recipe import Recipe
from ray_pipeline.sandbox import serving

SHOP = {
    "train": ["sandbox://shop/train_QC.txt"],
    "dev": ["sandbox://shop/labels/dev_QC.txt"],
    "test": ["sandbox://shop/test_QC.txt"],
}


def shop_recipe(**changes: Any) -> Recipe:
    sizes = {"train_rows": 60, "dev_rows": 10, "test_rows": 12} | changes.pop("sandbox", {})
    return recipes.validate({"name": "shop", "task": "QC", "data": SHOP, "sandbox": sizes, **changes}, "test")


def lines(url: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in storage.read_bytes(url).decode().splitlines()]


def contents(folder: str) -> dict[str, str]:
    """Hash of every file below a folder by name."""
    return {url.removeprefix(folder): storage.content_hash(url) for url in storage.list_files(folder)}


def test_the_shops_files_are_written_below_the_working_folder(place: str) -> None:
    data = serving.with_shop(shop_recipe(), place).data
    (train,), (dev,), (test,) = data.train, data.dev, data.test
    assert all(url.startswith(f"{place}/sandbox/shop-") for url in (train, dev, test))
    assert [len(lines(url)) for url in (train, dev, test)] == [60, 10, 12]
    assert "label" in lines(train)[0] and "label" in lines(dev)[0]


def test_files_that_are_there_are_used_again(place: str) -> None:
    (train,) = serving.with_shop(shop_recipe(), place).data.train
    storage.write_bytes(train, b"touched")
    assert serving.with_shop(shop_recipe(), place).data.train == [train]
    assert storage.read_bytes(train) == b"touched"


def test_files_that_a_killed_run_left_are_written_again(place: str) -> None:
    (train,) = serving.with_shop(shop_recipe(), place).data.train
    folder = train.removesuffix("/train_QC.txt")
    before = contents(folder)
    storage.remove_tree(folder)
    storage.write_bytes(train, b"half")
    serving.with_shop(shop_recipe(), place)
    assert contents(folder) == before


def test_another_shop_has_another_folder(tmp_path: Any) -> None:
    sizes: list[dict[str, int]] = [{}, {"seed": 8}, {"train_rows": 61}, {"dev_rows": 11}, {"test_rows": 13}]
    found = [serving.with_shop(shop_recipe(sandbox=size), str(tmp_path)).data.train[0] for size in sizes]
    assert len(set(found)) == len(sizes)


def test_own_files_stay_as_they_are(make_recipe: Callable[..., Recipe], tmp_path: Any) -> None:
    own = make_recipe()
    assert serving.with_shop(own, str(tmp_path / "work")) == own
    assert not (tmp_path / "work").exists()
    mixed = shop_recipe(data={**SHOP, "train": ["sandbox://shop/train_QC.txt", "/my/train.txt"]})
    assert serving.with_shop(mixed, str(tmp_path)).data.train[1] == "/my/train.txt"


def test_an_unknown_sandbox_path(tmp_path: Any) -> None:
    wrong = shop_recipe(data={**SHOP, "train": ["sandbox://stop/train_QC.txt"]})
    with pytest.raises(RecipeError, match="sandbox://stop/train_QC.txt is not known; .* sandbox://shop/train_QC.txt"):
        serving.with_shop(wrong, str(tmp_path))


def ask(recipe: Recipe) -> object:
    async def run() -> object:
        client = Client(recipe.gemini, "translate", ())
        try:
            return await client.ask([Item("red shoes", "en", "de")])
        finally:
            await client.close()

    return asyncio.run(run())


def test_stand_ins_are_named_and_nothing_else() -> None:
    own = {"train": {"model": "a/b"}, "embed": {"model": "a/b"}}
    assert serving.notice(shop_recipe(**own)) is None
    trial = serving.notice(
        shop_recipe(train={"model": "sandbox://base"}, embed={"model": "a/b"}, gemini={"base_url": "sandbox://"})
    )
    assert trial is not None and "stood in for gemini.base_url, train.model:" in trial


def test_a_local_gemini_for_as_long_as_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "a key of the user's own")
    with serving.gemini(shop_recipe(gemini={"base_url": "sandbox://"})) as served:
        assert served.gemini.base_url is not None and served.gemini.base_url.startswith("http://127.0.0.1:")
        reply = ask(served)
        assert isinstance(reply, Reply)
        (text,) = reply.answers.values()
        assert text.startswith("rot"), "it knows the shop's words"
    assert isinstance(ask(served), Unavailable)


def test_another_gemini_is_left_alone() -> None:
    for base_url in (None, "http://example.invalid"):
        recipe = shop_recipe(gemini={"base_url": base_url})
        with serving.gemini(recipe) as served:
            assert served == recipe


def test_the_local_gemini_is_no_part_of_the_recipes_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray_pipeline import languages, translate

    monkeypatch.setenv("GEMINI_API_KEY", "x")
    recipe = shop_recipe(gemini={"base_url": "sandbox://"}, translate={"languages": ["de"]})
    with serving.gemini(recipe) as served:
        for stage in (languages, translate):
            assert stage.config(served) == stage.config(recipe)


def test_the_local_gemini_needs_no_key_and_gets_none_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = shop_recipe(gemini={"base_url": "sandbox://"})
    for own in ("", "a key of the user's own"):
        for name in client.KEY_VARIABLES:
            monkeypatch.setenv(name, own)
        with serving.gemini(recipe) as served:
            assert client.has_key(served.gemini) and client.api_key(served.gemini) == client.SANDBOX_KEY
            assert isinstance(ask(served), Reply)


def test_the_nodes_of_a_cluster_reach_the_local_gemini(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.2")
    recipe = shop_recipe(gemini={"base_url": "sandbox://"}, runtime={"address": "auto"})
    with serving.gemini(recipe) as served:
        assert (served.gemini.base_url or "").startswith("http://127.0.0.2:") and isinstance(ask(served), Reply)
