"""Pages of features: what weights say and what a scan saw, one self-contained HTML file each."""
