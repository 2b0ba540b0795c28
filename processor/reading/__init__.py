"""Kafka in, offsets out.

`consumer` is the member of the consumer group: `starts` decides where the group starts in new
topics, `reader` polls Kafka for the consumer, `message` is a record in hand, `progress` counts a
partition's messages in hand and knows up to which offset all messages are settled, `commits`
commits those offsets. `lanes` shares batches out among topics; `kafka` makes the clients. This wing
is a leaf: no other wing of the processor is imported here, and messages leave through an `Intake`.
"""
