"""The servers of a laptop team, `dreambooth up`: S3, MLflow, Prefect and a worker, on loopback.

    place       where all lies, at which ports
    parts       what is started: command, environment, ports, how to see that it works
    postgres    PostgreSQL in the place of sqlite, where it is asked for
    deployments what Prefect is told to offer
    state       who runs: state files, and marks in the processes' environments
    launch      the script that becomes a part, after it has written who it is
    watch       one part: started, seen to work, started again
    supervisor  all of them, until told to stop
    doctor/     one check per file

A part is no child that ends with its parent: a supervisor may be killed, and the training that goes
on below the worker is worth more than it. The next supervisor finds them by their state files.
"""
