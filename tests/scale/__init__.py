"""What large runs cost, from measured rates: a model of a step, beside a simulation of it step by step."""
