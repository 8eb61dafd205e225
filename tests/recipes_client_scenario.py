"""A program that uses the operations of `docs/recipes.md` through a generated client. `test_recipes.py` runs it."""

import sys
from io import BytesIO

from generated_client import AuthenticatedClient
from generated_client.api.reports import download_table, list_by_tags, receive_file
from generated_client.models import Received, Upload
from generated_client.types import File

if __name__ == "__main__":
    _, base_url, token = sys.argv
    with AuthenticatedClient(base_url=base_url, token=token, raise_on_unexpected_status=True) as client:
        file = File(payload=BytesIO(b"\x00\xff" * 50_000), file_name="a.bin", mime_type="application/octet-stream")
        received = receive_file.sync(client=client, body=Upload(title="A title", file=file))
        assert isinstance(received, Received), received
        assert (received.title, received.size) == ("A title", 100_000)

        assert list_by_tags.sync(client=client, tag=["b", "a", "b"]) == ["a", "b"]

        assert download_table.sync(client=client) == "a,1\r\nb,2\r\n"
