"""All families of generators by the names they have in params.yaml (`generator.family`)."""

from vapi_core.models.family import Family
from vapi_core.models.janus.family import JANUS
from vapi_core.models.llamagen.family import LLAMAGEN

FAMILIES: dict[str, Family] = {
    "llamagen": LLAMAGEN,
    "janus": JANUS,
}
