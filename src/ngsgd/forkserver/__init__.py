"""A server process that has imported torch and forks a process for each job of a workflow call.

Importing torch takes nearly all of a short job's start-up time. A workflow call therefore starts one server
(`server.start`) on its machine, which ends with the call. The process of a job (`client.delegate`) sends its arguments,
working directory, environment and standard streams to the server, waits, and exits with the status of the fork. The
fork is killed when that process, the server or, like every job, the scheduler ends. If no server accepts the job, it
runs in its own process.

The server accepts requests of the same user and the same installation only; each installation has its own address.
"""
