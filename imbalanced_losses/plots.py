"""Pictures of a schedule and of scores, with matplotlib (the extra ``plots``)."""
