"""Stages: what a recipe's `kind` names; each module has one `run(task)` that returns what stage.json is to hold."""
