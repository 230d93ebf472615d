"""No message shows a password."""

import pytest

from pipelines.tracking.masking import masked

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://lab:s3cr3t@server:5000", "http://lab:***@server:5000"),
        ("postgresql+psycopg2://lab:s3cr3t@db/mlflow", "postgresql+psycopg2://lab:***@db/mlflow"),
        ("http://lab:a@s3cr3t/b:c@server/x", "http://lab:***@server/x"),  # nothing is encoded in it
        ("http://me@here.org:s3cr3t@server", "http://***@here.org:***@server"),
        ("redis://:s3cr3t@server", "redis://:***@server"),
        ("https://s3cr3t@server/path", "https://***@server/path"),
        (
            "postgresql://db/mlflow?user=lab&password=s3cr3t&sslmode=no",
            "postgresql://db/mlflow?user=lab&password=***&sslmode=no",
        ),
        (
            "error: API request to http://lab:s3cr3t@server/api failed, as did postgresql://lab:s3cr3t@db/x: refused",
            "error: API request to http://lab:***@server/api failed, as did postgresql://lab:***@db/x: refused",
        ),
        ("['http://a:s3cr3t@b','http://c:s3cr3t@d']", "['http://a:***@b','http://c:***@d']"),
    ],
)
def test_a_password_in_a_url_is_hidden_and_the_rest_stands(text, shown):
    assert masked(text) == shown and SECRET not in masked(text)


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///mlflow.db",
        "http://127.0.0.1:5000/#/experiments/1",
        "postgresql://lab@127.0.0.1:5432/mlflow",
        "git@server:group/repo",
        "step 3: loss@va-pi",
    ],
)
def test_a_text_without_a_password_is_left_as_it_is(text):
    assert masked(text) == text
