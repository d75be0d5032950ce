"""Puts the sandbox in the place of what a recipe names by `sandbox://`: the sample shop's files, the Gemini server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_pipeline import storage
from ray_pipeline.errors import RecipeError
from ray_pipeline.recipe import SPLITS, Recipe
from ray_pipeline.text import stable_id

SCHEME = "sandbox://"
SHOP = "sandbox://shop/"


def notice(recipe: Recipe) -> str | None:
    """What a report says of the stand-ins that a recipe names; null where it names none."""
    models = {"gemini.base_url": recipe.gemini.base_url, "train.model": recipe.train.model}
    models |= {"embed.model": recipe.embed.model}
    named = [field for field, value in models.items() if (value or "").startswith(SCHEME)]
    if not named:
        return None
    return (
        f"The sandbox stood in for {', '.join(named)}: figures, verdicts and dollars that depend on it show that the "
        "parts work together, and nothing else."
    )


def with_shop(recipe: Recipe, workdir: str) -> Recipe:
    """The recipe with `sandbox://shop/…` replaced by files below the working folder, written if they are not there."""
    named = [*recipe.data.train, *recipe.data.dev, *recipe.data.test]
    if not any(path.startswith(SCHEME) for path in named):
        return recipe
    wrong = [path for path in named if path.startswith(SCHEME) and not path.startswith(SHOP)]
    if wrong:
        raise RecipeError(f"data: {wrong[0]} is not known; the sample shop's files are {SHOP}train_QC.txt and so on")
    folder = _write_shop(recipe, workdir)
    paths = {name: [_placed(path, folder) for path in getattr(recipe.data, name)] for name in SPLITS}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=paths)})


def _placed(path: str, folder: str) -> str:
    return storage.join(folder, path.removeprefix(SHOP)) if path.startswith(SHOP) else path


def _write_shop(recipe: Recipe, workdir: str) -> str:
    import tempfile

    from ray_pipeline.sandbox.shop import VERSION, ShopSpec, write_shop

    sandbox = recipe.sandbox
    spec = ShopSpec(sandbox.seed, sandbox.train_rows, sandbox.dev_rows, sandbox.test_rows)
    folder = storage.join(workdir, "sandbox", f"shop-{stable_id(repr(spec), VERSION)}")
    if not storage.exists(storage.join(folder, "finished")):
        with tempfile.TemporaryDirectory() as local:
            write_shop(spec, Path(local))
            storage.upload_folder(Path(local), folder)
        storage.write_bytes(storage.join(folder, "finished"), b"")
    return folder


@contextmanager
def gemini(recipe: Recipe) -> Iterator[Recipe]:
    """The recipe with a local Gemini server's address in place of `sandbox://`, for as long as the context lasts.

    A cluster's nodes can reach it; without a cluster nobody but this machine can.
    """
    if not (recipe.gemini.base_url or "").startswith(SCHEME):
        yield recipe
        return
    from ray_pipeline.sandbox.dictionary import Dictionary
    from ray_pipeline.sandbox.gemini_server import GeminiServer

    with GeminiServer(Dictionary.from_lexicon(), host=_host(recipe)) as server:
        yield recipe.model_copy(
            update={"gemini": recipe.gemini.model_copy(update={"base_url": server.url, "sandbox": True})}
        )


def _host(recipe: Recipe) -> str:
    import ray

    return "127.0.0.1" if recipe.runtime.address == "local" else str(ray.util.get_node_ip_address())
