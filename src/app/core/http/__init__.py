"""HTTP: middleware, strict routing, problem documents, the OpenAPI document, pages, entity tags."""
