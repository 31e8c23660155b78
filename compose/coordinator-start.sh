#!/bin/sh
# First start: make the coordinator's home, with its own keys and certificates. Every start: run it.
# FEDTWIN_HOME       where it lives
# FEDTWIN_ADDRESS    host:port that sites dial; what stands there forwards to FEDTWIN_LISTEN
# FEDTWIN_LISTEN     host:port of the gateway
# FEDTWIN_NAME, FEDTWIN_DATABASE, FEDTWIN_DATABASE_PASSWORD_FILE, FEDTWIN_TLS_FOLDER   optional
set -eu
: "${FEDTWIN_HOME:?}" "${FEDTWIN_ADDRESS:?set it to the host:port that sites dial}" "${FEDTWIN_LISTEN:?}"
if [ ! -e "$FEDTWIN_HOME/server.toml" ]; then
    set -- --name "${FEDTWIN_NAME:-coordinator}" --address "$FEDTWIN_ADDRESS" --listen "$FEDTWIN_LISTEN"
    if [ -n "${FEDTWIN_DATABASE:-}" ]; then set -- "$@" --database "$FEDTWIN_DATABASE"; fi
    if [ -n "${FEDTWIN_DATABASE_PASSWORD_FILE:-}" ]; then
        set -- "$@" --database-password-file "$FEDTWIN_DATABASE_PASSWORD_FILE"
    fi
    if [ -n "${FEDTWIN_TLS_FOLDER:-}" ]; then set -- "$@" --behind-proxy; fi
    fedtwin server init --home "$FEDTWIN_HOME" "$@"
fi
if [ -n "${FEDTWIN_TLS_FOLDER:-}" ]; then
    # The reverse proxy serves the certificate that sites pin; the authority's own key stays here.
    umask 077
    for file in certs/ca.crt certs/server.crt keys/server.key; do
        cp "$FEDTWIN_HOME/$file" "$FEDTWIN_TLS_FOLDER/.new"
        mv "$FEDTWIN_TLS_FOLDER/.new" "$FEDTWIN_TLS_FOLDER/${file##*/}"
    done
fi
exec fedtwin server up --home "$FEDTWIN_HOME"
