"""What the system is doing: readings of all processes, figures from two of them, and a screen.

reading.py asks every process that the registry names for its `GET /status`; figures.py makes rates
and latencies of two readings; screen.py makes lines that fit a terminal.
"""
