import jax
import pytest

from jaxseg.parallel.compilation import enable_compilation_cache


@pytest.fixture(autouse=True)
def unconfigured():
    """No directory is chosen; what the test chooses is undone."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_the_cache_lies_in_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert enable_compilation_cache() == tmp_path / "jaxseg" / "xla"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "jaxseg" / "xla")
    assert (tmp_path / "jaxseg" / "xla").is_dir()


def test_without_xdg_it_lies_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert enable_compilation_cache() == tmp_path / ".cache" / "jaxseg" / "xla"


@pytest.mark.parametrize("choice", ["/somewhere/else", ""])
def test_the_users_choice_stands(choice):
    jax.config.update("jax_compilation_cache_dir", choice)
    assert enable_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir == choice


def test_where_nothing_can_be_written_there_is_no_cache(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert enable_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir is None
