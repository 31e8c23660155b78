"""A cohort's files: one module per format, all written chunk by chunk, so that a million patients never sit in memory.

The same release, seed, number and conditions give the same bytes in every format: nothing of the time, the request
or the machine goes into a file. To add a format: a writer (`exports.writer.FormatWriter`) and a line in
`exports.formats`.
"""
