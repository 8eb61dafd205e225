from collections.abc import Mapping

from tests.access import Access, public

ACCESS: Mapping[str, Access] = {
    "GET /": public(),
    "GET /local/mails": public(is_found=False),
    "GET /local/mails/{name}": public(path={"name": "nobody's"}, is_found=False),
    "GET /local/mails/{name}/html": public(path={"name": "nobody's"}, is_found=False),
}
