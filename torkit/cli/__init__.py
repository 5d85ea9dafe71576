"""The command line: each command is a file, and so is each thing that they share.

    app          the program, its global options and the commands
    options      options of several commands, and what their values mean
    paths, targets, countries, documents     what arguments name: relays, destinations, countries, files
    running      runs what is asynchronous
    ending, monitoring, notify, sandbox     how a service ends, what it tells of itself, what it gives up
    failures     errors as words and exit statuses
    standard     stdin, stdout, stderr
    voice, progress, table, teaching, manual     what people see

stdout carries data; everything else is a line on stderr that begins with `torkit:`. What is heavy, trio
above all, is imported inside the functions that need it: `torkit --version` costs little more than Typer.
"""
