"""The metric, predictions, intervals, cost, slices, plots and the report; never a decision about promotion."""
