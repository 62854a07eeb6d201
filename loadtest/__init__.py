"""An open-loop load test of the service, from a process of its own. Knows HTTP alone.

    python -m loadtest --quick

Arrivals are fixed beforehand (`schedule.py`), and a latency counts from the arrival that was
planned, so a server that stalls cannot hide it by keeping its clients from asking.
"""
