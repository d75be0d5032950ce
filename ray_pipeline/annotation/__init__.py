"""What people say of translations: a sample goes out as sheets, their answers come back and are set beside the checks.

`sampling` chooses the rows, `sheets` writes and reads files, `answers` checks and keeps what was filled in, `people`
sums it up, `command` is the command line.
"""
