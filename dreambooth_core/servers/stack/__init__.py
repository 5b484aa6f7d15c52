"""`dreambooth up`: S3, MLflow, Prefect and a worker per work pool, on loopback.

    settings         folder, ports and login of a stack
    service          record of a service: command, environment, ports, health check
    services         the services of a stack
    postgres         PostgreSQL instead of sqlite, optional
    mlflow_database  MLflow's tables in sqlite
    deployments      work pools, limits, automations and deployments in Prefect
    state            state files, and marks in the environments of processes
    exec             script that writes a state file and then executes the service's command
    watchdog         starts, checks and restarts one service
    supervisor       runs all services until a signal
    http             HTTP requests to loopback

Services outlive a killed supervisor, since the training below a worker must not be lost; the next
supervisor finds them by their state files.
"""
