"""What users have got since a cursor: the newest part of the log, kept by user.

A client that comes back says how far it has come (its cursor), and its gateway asks every processor
what the user has got since. Each processor answers for the partitions that it owns, from `window`,
which keeps what the processor has taken in lately. `marks` say how far back a time reaches, `owned`
what the processor may answer for, `answers` puts an answer together, and `links` are the
connections to gateways for questions and answers. `receipts` reports what clients then took.
Imports reading, sending and outcomes.
"""
