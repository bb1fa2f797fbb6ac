"""The console command ``vireo``."""
