"""The tags of an mp4, and those by which a video says that it is generated.

People and players read an mp4's own comment. Machines read XMP, for which IPTC's Video Metadata Hub has the
property Digital Source Type; the mp4 format has no tag for it, but a box for XMP (XMP specification, part 3).
Neither is signed: whoever passes the video on can remove them.
"""

from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

XMP = "xmp"  # as FFmpeg calls the tag, which it reads with its option export_xmp
XMP_BOX = UUID("be7acfcb-97a9-42e8-9c71-999491e3afac").bytes
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
GENERATED_PACKET = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
   <Iptc4xmpExt:DigitalSourceType>{GENERATED}</Iptc4xmpExt:DigitalSourceType>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""


def generated_tags(software: str) -> dict[str, str]:
    """Return the tags of a video whose frames a trained model of this software has generated."""
    comment = f"Generated video: no camera recorded it, a trained model made its frames ({software})"
    return {"comment": comment, XMP: GENERATED_PACKET}


def set_tags(output, tags: Mapping[str, str] | None) -> None:
    """Give an mp4 that is open for writing its tags, before its first frame; not the XMP."""
    output.metadata.update({name: text for name, text in (tags or {}).items() if name != XMP})


def append_xmp(path: str | Path, tags: Mapping[str, str] | None) -> None:
    """Append the XMP of the tags, if there is some, to a whole mp4: no place of what is in it changes."""
    packet = (tags or {}).get(XMP, "").encode()
    if packet:
        with open(path, "ab") as file:
            file.write((8 + len(XMP_BOX) + len(packet)).to_bytes(4, "big") + b"uuid" + XMP_BOX + packet)
