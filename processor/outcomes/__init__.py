"""What became of messages: counted, kept and told.

`outcome` reads a settled message's outcome, `outcomes` counts outcomes and tells publishers where a
topic is set, `dead_letters` keeps rejected records. This wing may import reading; it does not know
how a message was sent.
"""
