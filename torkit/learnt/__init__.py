"""What experience has taught. Callers tell each module what happened (`note_...`), and when.

build_times      how long circuits take, and when to give one up
path_bias        whether a guard lets too few circuits succeed
predicted_ports  which ports will be asked for next
refusals         which exits have refused which targets
"""
