"""Presets: every module here but those with a leading underscore defines `get_config() -> ExperimentConfig`.

The first line of a preset's docstring is its description in `--config=list`.
"""
