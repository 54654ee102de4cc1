"""The admin port: status page, API and metrics. Every path of the data port belongs to the workers."""
