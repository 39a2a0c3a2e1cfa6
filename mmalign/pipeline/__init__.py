"""Makes it happen: runs the stages of a plan, and finds, builds and loads the models they leave."""
