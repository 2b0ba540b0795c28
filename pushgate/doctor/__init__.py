"""`pushgate doctor`: whether a system is set up right, seen from one host.

A check is a function that returns findings (finding.py); examination.py runs all checks at once,
each within a deadline. Checks change nothing: the two writes are one that processors do as well
(the probe of the registry, which lapses), and a write to Kafka that every broker refuses.
"""
