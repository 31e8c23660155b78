"""What a FHIR R4 resource says: whose it is, when, which codes, which value.

References:
    HL7 FHIR R4 (4.0.1): Patient, Encounter, Condition, Observation, MedicationRequest, Procedure, Immunization.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from client.connectors.events import time_of

Resource = Mapping[str, Any]

_VOID_STATES = {
    "Observation": {"entered-in-error", "cancelled"},
    "Encounter": {"entered-in-error", "cancelled", "planned"},
    "MedicationRequest": {"entered-in-error", "cancelled", "draft"},
    "Procedure": {"entered-in-error", "not-done", "preparation"},
    "Immunization": {"entered-in-error", "not-done"},
}
_STARTS = {
    "Observation": ("effectiveDateTime", "effectivePeriod", "effectiveInstant"),
    "Condition": ("onsetDateTime", "onsetPeriod", "recordedDate"),
    "Encounter": ("period",),
    "MedicationRequest": ("authoredOn",),
    "Procedure": ("performedDateTime", "performedPeriod"),
    "Immunization": ("occurrenceDateTime",),
}
_CODES = {"MedicationRequest": "medicationCodeableConcept", "Immunization": "vaccineCode"}


def is_void(resource: Resource) -> bool:
    """Whether the resource says that what it speaks of did not happen."""
    if resource["resourceType"] == "Condition":
        states = _codings(resource.get("verificationStatus"))
        return any(coding.get("code") in ("entered-in-error", "refuted") for coding in states)
    return resource.get("status") in _VOID_STATES.get(resource["resourceType"], ())


def reference_id(reference: object, names: Mapping[str, str]) -> str | None:
    """The id that a Reference points to: within a Bundle, `urn:uuid:...`, `Type/id`, or a URL that ends so."""
    target = reference.get("reference") if isinstance(reference, Mapping) else None
    if not isinstance(target, str) or not target or "?" in target:
        return None
    if target in names:
        return names[target]
    path = target.split("/_history/")[0]
    return path.removeprefix("urn:uuid:").rpartition("/")[2] or None


def start_of(resource: Resource) -> str | None:
    """When it began, as written."""
    for name in _STARTS[resource["resourceType"]]:
        found = resource.get(name)
        if isinstance(found, Mapping):
            found = found.get("start")
        if isinstance(found, str) and found:
            return found
    return None


def codes_of(resource: Resource) -> list[str] | None:
    """`system|code` of all codings; None where a medication is another resource."""
    kind = resource["resourceType"]
    if kind == "Encounter":
        visit_class = resource.get("class")
        concepts = resource.get("type") or []
        return [
            *([_text(visit_class)] if isinstance(visit_class, Mapping) else []),
            *(_text(coding) for concept in concepts for coding in _codings(concept)),
        ]
    if kind == "MedicationRequest" and "medicationReference" in resource:
        return None
    return [_text(coding) for coding in _codings(resource.get(_CODES.get(kind, "code")))]


def observed(resource: Resource, component: str, unit: str) -> tuple[object, str]:
    """An Observation's value and what is wrong with it, if anything.

    Args:
        resource: the Observation.
        component: `system|code` of the component that has the value; empty for the Observation's own.
        unit: UCUM code that a quantity must be in; empty for any.

    Returns:
        The value (None where it is absent; several codes as a tuple), and a problem or "".
    """
    holder: Resource = resource
    if component:
        parts = [
            part
            for part in resource.get("component") or []
            if component in [_text(coding) for coding in _codings(part.get("code"))]
        ]
        if not parts:
            return None, ""
        holder = parts[0]
    if isinstance(quantity := holder.get("valueQuantity"), Mapping):
        if unit and unit not in (quantity.get("code"), quantity.get("unit")):
            found = quantity.get("code") or quantity.get("unit")
            return None, f"the unit is {found!r}, the study wants {unit!r}: convert before the study"
        return quantity.get("value"), ""
    if isinstance(concept := holder.get("valueCodeableConcept"), Mapping):
        codings = _codings(concept)
        return tuple(form for coding in codings for form in (coding.get("code"), _text(coding))), ""
    for name in ("valueString", "valueBoolean", "valueInteger", "valueDateTime"):
        if name in holder:
            return holder[name], ""
    return None, ""


def encounter_days(resource: Resource) -> float | None:
    """How long an Encounter was, in days; None where a date is absent or it goes on."""
    period = resource.get("period")
    if not isinstance(period, Mapping):
        return None
    start, end = (time_of(str(period.get(name) or "")) for name in ("start", "end"))
    return None if start is None or end is None else max(0.0, (end - start) / 86_400)


def patient_field(resource: Resource, field: str) -> object:
    """A Patient's gender, birthDate, deceased or maritalStatus; None where absent."""
    if field == "deceased":
        return bool(resource.get("deceasedBoolean") or resource.get("deceasedDateTime"))
    if field == "maritalStatus":
        codings = _codings(resource.get("maritalStatus"))
        return tuple(form for coding in codings for form in (coding.get("code"), _text(coding))) or None
    return resource.get(field)


def _codings(concept: object) -> list[Resource]:
    if not isinstance(concept, Mapping):
        return []
    codings = concept.get("coding")
    return [coding for coding in codings if isinstance(coding, Mapping)] if isinstance(codings, list) else []


def _text(coding: Resource) -> str:
    return f"{coding.get('system', '')}|{coding.get('code', '')}"
