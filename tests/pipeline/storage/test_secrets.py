"""Secrets of URLs are in no text: neither in URLs, nor in what a library makes of a URL that was given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage import absolute, scrubbed, secrets, without_secrets


@pytest.fixture(autouse=True)
def _nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_given", set())


PLAIN = [
    "s3://bucket/a@b/x.tar",
    "http://host:8080/a@b/x.tar",
    "http://[::1]:8080/a@b",
    "gs://bucket/x",
    "/a/b@c:d",
]
SECRET = {
    "s3://KEY:SECRET@bucket/x.tar": "s3://bucket/x.tar",
    "s3://KEY:SE/CR/ET@bucket/x.tar": "s3://bucket/x.tar",
    "s3://KEY:12345/67@bucket/x.tar": "s3://bucket/x.tar",
    "s3://KEY:SECRET@bucket/a@b/x.tar": "s3://bucket/a@b/x.tar",
    "s3://KEY:SE@CRET@bucket/x.tar": "s3://bucket/x.tar",
    "s3://TOKEN@bucket/x.tar": "s3://bucket/x.tar",
    "http://me:pa/ss@host:80/x.tar?sig=SECRET": "http://host:80/x.tar",
    "http://me:pa?ss@host/x.tar": "http://host/x.tar",
    "http://host/x.tar?sig=SECRET": "http://host/x.tar",
}


@pytest.mark.parametrize("url", PLAIN)
def test_a_url_without_secrets_stays_as_it_is(url: str) -> None:
    absolute(url)
    assert without_secrets(url) == url
    assert scrubbed(f"'{url}', {url}: gone; {url}") == f"'{url}', {url}: gone; {url}"


@pytest.mark.parametrize("url", SECRET)
def test_a_url_loses_user_password_and_signature(url: str) -> None:
    plain = SECRET[url]
    assert without_secrets(url) == plain
    text = "'{0}', {0}: gone ({0}); {0}"
    assert scrubbed(text.format(url)) == text.format(plain)
    assert scrubbed(f"{url},{url}").replace(",", "") == plain * 2, "also where nothing but a comma parts them"


PASSWORD = st.text("abcXYZ019/+=%?~!$&", min_size=8, max_size=20).filter(lambda text: max(map(len, text.split("/"))) >= 4)


@given(user=st.text("abcdefgh", min_size=1, max_size=8), password=PASSWORD, scheme=st.sampled_from(["s3", "http", "hdfs"]))
def test_whatever_words_a_library_puts_a_given_secret_into_it_is_not_in_them(user: str, password: str, scheme: str) -> None:
    secrets._given.clear()
    password = "x19z" + password  # digits alone, up to a slash, are a port
    url = f"{scheme}://{user}:{password}@bucket/x.tar"
    absolute(url)
    assert password not in scrubbed(url)
    assert scrubbed(f"no such bucket: {user}:{password}@bucket") == "no such bucket: ***@bucket"
    assert password not in scrubbed(f"the password {password} is wrong")
    first = password.partition("/")[0]
    assert f"{user}:{first}" not in scrubbed(f'Invalid bucket name "{user}:{first}"')


def test_a_given_signature_is_not_in_a_librarys_words_either() -> None:
    absolute("http://host/x.tar?X-Amz-Signature=0123abcd&b=1")
    assert scrubbed("GET /x.tar: signature 0123abcd has expired") == "GET /x.tar: signature *** has expired"
    assert scrubbed("see http://host/x.tar?X-Amz-Signature=0123abcd&b=1: 403") == "see http://host/x.tar: 403"
