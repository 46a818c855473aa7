"""`python -m milkrun_engine`: the engine's commands alone, for clients that start a local engine."""

from milkrun_engine.cli import commands

if __name__ == "__main__":
    commands()
