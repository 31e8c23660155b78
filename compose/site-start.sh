#!/bin/sh
# First start: make the site's home, with its own keys and a policy that approves nothing by itself.
# Every start: run it. With arguments: run those instead, for `fedtwin site join` and the like.
# FEDTWIN_HOME         where it lives
# FEDTWIN_SITE_NAME    the site's name
# FEDTWIN_FEDERATION   the federation.json that the coordinator gave
# FEDTWIN_DATA         where the patients are, as `--data` of `fedtwin site init` takes it
# FEDTWIN_PATIENT_ID   its column that names the patient; optional
set -eu
if [ "$#" -gt 0 ]; then exec "$@"; fi
: "${FEDTWIN_HOME:?}"
if [ ! -e "$FEDTWIN_HOME/site.toml" ]; then
    : "${FEDTWIN_SITE_NAME:?}" "${FEDTWIN_FEDERATION:?}" "${FEDTWIN_DATA:?}"
    fedtwin site init --home "$FEDTWIN_HOME" --name "$FEDTWIN_SITE_NAME" \
        --federation "$FEDTWIN_FEDERATION" --data "$FEDTWIN_DATA" --patient-id "${FEDTWIN_PATIENT_ID:-}"
fi
exec fedtwin site up --home "$FEDTWIN_HOME"
