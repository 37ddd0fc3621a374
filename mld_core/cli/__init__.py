"""The `mld` command.

Exit codes: 0 all is well; 1 something failed, or `mld doctor` found a problem; 2 the command was not
understood (unknown option, filter or method); 3 there is nothing of that name.
"""
