"""Outcomes of messages: counted, reported to publishers, and rejected records kept.

`outcome` reads the outcome of a settled message, `outcomes` counts outcomes and reports them to
publishers where a topic is set, `dead_letters` keeps rejected records. Both write through an
`accessory`, a topic that never stops messages: `kept` is its queue, `writer` writes batches. This
wing may import reading; how a message was sent is unknown here.
"""
