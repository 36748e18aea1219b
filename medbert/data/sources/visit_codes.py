"""What the codes of events say of their visits."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medbert.data.codes import compiled
from medbert.schema import CODE, KINDS, ROW, SUBJECT_ID, TIME, VISIT_ID

ADMISSION, DISCHARGE = "^HOSPITAL_ADMISSION", "^HOSPITAL_DISCHARGE"

_STARTS, _ENDS, _INPATIENT, _EMERGENCY, _OUTPATIENT = (1 << bit for bit in range(5))
_NAMED = {
    "^VISIT//INPATIENT": _INPATIENT,
    "^VISIT//EMERGENCY": _EMERGENCY,
    "^VISIT//OUTPATIENT": _OUTPATIENT | _STARTS | _ENDS,  # it lasts 0 days
}


class VisitCodes:
    """States the visits of events; looks at every distinct code once.

    Args:
        admission, discharge: regular expressions of the codes that open and close a stay.
    """

    def __init__(self, *, admission: str = ADMISSION, discharge: str = DISCHARGE) -> None:
        stays = [(admission, _STARTS | _INPATIENT), (discharge, _ENDS | _INPATIENT)]
        patterns = [*stays, *_NAMED.items()]
        self._patterns = [(compiled(pattern), meaning) for pattern, meaning in patterns]
        self._known: dict[str, int] = {}

    def visits(self, events: pa.Table) -> pa.Table:
        """STATED_VISITS (no length of stay) of EVENTS that have VISIT_ID, ROW and coded codes."""
        codes = events[CODE].combine_chunks()
        words = codes.dictionary.to_numpy(zero_copy_only=False)
        for word in words:
            if word not in self._known:
                self._known[word] = self._meaning(word)
        meaning = np.array([self._known[word] for word in words], np.int8)
        said = meaning[codes.indices.to_numpy()]
        rows = np.flatnonzero((said > 0) & pc.is_valid(events[VISIT_ID]).to_numpy())
        said, some = said[rows], events.take(rows)
        kind = np.select([said & _INPATIENT > 0, said & _EMERGENCY > 0], KINDS[:2], KINDS[2])
        columns = {
            SUBJECT_ID: some[SUBJECT_ID],
            VISIT_ID: some[VISIT_ID],
            "start": pc.if_else(pa.array(said & _STARTS > 0), some[TIME], None),
            "end": pc.if_else(pa.array(said & _ENDS > 0), some[TIME], None),
            "kind": pa.array(kind, pa.string()),
            ROW: some[ROW],
        }
        return pa.table(columns)

    def _meaning(self, code: str) -> int:
        found = 0
        for pattern, meaning in self._patterns:
            found |= meaning if pattern.search(code) else 0
        return found
