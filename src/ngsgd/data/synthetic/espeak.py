"""Speech by eSpeak NG, in this process, and when each of its phones begins.

The library is that of the PyPI package ``espeakng-loader``. What it says depends on what it said before, beyond what it
can be told to forget: it is loaded anew for each sentence, which takes a third of a millisecond.
"""

from __future__ import annotations

import _ctypes
import ctypes
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ngsgd.errors import DataError, UtteranceError

RATE = 22050  # samples a second, whatever the voice

# Of <espeak-ng/speak_lib.h>.
SYNCHRONOUS, PHONEME_EVENTS, DONT_EXIT = 2, 0x0001, 0x8000
POS_CHARACTER, CHARS_UTF8 = 1, 1
PARAMETER_RATE, PARAMETER_PITCH, PARAMETER_RANGE = 1, 3, 4
END_OF_LIST, PHONEME = 0, 7
RANDOM_SEED = 1  # of breath; 0 would be the time

SILENCE = "_"
PHONES = (
    SILENCE, ";", "0", "3", "3:", "?", "@", "@L", "A:", "A@", "D", "E", "I", "IR", "N", "O", "O:", "O@", "OI", "S", "T",
    "U", "U@", "V", "VR", "Z", "a", "aI", "aI@", "aU", "aa", "b", "d", "dZ", "e@", "eI", "f", "g", "h", "i", "i:", "i@",
    "j", "k", "l", "m", "n", "o@", "oU", "p", "r", "s", "t", "tS", "u:", "v", "w", "z",
)  # fmt: skip
"""The phones of the English accents that are used, without stress and without variants; pauses are one phone."""

_STRESS = re.compile(r"^[',%=|]+")
_VARIANT = re.compile(r"(?<=.)[0-9#\[-]+$")


@dataclass(frozen=True)
class Voice:
    """How something is said.

    Attributes:
        name: of an accent and a variant, such as ``en-us+f3``.
        speed: words a minute.
        pitch, pitch_range: from 0 to 99.
    """

    name: str
    speed: int
    pitch: int
    pitch_range: int


class Speech(NamedTuple):
    """Something said.

    Attributes:
        samples: (n,) float32, between -1 and 1, `RATE` a second.
        phones: numbers in `PHONES`.
        begins: of each, in samples.
    """

    samples: npt.NDArray[np.float32]
    phones: list[int]
    begins: list[int]


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


def package() -> Path:
    """Where the installed package has the library and its data.

    Raises:
        DataError: it is not installed.
    """
    spec = importlib.util.find_spec("espeakng_loader")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("the package espeakng-loader, which carries eSpeak NG, is not installed; see `make env`")
    return Path(spec.submodule_search_locations[0])


def say(text: str, voice: Voice) -> Speech:
    """A sentence as a voice says it; the same whatever was said before.

    Raises:
        DataError: eSpeak NG is not there, or does not know the voice.
        UtteranceError: it says something that has a phone outside of `PHONES`, or nothing.
    """
    pieces: list[bytes] = []
    events: list[tuple[int, str]] = []

    def take(samples: ctypes._Pointer[ctypes.c_short], number: int, given: ctypes._Pointer[_Event]) -> int:
        if number > 0:
            pieces.append(ctypes.string_at(samples, 2 * number))
        i = 0
        while given[i].type != END_OF_LIST:
            if given[i].type == PHONEME:
                events.append((given[i].sample, given[i].id.string.decode("utf-8", "replace")))
            i += 1
        return 0

    callback = _Callback(take)
    library = ctypes.CDLL(str(next(package().glob("libespeak-ng.so*"))))
    try:
        data = str(package() / "espeak-ng-data").encode()
        if library.espeak_Initialize(SYNCHRONOUS, 0, data, PHONEME_EVENTS | DONT_EXIT) != RATE:
            raise DataError(f"{package()}: eSpeak NG cannot be started; install espeakng-loader anew")
        library.espeak_SetSynthCallback(callback)
        if library.espeak_SetVoiceByName(voice.name.encode()):
            raise DataError(f"eSpeak NG has no voice {voice.name!r}")
        library.espeak_SetParameter(PARAMETER_RATE, voice.speed, 0)
        library.espeak_SetParameter(PARAMETER_PITCH, voice.pitch, 0)
        library.espeak_SetParameter(PARAMETER_RANGE, voice.pitch_range, 0)
        library.espeak_ng_SetRandSeed(ctypes.c_long(RANDOM_SEED))
        encoded = text.encode()
        library.espeak_Synth(encoded, len(encoded) + 1, 0, POS_CHARACTER, 0, CHARS_UTF8, None, None)
        library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)
    return _speech(b"".join(pieces), events)


def _speech(said: bytes, events: list[tuple[int, str]]) -> Speech:
    samples = np.frombuffer(said, np.int16).astype(np.float32) / 2.0**15
    phones: list[int] = []
    begins: list[int] = []
    for begin, symbol in events:
        phone = canonical(symbol)
        if phone not in PHONES:
            raise UtteranceError(f"phone {symbol!r}, which is not one of the {len(PHONES)} of the corpus")
        if begins and begin <= begins[-1]:  # the one before has no length
            phones.pop()
            begins.pop()
        phones.append(PHONES.index(phone))
        begins.append(begin)
    if not phones or not len(samples):
        raise UtteranceError("eSpeak NG says nothing")
    return Speech(samples, phones, begins)


def canonical(symbol: str) -> str:
    """One of eSpeak's phoneme names without stress, variant and kind of pause."""
    bare = _VARIANT.sub("", _STRESS.sub("", symbol))
    return SILENCE if bare.startswith(SILENCE) or not bare else bare
