"""The drill: a load that never stops, while workers are scaled, recreated, stopped, killed, paused and replaced."""
