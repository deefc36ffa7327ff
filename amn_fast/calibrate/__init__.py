"""The mask threshold and the quality of a run's masks, from a few trusted masks or answers about pixels."""
