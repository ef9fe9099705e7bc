"""How bodies are written that the description calls bytes."""

import schemathesis


@schemathesis.serializer("application/wasm", "application/octet-stream", "application/yaml")
def as_bytes(ctx, value):
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    return str(value).encode("utf-8", "surrogatepass")
