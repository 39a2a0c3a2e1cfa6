"""What will happen: recipes, cards, checks, the graph of stages. Nothing here imports torch."""
