"""A file for each command, which ``fwrnn.cli`` finds, and what they share."""

COMMANDS = {
    "train": "train a model on a task: fwrnn train task=assoc_retrieval",
    "sweep": "what became of a sweep's jobs, and going on: fwrnn sweep resume FOLDER",
    "evaluate": "test a trained model again, or on your own data: fwrnn evaluate RUN",
    "ask": "a trained network, and see what it attends to: fwrnn ask 'c9k8j3f1??c'",
    "reproduce": "the paper's numbers beside ours, tested again: fwrnn reproduce table1",
    "report": "compare runs, in a table, a picture or a page: fwrnn report FOLDER",
    "battery": "does the layer learn wherever torch.nn.RNN does: fwrnn battery",
    "bench": "how fast the layer is on this machine, beside torch.nn's: fwrnn bench",
    "completion": "what makes Tab complete all of this: fwrnn completion bash",
}
