"""The next process: it takes over the ports, the name and the connections of the running gateway.

docs/takeover.md has the protocol. `format` is what is passed, and a leaf that every wing may
import: a connection, a wire and a session each make their own record. `channel` carries frames and
descriptors between the two processes, `partner` passes messages to the other one, `restore` makes
connections of records. `offer` is the running process, `adopt` the next one. Nothing of this is on
the way of a message or of a connection while no take-over is under way.
"""
