"""Pictures of a front and of its plans: in each module first the table of what is drawn."""
