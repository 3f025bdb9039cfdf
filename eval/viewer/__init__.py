"""The token viewer: one page per preset on which held-out captions are seen through PRIOR's weights."""
