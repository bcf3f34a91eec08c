"""Names that people give: of classes, and of anything else that can be mistyped."""
