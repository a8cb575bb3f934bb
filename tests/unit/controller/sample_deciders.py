"""What the worker is given in tests; the process that it starts has to be able to import it."""

import os
import time


def double_each():
    return lambda state, until: {key: 2 * value for key, value in state.items()}


def name_process():
    return lambda state, until: {"pid": os.getpid()}


def refuse_odd():
    def decide(state, until):
        if any(value % 2 for value in state.values()):
            raise ValueError("odd")
        return dict(state)

    return decide


def die_when_told():
    def decide(state, until):
        if state.get("die"):
            os._exit(3)
        return {"alive": True}

    return decide


def think_long():
    def decide(state, until):
        time.sleep(0.5)
        return {}

    return decide
