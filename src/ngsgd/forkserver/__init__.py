"""A process that has loaded what jobs need, and forks one off for each job that asks.

To import torch is nearly all of a short job's start. On one machine a call's jobs can share that: the call starts one
server (`server.start`), which ends with it; a job's own process (`client.delegate`) hands over its arguments, folder,
environment and standard streams, waits, and ends as the fork ended. A fork ends at once when that process does, when
the server does, and, like every job, when the scheduler does. Where no server takes a job, it is its own process.

Only the same user is served, and only the same installation: another one's address differs.
"""
