"""Names from outside the package."""

from importlib.metadata import EntryPoint

import flax.linen as nn
import pytest

import jaxseg
from jaxseg.utils import registry


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Nothing that a test registers outlives it."""
    tables = {kind: dict(table) for kind, table in registry._REGISTERED.items()}
    monkeypatch.setattr(registry, "_REGISTERED", tables)


class Plus(nn.Module):
    """A skip: the sum of both maps."""

    dtype: object = None
    param_dtype: object = None

    def __call__(self, x, level, *, train):
        return x + level


def test_a_registered_name_is_found_and_listed():
    assert jaxseg.register("skip", "plus")(Plus) is Plus
    assert registry.lookup("skip", "plus") is Plus
    assert "plus" in jaxseg.list_skips()


def test_a_name_is_given_once():
    jaxseg.register("skip", "plus")(Plus)
    jaxseg.register("skip", "plus")(Plus)  # the same again, as when a file runs twice
    with pytest.raises(ValueError, match="'plus' exists already"):
        jaxseg.register("skip", "plus")(nn.Dense)
    with pytest.raises(ValueError, match="'concat' exists already"):
        jaxseg.register("skip", "concat")(Plus)
    assert registry.lookup("skip", "plus") is Plus


def test_unknown_names_and_kinds_are_suggested():
    with pytest.raises(registry.UnknownNameError, match="did you mean 'concat'") as e:
        registry.lookup("skip", "conct")
    assert (e.value.kind, e.value.name) == ("skip", "conct")
    with pytest.raises(ValueError, match="did you mean 'skip'"):
        jaxseg.register("skips", "plus")


def test_an_installed_package_is_found_and_imported_only_when_it_is_used(monkeypatch):
    loaded = []

    class Counting(EntryPoint):
        def load(self):
            loaded.append(self.name)
            return Plus

    def entry_points(*, group, name=None):
        assert group == "jaxseg.skip"
        return [Counting("installed", "x:y", group)] if name != "other" else []

    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert "installed" in registry.names("skip")
    assert not loaded
    assert registry.lookup("skip", "installed") is Plus
    assert loaded == ["installed"]
