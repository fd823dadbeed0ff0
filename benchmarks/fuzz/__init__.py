"""Damaged and unusual files, thousands of them: read rightly, or refused in one line."""
