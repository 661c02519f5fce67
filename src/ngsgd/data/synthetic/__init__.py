"""``corpus: synthetic``: speech of any amount that needs no licence, made by eSpeak NG from sentences made here."""
