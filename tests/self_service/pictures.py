"""Pictures of a page in a browser, as small PNG files."""

import base64
import struct
import zlib
from collections.abc import Iterator

from tests.core.browser import Page

# Maps each pixel to one of the 256 most frequent colours.
_INDEX = """(async (source) => {
    const bitmap = await createImageBitmap(await (await fetch(source)).blob());
    const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
    context.drawImage(bitmap, 0, 0);
    const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
    const pixels = Array.from(new Uint32Array(data.buffer), (pixel) => pixel & 0xffffff);
    const counts = new Map();
    for (const pixel of pixels) counts.set(pixel, (counts.get(pixel) ?? 0) + 1);
    const palette = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 256).map(([pixel]) => pixel);
    const channels = (pixel) => [pixel & 255, (pixel >> 8) & 255, pixel >> 16];
    const distance = (a, b) => channels(a).reduce((sum, value, index) => sum + (value - channels(b)[index]) ** 2, 0);
    const nearest = (pixel) => palette.reduce((best, one, index) =>
        distance(pixel, one) < distance(pixel, palette[best]) ? index : best, 0);
    const indices = new Map(palette.map((pixel, index) => [pixel, index]));
    for (const pixel of counts.keys()) if (!indices.has(pixel)) indices.set(pixel, nearest(pixel));
    const text = pixels.map((pixel) => String.fromCharCode(indices.get(pixel)));
    return { width: bitmap.width, palette: palette.flatMap(channels), pixels: btoa(text.join("")) };
})"""


async def picture(page: Page, canvas: Page) -> bytes:
    """Return what the window of the page shows. `canvas` is another tab, whose policy allows to read pictures."""
    # Chromium paints only the tab in front.
    await page.send("Page.bringToFront")
    taken = await page.send("Page.captureScreenshot", format="png")
    found = await canvas.run(f"{_INDEX}('data:image/png;base64,{taken['data']}')")
    return _png(found["width"], bytes(found["palette"]), base64.b64decode(found["pixels"]))


def _png(width: int, palette: bytes, pixels: bytes) -> bytes:
    rows = b"".join(b"\0" + pixels[start : start + width] for start in range(0, len(pixels), width))
    header = struct.pack(">IIBBBBB", width, len(pixels) // width, 8, 3, 0, 0, 0)
    chunks = {b"IHDR": header, b"PLTE": palette, b"IDAT": zlib.compress(rows, 9), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(part for kind, content in chunks.items() for part in _chunk(kind, content))


def _chunk(kind: bytes, content: bytes) -> Iterator[bytes]:
    yield struct.pack(">I", len(content))
    yield kind + content
    yield struct.pack(">I", zlib.crc32(kind + content))
