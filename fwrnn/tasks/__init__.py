"""What is learned. A task = one file here, its settings in ``schema``, one YAML in ``conf/task``,
one line in ``fwrnn.config.TASKS``."""
