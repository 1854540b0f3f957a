"""ipcsrv beside its peers and beside bare C, on this machine, in one run.

A rate in requests a second says more about the machine and the hour than about the server. So every workload is run
for every contestant in turn, in short rounds, again and again, and what is reported is the median over the rounds of
the *ratio* of two neighbours in the same round, with its spread.

    python -m benchmarks            everything; about ten minutes
    python -m benchmarks --quick    a smoke run; the figures mean little

`c/` holds the two C programs: the load, and the bare loops that are the limit. They are compiled when there is a
compiler; without one the load comes from `ipcsrv._load`, and there is no limit to compare with.
"""
