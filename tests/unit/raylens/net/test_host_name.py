from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylens.net.host_name import to_ascii


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("hooks.example", "hooks.example"),
        ("HOOKS.Example", "hooks.example"),
        ("hooks.example.", "hooks.example."),
        ("ｈｏｏｋｓ。example", "hooks.example"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.EXAMPLE", "xn--bcher-kva.example"),
        ("bu\u0308cher.example", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("ⅷ.example", "viii.example"),
        ("①②⑦.0.0.1", "127.0.0.1"),
        ("0x7f.1", "0x7f.1"),
        ("2130706433", "2130706433"),
    ],
)
def test_a_name_is_lowercase_ascii(host: str, name: str) -> None:
    assert to_ascii(host) == name


@pytest.mark.parametrize(
    ("host", "name", "other"),
    [
        ("faß.example", "xn--fa-hia.example", "fass.example"),
        ("FAẞ.example", "xn--fa-hia.example", "fass.example"),
        ("βόλος.example", "xn--nxasmm1c.example", "βόλοσ.example"),
        ("ΒΌΛΟΣ.example", "xn--nxasmq6b.example", "βόλος.example"),
        ("نامه‌ای.example", "xn--mgba3gch31f060k.example", "نامهای.example"),
    ],
)
def test_a_name_that_idna_2003_takes_for_another_is_kept_apart(
    host: str, name: str, other: str
) -> None:
    assert to_ascii(host) == name
    assert to_ascii(other) != name


@pytest.mark.parametrize("host", ["my_service", "_a.b_", "r3---sn-x.example", "a", "a" * 63])
def test_an_ascii_name_passes_if_dns_can_hold_it(host: str) -> None:
    assert to_ascii(host) == host


@pytest.mark.parametrize(
    "host",
    [
        *("", ".", "..", "a..b", ".a", "a..", "a" * 64, "a." * 127 + "a", "ü" * 60, "x" * 2000),
        *("a b", "a/b", "a:80", "a：80", "user@host", "a\\b", "a%2eb", "*", "-a", "a-", "a,b"),
        *("℀.example", "☃.example", "😀.example", "bü_cher.example", "a\u200db", "\u00ad"),
        *("xn--", "xn--a", "xn--fass-x", "xn--ls8h.example", "a\ud800b", "1א.example"),
    ],
)
def test_anything_else_is_not_a_host_name(host: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        to_ascii(host)


@given(st.text(max_size=40) | st.from_regex(r"[a-zA-ZßΣẞİ。0-9_-]{1,8}\.?", fullmatch=True))
def test_the_result_is_ascii_and_stays_the_same(host: str) -> None:
    try:
        name = to_ascii(host)
    except ValueError:
        return
    assert name.isascii()
    assert to_ascii(name) == name
