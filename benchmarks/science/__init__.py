"""The comparison of distillation methods: it trains, records every run and writes the result pages."""
