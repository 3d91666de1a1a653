"""The API pages work without other hosts, and run no scripts but their own."""

from __future__ import annotations

import json
import re

import httpx
import pytest

from raylens.api.app import create_app
from tests.unit.raylens.api.conftest import CONFIG, FakeService


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
@pytest.mark.parametrize("root", ["", "/vision"])
async def test_a_page_loads_its_files_from_this_server(
    service: FakeService, path: str, root: str
) -> None:
    transport = httpx.ASGITransport(create_app(service, CONFIG), root_path=root)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        page = await client.get(root + path)
        assert page.status_code == 200
        addresses = re.findall(r'(?:src|href|spec-url|url)(?:=|: )["\']([^"\']+)', page.text)
        assert len(addresses) >= 3
        for address in addresses:
            assert address.startswith(f"{root}/"), address
            assert (await client.get(address)).status_code == 200, address


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_a_policy_forbids_what_the_page_does_not_need(
    client: httpx.AsyncClient, path: str
) -> None:
    policy = (await client.get(path)).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "'unsafe-eval'" not in policy
    assert "http" not in policy


async def test_every_reference_of_the_description_leads_somewhere(
    client: httpx.AsyncClient,
) -> None:
    description = (await client.get("/openapi.json")).json()
    references = set(
        re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', json.dumps(description))
    )
    assert references <= set(description["components"]["schemas"])
