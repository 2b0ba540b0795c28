"""Outcomes of messages: counted, reported to publishers, and rejected records kept.

`outcome` reads the outcome of a settled message, `outcomes` counts outcomes and reports them to
publishers where a topic is set, `dead_letters` keeps rejected records. This wing may import
reading; how a message was sent is unknown here.
"""
