from __future__ import annotations

import time

import pytest

from pipelines.store.location import locate
from pipelines.store.masking import mask_url, mask_urls, printable, printable_lines, refuse_credentials
from vimaedit.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("got 's3://user:p/a#ss@bucket/key'; allowed: x", "got 's3://***@bucket/key'; allowed: x"),
        ('got "http://user:it\'s@host/a"', 'got "http://***@host/a"'),
        ("http://host:8080/img@2x.png and http://h:80/a", "http://host:8080/img@2x.png and http://h:80/a"),
        ("//user:pass@host/a", "//***@host/a"),
        ('got "http://h/a?token=it\'s"; allowed: x', 'got "http://h/a?token=***"; allowed: x'),
        ("got 'http://h/a?token=\"abc\"'; allowed: x", "got 'http://h/a?token=***\"'; allowed: x"),
        ("{'url': 'http://h/a?sig=abc', 'x': 1}", "{'url': 'http://h/a?sig=***', 'x': 1}"),
    ],
)
def test_credentials_with_signs_of_their_own_are_masked_in_texts(text: str, masked: str) -> None:
    assert mask_urls(text) == masked


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("http://user:two words@host/a.png", "http://***@host/a.png"),
        ("http://user:line\nbreak@host/a.png", "http://***@host/a.png"),
        ("http://user@host/a@b.png", "http://***@host/a@b.png"),
        ("http://host:80/a@b.png", "http://host:80/a@b.png"),
        ("http://host/a.png?token=a b'c\"d&x=1", "http://host/a.png?token=***&x=1"),
        ("pictures/a@b.png", "pictures/a@b.png"),
    ],
)
def test_one_url_is_masked_whatever_its_credentials_hold(url: str, masked: str) -> None:
    assert mask_url(url) == masked


@pytest.mark.parametrize(
    "text", ["//a:b" * 40_000, "//" + "a:" * 100_000, "?key=" * 40_000, "?key='" * 40_000, "//a@" * 50_000]
)
def test_masking_a_hostile_text_takes_no_longer_than_others(text: str) -> None:
    started = time.process_time()
    mask_urls(text)
    mask_url(text)
    assert time.process_time() - started < 4


@pytest.mark.parametrize("name", ["code", "auth_code", "jwt", "sas", "x-sas", "session", "sessionid", "bearer", "Bearer"])
def test_what_lets_its_bearer_in_is_masked(name: str) -> None:
    assert mask_urls(f"got http://h/a?x=1&{name}=abc%2Fd&y=2") == f"got http://h/a?x=1&{name}=***&y=2"
    assert mask_url(f"http://h/a?{name}=a b") == f"http://h/a?{name}=***"


@pytest.mark.parametrize("name", ["encode", "zipcode", "sasquatch", "decoded", "page"])
def test_ordinary_names_are_shown(name: str) -> None:
    assert mask_urls(f"http://h/a?{name}=abc") == f"http://h/a?{name}=abc"


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEY:HUSH@bucket",
        "s3://KEY:HU/SH+HUSH@bucket/a/b.parquet",
        "s3a://KEY:HUSH@bucket/a",
        "simplecache::s3://KEY:HUSH@bucket/a",
        "gs://KEY:HUSH@bucket/a",
        "S3://KEY:HUSH@bucket/a",
    ],
)
def test_credentials_in_a_stores_url_are_refused_without_being_told(url: str) -> None:
    for check in (refuse_credentials, locate):
        with pytest.raises(
            ConfigError, match=r"^got '.*://\*\*\*@bucket.*', which holds credentials; allowed: a URL with"
        ) as caught:
            check(url)
        assert "HU" not in str(caught.value) and "KEY" not in str(caught.value) and caught.value.__cause__ is None


@pytest.mark.parametrize(
    "url",
    [
        *(
            "s3://bucket/a@b:c.parquet",
            "s3://arn:aws:s3:eu-west-1:123:accesspoint/mine/a@b",
            "/data/s3://a:b@c",
            "cat:dog@home",
        ),
        *("abfs://container@account.dfs.core.windows.net/a", "ftp://user:pass@host/a", "http://user:pass@host/a"),
    ],
)
def test_other_urls_are_not_refused(url: str) -> None:
    refuse_credentials(url)


def test_control_characters_are_shown() -> None:
    hostile = "a\r\n\x1b[2J\x9b0m\x00\u202eb\u2028\ud800\x7f"
    shown = printable(hostile)
    assert shown == r"a\r\n\x1b[2J\x9b0m\x00\u202eb\u2028\ud800\x7f" and shown.encode()
    assert printable("tab and ünïcödé 猫 🐈 stay\t") == "tab and ünïcödé 猫 🐈 stay\\t"
    assert printable_lines("one\ntwo\x1b\nthree") == "one\n  two\\x1b\n  three"
