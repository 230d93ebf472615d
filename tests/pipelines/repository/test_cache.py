"""Whether DVC keeps a second copy of what stages put out."""

import pytest

from pipelines.repository.cache import keeps_copies


@pytest.mark.parametrize(
    ("text", "copies"),
    [
        ("", True),
        ("[cache]\n    type = copy\n", True),
        ('[cache]\n    type = "hardlink,symlink"\n', False),
        ("[cache]\n    type = symlink\n", False),
        ("[core]\n    autostage = true\n", True),
    ],
)
def test_by_its_configuration(tmp_path, text, copies):
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text(text)
    assert keeps_copies(tmp_path) == copies


def test_the_local_configuration_counts_last(tmp_path):
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[cache]\n    type = hardlink\n")
    (tmp_path / ".dvc/config.local").write_text("[cache]\n    type = copy\n")
    assert keeps_copies(tmp_path)
