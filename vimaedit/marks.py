"""The mark that every edited picture carries: XMP that says how it came about, by IPTC's vocabulary of digital source types."""

from __future__ import annotations

import io
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from PIL import Image, PngImagePlugin

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
COMPOSITE = "compositeWithTrainedAlgorithmicMedia"  # a picture edited by a model
GENERATED = "trainedAlgorithmicMedia"  # one that a model has drawn as a whole, edited or not
IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
OWN = "urn:vimaedit:mark"
PNG_KEY = "XML:com.adobe.xmp"
MAX_BYTES = 65_536  # of XMP that is looked at


def make_mark(source_type: str, **facts: str) -> bytes:
    """Return the XMP packet of a picture: its source type, and facts by name. The same for the same facts, byte for byte."""
    own = "".join(f" vimaedit:{name}={quoteattr(value)}" for name, value in facts.items())
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        f'xmlns:Iptc4xmpExt="{IPTC}" xmlns:vimaedit="{OWN}" Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPES}{source_type}"{own}/>'
        "</rdf:RDF></x:xmpmeta>"
    )
    return packet.encode()


def mark_options(mark: bytes, image_format: str) -> dict[str, Any]:
    """Return how Pillow writes a mark into a picture of this format."""
    if image_format != "png":
        return {"xmp": mark}
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt(PNG_KEY, mark.decode())
    return {"pnginfo": texts}


def read_mark(data: bytes) -> dict[str, str]:
    """Return what a coded picture's mark says: `DigitalSourceType`, its last word, and the facts; empty where it has none that can
    be read.

    Raises: OSError for what is no picture.
    """
    with Image.open(io.BytesIO(data)) as image:
        packet = _packet(image)
    try:
        root = ElementTree.fromstring(packet)
    except (ElementTree.ParseError, LookupError, ValueError):  # the last two for what it says of its encoding
        return {}
    found = {name: value for element in root.iter() for name, value in element.attrib.items()}
    source_type = found.get(f"{{{IPTC}}}DigitalSourceType")
    facts = {name.partition("}")[2]: value for name, value in found.items() if name.startswith(f"{{{OWN}}}")}
    return {"DigitalSourceType": source_type.removeprefix(SOURCE_TYPES), **facts} if source_type else {}


def is_generated(image: Image.Image) -> bool:
    """Whether an opened picture says that a model has drawn it as a whole."""
    return f"{SOURCE_TYPES}{GENERATED}".encode() in _packet(image)


def _packet(image: Image.Image) -> bytes:
    packet = image.info.get("xmp", b"")
    return packet[:MAX_BYTES] if isinstance(packet, bytes) else b""
