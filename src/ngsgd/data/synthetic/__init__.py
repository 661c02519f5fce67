"""``corpus: synthetic``: any amount of licence-free speech, synthesised by eSpeak NG from generated sentences."""
