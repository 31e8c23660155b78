"""The server-rendered pages for researchers, operators and auditors: everything outside `/v1` and the API's documents.

HTML from Jinja templates, charts as SVG, one vendored script (htmx) that no page needs to work. The pages call the
functions that the API calls; they hold nothing of their own but the session of who is signed in.
"""
