"""What experience has taught. Each is told what happened (`note_...`), at a time that the teller names.

build_times      how long circuits take, and when to give one up
path_bias        whether a guard lets too few circuits succeed
predicted_ports  which ports will be asked for next
refusals         which exits have refused which targets
"""
