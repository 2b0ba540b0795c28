"""Kafka in, offsets out.

`consumer` is the member of the group: `reader` polls Kafka for it, `message` is a record that is in
hand, `progress` counts what is in hand of a partition and up to which offset everything is settled,
`commits` commits those offsets. `lanes` shares work out among topics; `kafka` makes the clients.
This wing is a leaf: it imports no other wing of the processor, and hands messages to an `Intake`.
"""
